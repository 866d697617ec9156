"""urllib3.contrib.socks through a Dialer, which connects to the proxy."""

from __future__ import annotations

from connectx.integrations import _dialers
from connectx.integrations.urllib3 import Managing

with _dialers.library("PySocks", "1.7"):
    from urllib3.contrib import socks

__all__ = ["SOCKSProxyManager"]


class SOCKSProxyManager(Managing, socks.SOCKSProxyManager):
    """urllib3.contrib.socks.SOCKSProxyManager, which is connected to the proxy by a dialer.

    Args:
        arguments, keywords: As urllib3.contrib.socks.SOCKSProxyManager takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
