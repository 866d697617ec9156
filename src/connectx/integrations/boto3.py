"""boto3 through a Dialer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from connectx.integrations import _botocore, _dialers

with _dialers.library("boto3", "1.34"):
    import boto3

if TYPE_CHECKING:
    from connectx._dial.policy import AnyDialer

__all__ = ["Session", "client", "resource"]


class Session(_dialers.WithDialer, boto3.Session):  # type: ignore[misc] # has no types
    """boto3.Session, whose clients and resources connect by a dialer.

    Args:
        arguments, keywords: As boto3.Session takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """

    # A resource's client is made here, too.
    def client(self, *arguments: Any, **keywords: Any) -> Any:
        """Do what boto3 does; the client connects by the dialer."""
        made = super().client(*arguments, **keywords)
        _botocore.dial(made, self._dialer)
        return made


def client(
    *arguments: Any,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
    **keywords: Any,
) -> Any:
    """Do what boto3.client does, with boto3's default session; the client connects by a dialer.

    Args:
        arguments, keywords: As boto3.client takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
    by = _dialers.blocking(dialer, sources, ports)
    made = boto3.client(*arguments, **keywords)
    _botocore.dial(made, by)
    return made


def resource(
    *arguments: Any,
    dialer: AnyDialer | None = None,
    sources: _dialers.Sources = None,
    ports: _dialers.Ports = None,
    **keywords: Any,
) -> Any:
    """Do what boto3.resource does, with boto3's default session; it connects by a dialer.

    Args:
        arguments, keywords: As boto3.resource takes them.
        dialer, sources, ports: As `connectx.integrations` describes them.
    """
    by = _dialers.blocking(dialer, sources, ports)
    made = boto3.resource(*arguments, **keywords)
    _botocore.dial(made.meta.client, by)
    return made
