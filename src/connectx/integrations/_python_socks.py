"""SOCKS with python-socks: a proxy that is reached by a dialer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from connectx.integrations import _dialers

if TYPE_CHECKING:
    import socket

    from connectx.dialer import Dialer


class First:
    """What python-socks takes for a proxy on the way to a proxy."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    def connect(self, dest_host: str, dest_port: int, timeout: float | None) -> socket.socket:
        """Connect to the proxy."""
        return _dialers.connect(self._dialer, (dest_host, dest_port), timeout)
