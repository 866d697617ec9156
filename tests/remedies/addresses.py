"""Remedies against source addresses that cannot be used."""

from __future__ import annotations

import errno
import socket

import pytest

import connectx
from connectx._diagnosis import causes
from tests import limits
from tests.observe.helpers import HERE, PORT
from tests.remedies.world import World, follows

NOT_AVAILABLE = errno.EADDRNOTAVAIL
NO_ROUTE = errno.ENETUNREACH
ABROAD = ("192.0.2.9", PORT)


@follows(causes.NOT_LOCAL, "use one of the host's own")
def own_address(world: World) -> None:
    with world.another_host("192.0.2.7/24", "192.0.2.9/24") as other:
        with other.entered():
            world.servers.listen("192.0.2.9", PORT)
        world.fails(NOT_AVAILABLE, world.connect, ABROAD, ("192.0.2.50", 0))
        question = ("--errno", "99", "--source", "192.0.2.50", "--destination", "192.0.2.9:9000")
        assert not world.read(*question)
        assert "its own are 192.0.2.7" in world.ask(*question)
        (command,) = world.commands_in_text()
        assert "192.0.2.7/24" in world.run(command)
        world.connect(ABROAD, ("192.0.2.7", 0))


@follows(causes.NOT_LOCAL, "if a service is to wait")
def nonlocal_bind(world: World) -> None:
    """The service binds, in both IP versions; so does a mistake. The other host has the calls."""
    with world.another_host("192.0.2.7/24", "192.0.2.50/24") as other:
        with other.entered():
            theirs = world.servers.listen("192.0.2.50", PORT)
        for host, wrong, family in (
            ("192.0.2.50", "192.0.2.51", socket.AF_INET),
            ("2001:db8::50", "2001:db8::51", socket.AF_INET6),
        ):
            service = world.closing.enter_context(socket.socket(family))
            mistaken = world.closing.enter_context(socket.socket(family))
            world.fails(NOT_AVAILABLE, service.bind, (host, PORT))
            source = f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}"
            world.follow("--errno", "99", "--source", source)
            service.bind((host, PORT))
            service.listen()
            mistaken.bind((wrong, PORT))
            service.settimeout(0)
        world.connect(("192.0.2.50", PORT))
        limits.accept(theirs)[0].close()
        world.fails(errno.EAGAIN, service.accept)


@follows(causes.NOT_LOCAL, "if the address is meant")
def moved_here(world: World) -> None:
    """An address that nobody has helps. One that another host has is reached no more."""
    with world.another_host("192.0.2.7/24", "192.0.2.9/24") as other:
        with other.entered():
            world.servers.listen("192.0.2.9", PORT)
        world.fails(NOT_AVAILABLE, world.connect, ABROAD, ("192.0.2.50", 0))
        world.read("--errno", "99", "--source", "192.0.2.50")
        world.run("ip address add 192.0.2.50/24 dev v0")
        world.connect(ABROAD, ("192.0.2.50", 0))
        world.run("ip address add 192.0.2.9/32 dev v0")
        world.fails(errno.ECONNREFUSED, world.connect, ABROAD)


def tentative(world: World) -> None:
    """An address that is checked for duplicates for as long as nothing ends it."""
    world.network.add_device_pair("va", "vb")
    world.network.sysctl("net.ipv6.conf.va.accept_dad", 1)
    world.network.sysctl("net.ipv6.conf.va.dad_transmits", 100)
    world.run("ip address add 2001:db8::7/64 dev va")
    world.fails(NOT_AVAILABLE, bound, "2001:db8::7")
    world.read("--errno", "99", "--source", "2001:db8::7")


def bound(host: str, *options: tuple[int, int, int]) -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        for option in options:
            sock.setsockopt(*option)
        sock.bind((host, 0))
    return True


def bindable(host: str) -> bool:
    try:
        return bound(host)
    except OSError as error:
        if error.errno != NOT_AVAILABLE:
            raise
        return False


@follows(causes.NOT_YET_LOCAL, "wait a second")
def checked(world: World) -> None:
    world.network.add_device_pair("va", "vb")
    world.network.sysctl("net.ipv6.conf.va.accept_dad", 1)
    world.run("ip address add 2001:db8::7/64 dev va")
    world.fails(NOT_AVAILABLE, bound, "2001:db8::7")
    world.read("--errno", "99", "--source", "2001:db8::7")
    command, word = world.commands_in_text()
    assert word in world.run(f"{command} show dev va to 2001:db8::7")
    limits.until(lambda: bindable("2001:db8::7"), "the end of the check")
    assert word not in world.run(f"{command} show dev va to 2001:db8::7")


@follows(causes.NOT_YET_LOCAL, "if it shows")
def changed(world: World) -> None:
    with world.another_host("fd00::1/64", "2001:db8::7/64"):
        world.network.sysctl("net.ipv6.conf.v0.accept_dad", 1)
        (word,) = world.commands_in_text()

        def checked_again() -> bool:
            """The first checks may come before the other side answers, and succeed."""
            if word in world.run("ip -6 address"):
                return True
            if "tentative" not in world.run("ip -6 address show dev v0 to 2001:db8::7"):
                world.run("ip address del 2001:db8::7/64 dev v0 2> /dev/null; true")
                world.run("ip address add 2001:db8::7/64 dev v0")
            return False

        limits.until(checked_again, word)
        world.fails(NOT_AVAILABLE, bound, "2001:db8::7")
        world.read("--errno", "99", "--source", "2001:db8::7")
        world.run("ip address del 2001:db8::7/64 dev v0; ip address add 2001:db8::8/64 dev v0")
        limits.until(lambda: bindable("2001:db8::8"), "the end of the check")


@follows(causes.NOT_YET_LOCAL, "add addresses that no other host")
def unchecked(world: World) -> None:
    tentative(world)
    bound("2001:db8::7", (socket.IPPROTO_IP, 15, 1))
    world.run("ip address del 2001:db8::7/64 dev va")
    world.run("ip address add 2001:db8::7/64 dev va nodad")
    bound("2001:db8::7")


@follows(causes.IPV6_OFF, "connect over IPv4")
def over_ipv4(world: World) -> None:
    world.servers.listen("127.0.0.1", PORT)
    world.network.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    world.fails(NOT_AVAILABLE, world.connect, ("::1", PORT))
    world.read("--errno", "99", "--destination", f"[::1]:{PORT}")
    world.connect(HERE)


@follows(causes.IPV6_OFF, "switch IPv6 on")
def ipv6_on(world: World) -> None:
    """For all devices, for the loopback alone, for one with a dot; an added address is lost."""
    world.network.add_device_pair("v0", "v1")
    world.run("ip link set v0 name v0.5")
    world.run("ip -6 address add 2001:db8::7/64 dev v0.5 nodad")
    question = ("--errno", "99", "--source", f"[::1]:{PORT}")
    for device, off in (("all", True), ("lo", False)):
        world.network.sysctl(f"net.ipv6.conf.{device}.disable_ipv6", 1)
        world.fails(NOT_AVAILABLE, bound, "::1")
        assert ("fe80" not in world.run("ip -6 address")) == off
        world.follow(*question)
        bound("::1")
        # As it says: the host has IPv6 addresses again, but not the one that was added by hand.
        assert "fe80" in world.run("ip -6 address")
        assert not bindable("2001:db8::7")
    world.run("sysctl -w net/ipv6/conf/v0.5/disable_ipv6=1")
    with pytest.raises(OSError, match="unreachable"):
        world.connect(("fe80::9", PORT, 0, socket.if_nametoindex("v0.5")))
    question = ("--errno", "ENETUNREACH", "--destination", f"[fe80::9%v0.5]:{PORT}")
    assert "IPv6 is off on device v0.5" in world.ask(*question)
    world.follow(*question)
    sock = world.closing.enter_context(socket.socket(socket.AF_INET6))
    sock.settimeout(0)
    to = ("fe80::9", PORT, 0, socket.if_nametoindex("v0.5"))
    number = limits.until(
        lambda: (number := sock.connect_ex(to)) not in (NO_ROUTE, NOT_AVAILABLE) and number,
        "an address to connect from",
    )
    assert number == errno.EINPROGRESS


@follows(causes.LINK_LOCAL, "name the device")
def with_its_device(world: World) -> None:
    with world.another_host("fe80::7/64", "fe80::9/64") as other:
        with other.entered():
            listener = world.closing.enter_context(socket.socket(socket.AF_INET6))
            listener.bind(("fe80::9", PORT, 0, socket.if_nametoindex("w0")))
            listener.listen()
        world.fails(errno.EINVAL, world.connect, ("fe80::9", PORT))
        with pytest.raises(OSError, match="its device"):
            connectx.create_connection(("fe80::9", PORT))
        question = ("--errno", "EINVAL", "--destination", f"[fe80::9]:{PORT}")
        world.read(*question)
        printed = " ".join(world.ask(*question).split())
        assert "fe80::9 is link-local, and its device (the scope) is missing" in printed
        named = "fe80::9%v0"
        assert named in printed
        connectx.create_connection((named, PORT), timeout=limits.LIMIT).close()
        (command,) = world.commands_in_text()
        assert "fe80::9 dev v0" in world.run(command)
        # A source without it is refused alike.
        world.fails(errno.EINVAL, bound, "fe80::7")
        world.read("--errno", "EINVAL", "--source", "fe80::7")


@follows(causes.LINK_LOCAL, "use a source and a destination")
def of_one_device(world: World) -> None:
    world.network.add_device_pair("va", "vb")
    with world.another_host("fe80::7/64", "fe80::9/64") as other:
        with other.entered():
            listener = world.closing.enter_context(socket.socket(socket.AF_INET6))
            listener.bind(("fe80::9", PORT, 0, socket.if_nametoindex("w0")))
            listener.listen()
        world.network.add_address("fe80::5", 64, "va")
        to = ("fe80::9", PORT, 0, socket.if_nametoindex("v0"))
        source = ("fe80::5", 0, 0, socket.if_nametoindex("va"))
        world.fails(errno.EINVAL, world.connect, to, source)
        destination = ("--destination", f"[fe80::9%v0]:{PORT}")
        world.read("--errno", "EINVAL", "--source", "fe80::5%va", *destination)
        world.connect(to, ("fe80::7", 0, 0, to[3]))
