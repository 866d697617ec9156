"""What connectx uses of CPython that no documentation promises, on whatever version this runs.

Run by tests.stdlib.run, hence with unittest.
"""

import copy
import inspect
import multiprocessing
import pickle
import socket
import sys
import unittest
from typing import Any

import connectx
from connectx._connect.connection import DEFAULT_TIMEOUT
from connectx._connect.own_socket import OwnSocket, Reports
from tests.limits import LIMIT


class Slot:
    """Takes the reports of a socket."""

    def __init__(self) -> None:
        self.reports: list[str] = []

    def closed(self) -> None:
        self.reports.append("closed")

    def shared(self) -> None:
        self.reports.append("shared")

    def detached(self, sock: Any) -> None:
        self.reports.append(f"detached {sock.fileno() >= 0}")


class Internals(unittest.TestCase):
    """Each attribute or behaviour, and what connectx needs it for."""

    def setUp(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        sock: Any = connectx.create_connection(self.listener.getsockname())
        self.addCleanup(sock.close)
        self.sock, self.slot = sock, Slot()
        sock.slot = self.slot

    def test_sockets_are_ours(self) -> None:
        assert type(self.sock) is OwnSocket
        assert isinstance(self.sock, Reports)

    def test_close_ends_in_real_close(self) -> None:
        self.sock.close()
        self.sock.close()
        assert self.slot.reports == ["closed"]

    def test_so_does_the_last_makefile(self) -> None:
        with self.sock.makefile("rb") as file:
            self.sock.close()
            assert self.slot.reports == []
            assert not file.closed
        assert self.slot.reports == ["closed"]

    def test_so_does_a_with_block(self) -> None:
        with self.sock:
            pass
        assert self.slot.reports == ["closed"]

    def test_dup_makes_one_of_the_same_class(self) -> None:
        self.sock.dup().close()
        assert self.slot.reports == ["shared", "closed"]

    def test_detach_is_a_method_that_ssl_calls(self) -> None:
        socket.socket(fileno=self.sock.detach()).close()
        self.sock.close()
        assert self.slot.reports == ["detached True"]

    def test_multiprocessing_asks_by_reduce_ex(self) -> None:
        here, there = multiprocessing.Pipe()
        with here, there:
            here.send([self.sock])
            assert self.slot.reports == ["detached True"]
            assert there.poll(LIMIT)
            (received,) = there.recv()
            with received:
                assert type(received) is socket.socket
                assert received.getpeername() == self.listener.getsockname()

    def test_nobody_else_does(self) -> None:
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            try:
                way(self.sock)
            except TypeError as error:
                assert "cannot pickle" in str(error)  # noqa: PT017 - no pytest here
            else:
                raise AssertionError(way)
        assert self.slot.reports == []

    def test_no_timeout_given(self) -> None:
        assert DEFAULT_TIMEOUT is socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]
        timeout = inspect.signature(socket.create_connection).parameters["timeout"]
        assert timeout.default is DEFAULT_TIMEOUT

    def test_a_version_that_is_supported(self) -> None:
        assert sys.version_info >= (3, 11)
