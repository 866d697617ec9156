"""boto3: what goes beyond the checks of all integrations."""

from __future__ import annotations

import time
import types
from typing import TYPE_CHECKING, Any

import botocore.endpoint
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

import connectx
from connectx.errors import PortsExhausted
from connectx.integrations import boto3
from tests.integrations.checks import PORT

if TYPE_CHECKING:
    import contextlib

KEYS: Any = {
    "region_name": "nowhere",
    "aws_access_key_id": "key",
    "aws_secret_access_key": "secret",
}


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that botocore would have made."""
    made: list[float] = []
    clock = types.SimpleNamespace(**{**vars(time), "sleep": made.append})
    monkeypatch.setattr(botocore.endpoint, "time", clock)
    return made


@pytest.mark.parametrize("mode", ["legacy", "standard"])
@pytest.mark.parametrize("attempts", [None, 3])
def test_what_has_no_port_is_tried_again_where_that_was_asked_for(
    web: str,
    closing: contextlib.ExitStack,
    pauses: list[float],
    mode: str,
    attempts: int | None,
) -> None:
    dialer = connectx.Dialer(ports=(PORT, PORT))
    closing.enter_context(dialer.create_connection((web, 80)))
    retries: dict[str, Any] = {"mode": mode}
    if attempts is not None:
        retries["total_max_attempts"] = attempts
    config = Config(retries=retries)  # type: ignore[arg-type, unused-ignore] # where it has types
    s3 = boto3.client("s3", endpoint_url=f"http://{web}", config=config, dialer=dialer, **KEYS)
    with pytest.raises(EndpointConnectionError) as caught:
        s3.get_object(Bucket="bucket", Key="key")
    assert isinstance(caught.value.__cause__, PortsExhausted)
    assert dialer.stats().attempts == 1 + (attempts or 1)
    assert len(pauses) == (attempts or 1) - 1
    s3.close()


def test_other_errors_are_tried_again_as_ever(web: str, pauses: list[float]) -> None:
    dialer = connectx.Dialer()
    config = Config(retries={"mode": "standard"})
    s3 = boto3.client("s3", endpoint_url=f"http://{web}:81", config=config, dialer=dialer, **KEYS)
    with pytest.raises(EndpointConnectionError) as caught:
        s3.get_object(Bucket="bucket", Key="key")
    assert caught.value.__cause__ is None
    assert dialer.stats().failures == {"ECONNREFUSED": 3}
    assert len(pauses) == 2
    s3.close()
