"""What is kept of network namespaces, and for how long."""

import errno
import os
import socket
import time
from collections.abc import Callable

import pytest

import connectx
from connectx._connect.namespace import (
    FORGET,
    FRESH,
    MOST_OCTETS,
    NAMESPACES,
    Namespace,
    Namespaces,
)
from connectx.linux import netns
from connectx.linux.netlink import NetlinkSocket
from connectx.linux.sockopts import set_ip_local_port_range
from connectx.sandbox.networks import Network, experiment_network
from tests import limits

PutForward = Callable[[float], None]


@pytest.fixture
def put_forward(monkeypatch: pytest.MonkeyPatch) -> PutForward:
    skipped = 0.0
    monkeypatch.setattr("connectx._connect.namespace.monotonic", lambda: time.monotonic() + skipped)

    def skip(seconds: float) -> None:
        nonlocal skipped
        skipped += seconds

    return skip


def namespace_of_a_socket(namespaces: Namespaces) -> Namespace:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return namespaces.of(sock)


def is_open(netlink: NetlinkSocket) -> bool:
    return not netlink.closed


def test_after_a_fork_no_netlink_socket_is_shared_not_even_a_forgotten_networks(
    network: Network,
) -> None:
    """An error holds on to the network that it was about, to explain itself."""
    namespaces = Namespaces()
    former = namespace_of_a_socket(namespaces)
    shared = former.diag
    network.port_range(20000, 20009)
    assert namespaces.look_again(former) is not former
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b"another" if former.diag is not shared else b"shared")
        os._exit(0)
    assert limits.status_of(child) == 0
    assert os.read(reader, 10) == b"another"
    assert former.diag is shared
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("network")
def test_a_namespace_that_nobody_uses_is_let_go(put_forward: PutForward) -> None:
    """Even if what is known of the one in use stays as it was."""
    home = netns.open_namespace()
    namespaces = Namespaces()
    namespace_of_a_socket(namespaces)
    with experiment_network():
        netlink = namespace_of_a_socket(namespaces).diag
        assert is_open(netlink)
        del netlink
        elsewhere = namespace_of_a_socket(namespaces)
    netns.enter(home)
    put_forward(FRESH + FORGET + 1)
    namespace_of_a_socket(namespaces)
    namespace_of_a_socket(namespaces)
    assert not vars(elsewhere.sockets)
    os.close(home)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_without_a_descriptor_to_look_again_what_was_known_has_to_do(
    network: Network, put_forward: PutForward, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    network.port_range(20000, 20009)
    namespaces = Namespaces()
    known = namespace_of_a_socket(namespaces)
    put_forward(2 * FRESH)

    def no_descriptor() -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("connectx._connect.namespace.thread_identity", no_descriptor)
        assert namespace_of_a_socket(namespaces) is known
        with pytest.raises(OSError, match=os.strerror(number)):
            namespace_of_a_socket(Namespaces())
    network.port_range(20000, 20019)
    assert namespace_of_a_socket(namespaces) is not known


def templates(namespace: Namespace) -> dict[int, int]:
    """The octets of each template that a plan refers to, by what identifies it."""
    ledgers = [*(plan.ledger for plan in namespace.plans.values()), *namespace._former]
    kept = [ledger._shelf.template for ledger in ledgers]
    return {id(each): len(each) for each in (*kept, *namespace._templates.values())}


def connect_within(low: int, high: int, source: str = "127.0.0.1") -> None:
    """Connect a socket that has a window of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        set_ip_local_port_range(sock, low, high)
        connectx.connectx(sock, (source, 0), ("127.0.0.1", 9000))


def test_of_many_windows_few_are_kept(network: Network) -> None:
    network.port_range(20000, 60999)
    for number in range(500):
        connect_within(20000 + number, 30000 + number)
    found = templates(NAMESPACES.here())
    # A generation of plans refers to so many, and so does the one before.
    assert 10 < len(found) < 300
    assert sum(found.values()) < 2 * MOST_OCTETS + 2 * 10_001


def test_a_window_has_one_template_for_all_sources(network: Network) -> None:
    network.port_range(20000, 60999)
    for number in range(1, 21):
        for low in (20000, 40000):
            connect_within(low, low + 9_999, f"127.0.0.{number}")
    assert list(templates(NAMESPACES.here()).values()) == [10_000, 10_000]
