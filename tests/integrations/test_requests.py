"""requests: what goes beyond the checks of all integrations."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import TYPE_CHECKING

import pytest
import requests as plain
import urllib3

import connectx
from connectx.errors import PortsExhausted
from connectx.integrations import requests
from tests.integrations import http_server, servers
from tests.integrations.checks import HOSTS, PORT, SOURCES

if TYPE_CHECKING:
    import contextlib


def source(answer: plain.Response) -> str:
    """Where a request came from."""
    return answer.text.split()[0]


def test_an_error_has_its_cause_and_errno(web: str, closing: contextlib.ExitStack) -> None:
    dialer = connectx.Dialer(ports=(PORT, PORT))
    held = closing.enter_context(dialer.create_connection((web, 80)))
    session = closing.enter_context(requests.Session(dialer=dialer))
    with pytest.raises(plain.ConnectionError) as caught:
        session.get(f"http://{web}/")
    assert isinstance(caught.value.__cause__, PortsExhausted)
    assert caught.value.errno == caught.value.__cause__.errno
    assert caught.value.request is not None
    assert held.getsockname()[1] == PORT


def test_retries_are_those_that_were_asked_for(web: str, closing: contextlib.ExitStack) -> None:
    dialer = connectx.Dialer(ports=(PORT, PORT))
    closing.enter_context(dialer.create_connection((web, 80)))
    for retries, attempts in ((0, 1), (2, 3), (urllib3.Retry(connect=1), 2)):
        session = closing.enter_context(plain.Session())
        session.mount("http://", requests.HTTPAdapter(max_retries=retries, dialer=dialer))
        before = dialer.stats().attempts
        with pytest.raises(plain.ConnectionError):
            session.get(f"http://{web}/")
        assert dialer.stats().attempts - before == attempts


def test_other_errors_stay_as_they_are(web: str, closing: contextlib.ExitStack) -> None:
    servers.silence(closing, web, 81)
    session = closing.enter_context(requests.Session())
    with pytest.raises(plain.ConnectTimeout):
        session.get(f"http://{web}:81/", timeout=0.1)
    with pytest.raises(plain.ConnectionError) as caught:
        session.get(f"http://{web}:82/")
    assert caught.value.__cause__ is None
    assert caught.value.errno is None


def test_a_socks_proxy(web: str, closing: contextlib.ExitStack) -> None:
    serve = functools.partial(http_server.answer, socks=True)
    servers.start(closing, HOSTS[1], 1080, serve)
    session = closing.enter_context(requests.Session(sources=[SOURCES[1]]))
    for scheme in ("socks5", "socks5h"):
        # The port is SOCKS's own.
        session.proxies = {"http": f"{scheme}://user:password@{HOSTS[1]}"}
        assert source(session.get(f"http://{web}/")) == SOURCES[1]


def test_only_what_is_mounted(web: str, closing: contextlib.ExitStack) -> None:
    session = closing.enter_context(plain.Session())
    session.mount(f"http://{web}/", requests.HTTPAdapter(sources=[SOURCES[1]]))
    servers.start(closing, HOSTS[1], 80)
    assert source(session.get(f"http://{web}/")) == SOURCES[1]
    assert source(session.get(f"http://{HOSTS[1]}/")) == HOSTS[1]


def test_copies_share_a_limit_and_pickled_ones_do_not(
    web: str, closing: contextlib.ExitStack
) -> None:
    session = closing.enter_context(requests.Session(dialer=connectx.Dialer(limit=1)))
    session.headers["X-Mine"] = "yes"
    session.get(f"http://{web}/")
    copied = closing.enter_context(copy.deepcopy(session))
    assert copied.headers["X-Mine"] == "yes"
    with pytest.raises(plain.ConnectionError):
        copied.get(f"http://{web}/")
    pickled = closing.enter_context(pickle.loads(pickle.dumps(session)))  # noqa: S301 - our own
    assert pickled.headers["X-Mine"] == "yes"
    assert pickled.get(f"http://{web}/").ok
