"""The list of devices follows what happens."""

import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from connectx.linux import uapi
from connectx.linux.devices import Devices
from connectx.linux.netlink import DumpInterrupted, NetlinkSocket
from connectx.sandbox.networks import Network
from tests.api.calls import ip

PAIRS: Final = 120


@pytest.fixture
def netlink(network: Network) -> Iterator[NetlinkSocket]:  # noqa: ARG001 -- in its namespace
    with NetlinkSocket(uapi.NETLINK_ROUTE) as made:
        yield made


@pytest.fixture
def devices(netlink: NetlinkSocket) -> Iterator[Devices]:
    with NetlinkSocket(uapi.NETLINK_ROUTE, uapi.RTMGRP_LINK) as announcements:
        yield Devices(netlink, announcements)


def indices(*names: str) -> list[bytes]:
    return sorted(socket.if_nametoindex(name).to_bytes(4, sys.byteorder) for name in names)


def test_they_come_and_go(devices: Devices, network: Network) -> None:
    assert devices.but_loopback() == ()
    network.add_device_pair("one", "two")
    assert sorted(devices.but_loopback()) == indices("one", "two")
    network.add_device_pair("three", "four")
    assert sorted(devices.but_loopback()) == indices("one", "two", "three", "four")
    ip("link", "delete", "one")
    assert sorted(devices.but_loopback()) == indices("three", "four")


def test_without_an_announcement_nothing_is_read(
    devices: Devices, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = devices.but_loopback()
    with monkeypatch.context() as patch:
        patch.setattr(NetlinkSocket, "dump", None)
        assert devices.but_loopback() is known
        network.add_device_pair("one", "two")
        with pytest.raises(TypeError):
            devices.but_loopback()


def test_many(devices: Devices, network: Network) -> None:
    """More than one datagram lists, and more announcements than the buffer takes."""
    assert devices.but_loopback() == ()
    names = [(f"left{number}", f"right{number}") for number in range(PAIRS)]
    for pair in names:
        network.add_device_pair(*pair)
    assert sorted(devices.but_loopback()) == indices(*(name for pair in names for name in pair))


def test_a_dump_that_is_interrupted_is_repeated(
    devices: Devices, netlink: NetlinkSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump: Callable[..., object] = netlink.dump
    outcomes = iter([True, True, False])

    def interrupted(_: NetlinkSocket, *arguments: object) -> object:
        if next(outcomes):
            raise DumpInterrupted(4, "NLM_F_DUMP_INTR")
        return dump(*arguments)

    monkeypatch.setattr(NetlinkSocket, "dump", interrupted)
    assert devices.but_loopback() == ()
    assert not list(outcomes)
