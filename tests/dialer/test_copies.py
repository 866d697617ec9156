"""Copies of a dialer, which share what it has open, and pickled ones, which have its settings."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest

import connectx
from connectx import PortsExhausted, aio
from connectx._connect.request import NEW_SOCKET
from tests.dialer.waiting import HERE

if TYPE_CHECKING:
    import contextlib

    from connectx.sandbox.networks import Network

SETTINGS: list[dict[str, Any]] = [
    {},
    {"sources": ["127.0.0.7", "2001:db8::/64"], "rotate": "round-robin"},
    {"ports": [(20001, 20004), (20006, 20008)], "exclude": [20003], "limit": 5, "wait": 0.5},
    {"freebind": True, "fallback": "plain", "strategy": "one-port", "on_wait": print},
]


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", [connectx.Dialer, aio.Dialer])
def test_pickled_it_has_the_settings(kind: Any, settings: dict[str, Any]) -> None:
    dialer = kind(**settings)
    again = pickled(dialer)
    assert type(again) is kind
    assert repr(again) == repr(dialer)
    before, after = dialer._policy.settings, again._policy.settings
    for field in set(before._fields) - {"sources"}:
        assert getattr(after, field) == getattr(before, field)
    assert after.sources._pools == before.sources._pools
    assert after.sources.rotate == before.sources.rotate
    # Calls recognise it.
    assert (after.asked is NEW_SOCKET) == (before.asked is NEW_SOCKET)


def test_pickled_it_counts_by_itself(listening: Network, closing: contextlib.ExitStack) -> None:
    del listening
    dialer = connectx.Dialer(limit=1)
    closing.enter_context(dialer.create_connection(HERE))
    again, face = pickled((dialer, aio.Dialer(dialer)))
    closing.enter_context(again.create_connection(HERE))
    # Those that are pickled together stay together.
    assert face.stats().opened == 1
    with pytest.raises(PortsExhausted):
        again.create_connection(HERE)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_what_is_open(
    listening: Network, closing: contextlib.ExitStack, copied: Any
) -> None:
    del listening
    dialer = connectx.Dialer(limit=1)
    closing.enter_context(dialer.create_connection(HERE))
    with pytest.raises(PortsExhausted):
        copied(dialer).create_connection(HERE)
