"""Remedies against firewall rules that translate."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from typing import TYPE_CHECKING, Final

import pytest

from connectx._diagnosis import causes
from connectx._diagnosis.census import offset_depends_on_port
from connectx._diagnosis.doctor_rules import find
from connectx._diagnosis.verdict import verdict
from connectx.addresses import Endpoint
from connectx.linux import nat_rules
from tests import limits
from tests._diagnosis.made_up import CALL, HEALTHY
from tests.observe.helpers import HIGH, LOW, PORT, SIZE
from tests.remedies.world import World, follows

if TYPE_CHECKING:
    from collections.abc import Iterator

UDP: Final = socket.SOCK_DGRAM
TO: Final = ("192.0.2.9", PORT)
ASKED: Final = ("--destination", f"192.0.2.9:{PORT}")
CHAIN: Final = """
    add table ip t; add chain ip t p {{ type nat hook postrouting priority 100; }};
    add rule ip t p oifname v0 meta l4proto {{ tcp, udp }} {}
"""


def nft(world: World, rules: str) -> None:
    world.run(f"nft '{rules}'")


@contextlib.contextmanager
def a_server(world: World) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A listener, and a UDP socket, on another host."""
    with world.another_host("192.0.2.7/24", "192.0.2.9/24") as other:
        with other.entered():
            listener = world.servers.listen(*TO)
            receiver = world.closing.enter_context(socket.socket(type=UDP))
            receiver.bind(TO)
        yield listener, receiver


def answered(to: tuple[str, int] = TO, source: int = 0) -> socket.socket:
    """Connect, without waiting for long."""
    sock = socket.socket()
    try:
        sock.settimeout(0.3)
        sock.bind(("", source))
        sock.connect(to)
    except BaseException:
        sock.close()
        raise
    return sock


def sent() -> socket.socket:
    sock = socket.socket(type=UDP)
    try:
        sock.connect(TO)
        sock.send(b"x")
    except BaseException:
        sock.close()
        raise
    return sock


def translated_to_few(world: World) -> None:
    """Two connections of each protocol get through, and no third."""
    nft(world, CHAIN.format("masquerade to :40000-40001"))
    for protocol, open_one, number in (("tcp", answered, "ETIMEDOUT"), ("udp", sent, "EPERM")):
        for _ in range(2):
            world.closing.enter_context(open_one())
        if protocol == "tcp":
            with pytest.raises(TimeoutError):
                open_one()
        else:
            world.fails(errno.EPERM, open_one)
        question = ("--errno", number, "--protocol", protocol, *ASKED)
        world.read(*question)
        printed = " ".join(world.ask(*question).split())
        assert "may well come from this: a rule translates to 2 ports" in printed
        assert "masquerade to :40000-40001" in printed.partition(".")[0]
        # Of another destination that rule says nothing: it goes out of another device.
    assert "is not exhaustion" in world.ask("--errno", "EPERM", *ASKED)


@follows(causes.TRANSLATED, "widen the rule")
def more_ports_for_the_rule(world: World) -> None:
    with a_server(world):
        translated_to_few(world)
        nft(world, "flush chain ip t p;" + CHAIN.format("masquerade to :40000-40009"))
        world.closing.enter_context(answered())
        world.closing.enter_context(sent())


@follows(causes.TRANSLATED, "exempt")
def not_translated(world: World) -> None:
    with a_server(world):
        translated_to_few(world)
        nft(world, "insert rule ip t p ip daddr 192.0.2.9 accept")
        world.closing.enter_context(answered())
        world.closing.enter_context(sent())


RANDOM: Final = "masquerade fully-random"


def random_ports(world: World, listener: socket.socket) -> None:
    """The other side sees another port than ours.

    Whether timestamps then go back depends on the kernel: what is decided, on facts as another
    kernel gives them.
    """
    nft(world, CHAIN.format(RANDOM))
    assert not kept(world, listener)
    rules = nat_rules.read()
    (rule,) = rules.random
    assert RANDOM in rule.text
    source, to = Endpoint("192.0.2.7", 0), Endpoint(*TO)
    for number in (errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET):
        call = CALL._replace(number=number, source=source, destination=to)
        facts = HEALTHY._replace(rules=rules, offset_by_port=True, call=call)
        (finding,) = find(facts)
        assert finding.cause is world.cause
        assert world.remedy in finding.cause.remedies
        assert rule.text in verdict(facts, [finding]).text
    if not offset_depends_on_port():
        question = ("--errno", "ETIMEDOUT", *ASKED)
        assert "is not exhaustion" in world.ask(*question)


def kept(world: World, listener: socket.socket) -> bool:
    """Whether the other side sees the ports that we have, of ten connections."""
    ours = [world.closing.enter_context(answered()).getsockname()[1] for _ in range(10)]
    theirs = []
    for _ in ours:
        accepted, peer = limits.accept(listener)
        accepted.close()
        theirs.append(peer[1])
    return sorted(ours) == sorted(theirs)


@follows(causes.RANDOM_TRANSLATION, "have the rule keep")
def not_random(world: World) -> None:
    with a_server(world) as (listener, _):
        random_ports(world, listener)
        nft(world, "flush chain ip t p;" + CHAIN.format("masquerade"))
        assert kept(world, listener)


@follows(causes.RANDOM_TRANSLATION, "exempt")
def not_translated_at_random(world: World) -> None:
    with a_server(world) as (listener, _):
        random_ports(world, listener)
        nft(world, "insert rule ip t p ip daddr 192.0.2.9 accept")
        assert kept(world, listener)


@follows(causes.SWALLOWED, "reserve the ports")
def not_chosen(world: World) -> None:
    """A reply that is not known any more goes to the rule's destination, and ours gets nothing.

    Connection tracking forgets what is silent; here it is made to know nothing from the start.
    """
    first, last = LOW, HIGH - 2
    with a_server(world) as (_, receiver):
        nft(
            world,
            f"""
            add table ip n; add chain ip n pre {{ type nat hook prerouting priority -100; }};
            add rule ip n pre udp dport {first}-{last} dnat to 192.0.2.9:1;
            add table ip r; add chain ip r out {{ type filter hook output priority raw; }};
            add rule ip r out udp dport {PORT} notrack
            """,
        )

        def asked(port: int = 0) -> bool:
            with socket.socket(type=UDP) as sock:
                sock.bind(("192.0.2.7", port))
                sock.connect(TO)
                sock.send(b"question")
                _, sender = limits.receive_from(receiver, 9)
                receiver.sendto(b"answer", sender)
                # It has come, or it does not come: the receiver sends it before this returns.
                return bool(select.select([sock], [], [], 0.2)[0])

        assert not asked(first)
        assert asked(last + 1)
        question = ("--errno", "ETIMEDOUT", "--protocol", "udp", *ASKED)
        printed = " ".join(world.ask(*question).split())
        assert "may well come from this: 18 of 20 source ports are translated" in printed
        assert f"udp dport {first}-{last} dnat to 192.0.2.9:1" in printed
        world.follow(*question)
        assert all(asked() for _ in range(SIZE))
        # The ports are no more given out, and open connections stay.
        taken = [world.connect(TO, kind=UDP).getsockname()[1] for _ in range(2)]
        assert sorted(taken) == [last + 1, last + 2]
        world.fails(errno.EAGAIN, world.connect, TO, kind=UDP)
