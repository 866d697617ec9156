"""Sockets go from one worker to another, and stay open on the way."""

from __future__ import annotations

import errno
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from connectx.sandbox.holders import Held, Holders
from connectx.sandbox.workers import Crew

if TYPE_CHECKING:
    from collections.abc import Callable

    from connectx.sandbox.networks import Network
    from connectx.sandbox.workers import Worker

    Report = Callable[[int], None]


def descriptors(_state: object, _report: Report) -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def bind_sockets(held: Held, _report: Report, count: int) -> None:
    for _ in range(count):
        held.sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        held.sockets[-1].bind(("127.0.0.1", 0))


def ports(held: Held, _report: Report) -> list[int]:
    return [sock.getsockname()[1] for sock in held.sockets]


def lower_limit(_state: object, _report: Report) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


class TestHolders:
    def test_take_over_what_the_opener_has_opened(self, network: Network, crew: Crew) -> None:
        del network  # It is enough that the sockets are in it.
        with Holders(crew) as holders:
            before = holders.opener.start(descriptors).result()
            # More than one message can carry.
            holders.opener.start(bind_sockets, 600).result()
            opened = holders.opener.start(ports).result()
            holders.relieve()
            assert sorted(holders.workers[1].start(ports).result()) == sorted(opened)
            assert holders.opener.start(descriptors).result() == before

    def test_keep_their_sockets_until_the_crew_ends(self, network: Network) -> None:
        del network

        def bind_error(port: int) -> int | None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError as error:
                    return error.errno
            return None

        with Crew() as crew, Holders(crew) as holders:
            holders.opener.start(bind_sockets, 1).result()
            holders.relieve()
            (port,) = holders.workers[1].start(ports).result()
            assert bind_error(port) == errno.EADDRINUSE
        assert bind_error(port) is None

    def test_leave_the_opener_to_open_more(self, network: Network, crew: Crew) -> None:
        del network
        with Holders(crew) as holders:
            for _ in range(3):
                holders.opener.start(bind_sockets, 10).result()
                holders.relieve()
            holders.opener.start(bind_sockets, 5).result()
            held = [worker.start(ports).result() for worker in holders.workers]
        assert [len(share) for share in held] == [5, 10, 10, 10]
        assert len(set().union(*held)) == 35

    def test_say_so_if_they_cannot_take_all(
        self, network: Network, crew: Crew, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del network
        with Holders(crew) as holders:
            holders.opener.start(bind_sockets, 100).result()
            real = crew.fork

            def fork(state: Held) -> Worker[Held]:
                worker = real(state)
                worker.start(lower_limit).result()
                return worker

            monkeypatch.setattr(crew, "fork", fork)
            with pytest.raises(OSError, match="could not take over"):
                holders.relieve()
