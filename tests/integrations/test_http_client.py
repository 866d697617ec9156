"""http.client and urllib.request: what goes beyond the checks of all integrations."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

import connectx
from connectx.errors import PortsExhausted
from connectx.integrations import http_client, urllib_request
from tests.integrations.checks import PORT, SOURCES

if TYPE_CHECKING:
    import contextlib


def test_the_default_timeout_ends_the_wait(web: str, closing: contextlib.ExitStack) -> None:
    dialer = connectx.Dialer(ports=(PORT, PORT), wait=3600.0)
    closing.enter_context(dialer.create_connection((web, 80)))
    closing.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
    socket.setdefaulttimeout(0.1)
    with pytest.raises(PortsExhausted):
        http_client.HTTPConnection(web, dialer=dialer).request("GET", "/")
    assert dialer.stats().waits == 1


def test_it_connects_again(web: str) -> None:
    connection = http_client.HTTPConnection(web, sources=[SOURCES[1]])
    for _ in range(2):
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(SOURCES[1].encode())
        connection.close()


def test_a_source_address_chooses_among_the_dialers(web: str) -> None:
    for host in SOURCES:
        connection = http_client.HTTPConnection(web, source_address=(host, 0), sources=SOURCES)
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(host.encode())
        connection.close()


class TestOpener:
    def test_an_error_has_its_cause_and_errno(
        self, web: str, closing: contextlib.ExitStack
    ) -> None:
        dialer = connectx.Dialer(ports=(PORT, PORT))
        closing.enter_context(dialer.create_connection((web, 80)))
        opener = urllib_request.build_opener(dialer=dialer)
        with pytest.raises(urllib.error.URLError) as caught:
            opener.open(f"http://{web}/")
        assert caught.value.__cause__ is caught.value.reason
        assert isinstance(caught.value.reason, PortsExhausted)
        assert caught.value.errno == caught.value.reason.errno
        assert str(caught.value).startswith("<urlopen error [Errno 99]")

    @pytest.mark.parametrize("as_class", [True, False])
    def test_a_handler_of_the_programs_own_is_used(
        self, web: str, closing: contextlib.ExitStack, *, as_class: bool
    ) -> None:
        class Handler(urllib.request.HTTPHandler):
            pass

        handler: Any = Handler if as_class else Handler()
        opener = urllib_request.build_opener(handler, sources=[SOURCES[1]])
        answer = closing.enter_context(opener.open(f"http://{web}/"))
        assert answer.read().startswith(web.encode())
        kinds = [type(each) for each in opener.handlers]  # type: ignore[attr-defined] # not in typeshed
        assert Handler in kinds
        assert urllib_request.HTTPHandler not in kinds
        assert urllib_request.HTTPSHandler in kinds

    def test_a_connection_of_the_programs_own_is_used(
        self, web: str, closing: contextlib.ExitStack
    ) -> None:
        class Handler(urllib_request.HTTPHandler):
            def http_open(self, req: urllib.request.Request) -> Any:
                return self.do_open(http.client.HTTPConnection, req, source_address=(SOURCES[0], 0))

        handler = Handler(sources=SOURCES)
        answer = closing.enter_context(urllib.request.build_opener(handler).open(f"http://{web}/"))
        assert answer.read().startswith(SOURCES[0].encode())
