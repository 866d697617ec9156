"""botocore.session through a Dialer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectx.integrations import _botocore, _dialers

with _dialers.library("botocore", "1.34"):
    import botocore.session

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer

__all__ = ["Session", "get_session"]


class Session(_dialers.WithDialer, botocore.session.Session):  # type: ignore[misc] # has no types
    """botocore.session.Session, whose clients connect by a dialer.

    Args:
        arguments, keywords: As botocore.session.Session takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    def create_client(self, *arguments: Any, **keywords: Any) -> Any:
        """Do what botocore does; the client connects by the dialer."""
        client = super().create_client(*arguments, **keywords)
        _botocore.dial(client, self._dialer)
        return client


def get_session(
    env_vars: Any = None,
    *,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
) -> Session:
    """Do what botocore.session.get_session does.

    Args:
        env_vars: As there.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
    return Session(env_vars, dialer=dialer, sources=sources, ports=ports)
