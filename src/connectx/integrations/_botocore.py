"""What boto3 and botocore have in common: a client's connections, by a dialer."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from connectx.integrations import _dialers
from connectx.integrations.urllib3 import manage

if TYPE_CHECKING:
    from connectx.dialer import Dialer


def dial(client: Any, dialer: Dialer) -> None:
    """Have a client of botocore's connect by a dialer."""
    http = client._endpoint.http_session  # noqa: SLF001 - there is no other way to it
    manage(http._manager, dialer)  # noqa: SLF001 - as above
    manager_for = http._get_proxy_manager  # noqa: SLF001 - as above

    @functools.wraps(manager_for)
    def proxy_manager_for(url: str) -> Any:
        manager = manager_for(url)
        if "dialer" not in manager.connection_pool_kw:
            manage(manager, dialer)
        return manager

    http._get_proxy_manager = proxy_manager_for  # noqa: SLF001 - as above
    asked = "total_max_attempts" in (client.meta.config.retries or {})

    def judge(caught_exception: Exception | None = None, **_: Any) -> None:
        """Keep what has no port from being tried again, with pauses, unless that was asked for."""
        if caught_exception is not None and _dialers.own_error(caught_exception):
            _dialers.with_cause(caught_exception)
            if not asked:
                raise caught_exception

    # Before botocore's own, which take from its allowance of retries, or raise.
    service = client.meta.service_model.service_id.hyphenize()
    client.meta.events.register_first(f"needs-retry.{service}", judge)
