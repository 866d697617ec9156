"""Dumps unlike the kernel's: the result is right or an error, and never silently short."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.addresses import PortRange
from connectx.linux import uapi
from connectx.linux.netlink import DumpInterrupted, MalformedMessage, NetlinkError, messages, status
from connectx.linux.sock_diag import SocketRecord, decode_record
from connectx.linux.socket_dump import Filter, Group, ports_toward, records, source_ports, tally
from connectx.linux.structs import NLMSGHDR
from tests.linux.captures.replay import SEQUENCE, datagrams, done, message, replaying
from tests.linux.sockets import IPV6

#: One request, whatever the addresses are.
WANTED = Filter(uapi.IPPROTO_TCP, ports=(PortRange(20000, 21000),))

Replies = list[bytes]


def payloads(replies: Replies) -> list[bytes]:
    """The records of the first complete dump, read message by message; or its error."""
    left = iter(replies)
    for _ in range(8):
        found = one_dump(left)
        if found is not None:
            return found
    raise DumpInterrupted(0, "")


def one_dump(left: Iterator[bytes]) -> list[bytes] | None:
    """The records of the next dump; None if it is inconsistent or has no end."""
    found: list[bytes] = []
    interrupted = False
    for datagram in left:
        end = 0
        for each in messages(datagram):
            end += NLMSGHDR.size + len(each.payload) + 3 & ~3
            if each.sequence != SEQUENCE:
                continue
            interrupted |= bool(each.flags & uapi.NLM_F_DUMP_INTR)
            if each.type == uapi.NLMSG_DONE:
                if status(each.payload):
                    raise NetlinkError(status(each.payload), "")
                return None if interrupted else found
            if each.type in {uapi.NLMSG_ERROR, uapi.NLMSG_OVERRUN}:
                raise NetlinkError(0, "")
            if each.type not in {uapi.SOCK_DIAG_BY_FAMILY, uapi.TCPDIAG_GETSOCK}:
                raise MalformedMessage
            # The kernel pads every record, the last one too.
            if len(each.payload) < 72 or end > len(datagram):
                raise MalformedMessage
            found.append(bytes(each.payload))
    return None


def expected_records(replies: Replies) -> list[SocketRecord]:
    return [decode_record(payload) for payload in payloads(replies)]


def expected_tally(replies: Replies) -> dict[Group, int]:
    return Counter(
        Group(*each[:3], each.destination, each.destination_port, each.interface)
        for each in expected_records(replies)
    )


def expected_ports(replies: Replies) -> dict[int, list[int]]:
    ports: dict[int, list[int]] = {}
    for payload in payloads(replies):
        ports.setdefault(payload[1], []).append(int.from_bytes(payload[4:6], "big"))
    return ports


def found_ports(replies: Replies) -> dict[int, list[int]]:
    with replaying(replies) as netlink:
        ports = ports_toward(netlink, uapi.IPPROTO_TCP, uapi.AF_INET6, None, IPV6, 53)
    assert all(isinstance(some, array) for some in ports.values())
    return {state: some.tolist() for state, some in ports.items()}


def found_records(replies: Replies) -> list[SocketRecord]:
    with replaying(replies) as netlink:
        return records(netlink, WANTED)


def found_tally(replies: Replies) -> dict[Group, int]:
    with replaying(replies) as netlink:
        return tally(netlink, WANTED)


def expected_source_ports(replies: Replies) -> set[int]:
    return {port for some in expected_ports(replies).values() for port in some}


def found_source_ports(replies: Replies) -> set[int]:
    with replaying(replies) as netlink:
        return source_ports(netlink, WANTED)


DECODERS: dict[str, tuple[Callable[[Replies], Any], Callable[[Replies], Any]]] = {
    "records": (found_records, expected_records),
    "tally": (found_tally, expected_tally),
    "ports_toward": (found_ports, expected_ports),
    "source_ports": (found_source_ports, expected_source_ports),
}


def outcome(decode: Callable[[Replies], Any], replies: Replies) -> Any:
    """The result, or None for one of the two permitted errors."""
    try:
        return decode(replies)
    except (MalformedMessage, NetlinkError):
        return None


@st.composite
def mutated(draw: st.DrawFn) -> Replies:
    """A captured dump in which a few octets are changed, removed or cut off."""
    replies = [
        bytearray(each) for each in datagrams(draw(st.sampled_from(["dump-udp", "dump-tcp"])))
    ]
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.integers(0, len(replies) - 1))
        reply = replies[number]
        match draw(st.sampled_from(["octet", "header", "record", "cut", "drop", "repeat"])):
            case "octet":
                reply[draw(st.integers(0, len(reply) - 1))] = draw(st.integers(0, 255))
            case "header" | "record" as part:
                # An octet of a header, on which most decisions depend.
                starts = [0]
                while (at := starts[-1] + int.from_bytes(reply[starts[-1] :][:4], "little")) < len(
                    reply
                ) and at > starts[-1]:
                    starts.append(at)
                offset = draw(st.integers(0, 15) if part == "header" else st.integers(16, 87))
                at = draw(st.sampled_from(starts)) + offset
                if at < len(reply):
                    reply[at] = draw(st.sampled_from([0, 1, 2, 3, 4, 16, 18, 20, 87, 89, 255]))
            case "cut":
                del reply[draw(st.integers(1, len(reply))) :]
            case "drop":
                if len(replies) > 1:
                    del replies[number]
            case "repeat":
                replies.insert(number, bytearray(reply))
    return [bytes(each) for each in replies]


@pytest.mark.parametrize("name", DECODERS)
@given(replies=mutated())
def test_right_or_an_error(name: str, replies: Replies) -> None:
    found, expected = (outcome(decode, replies) for decode in DECODERS[name])
    assert found == expected


@pytest.mark.parametrize("name", DECODERS)
class TestIncomplete:
    def test_whole_is_right(self, name: str) -> None:
        found, expected = DECODERS[name]
        for capture in ("dump-udp", "dump-tcp", "dump-empty"):
            assert found(datagrams(capture)) == expected(datagrams(capture))

    def test_without_its_end(self, name: str) -> None:
        with pytest.raises(DumpInterrupted):
            DECODERS[name][0](datagrams("dump-tcp")[:-1])

    @pytest.mark.parametrize("place", [0, -1])
    def test_marked_as_interrupted(self, name: str, place: int) -> None:
        replies = [bytearray(each) for each in datagrams("dump-udp")]
        replies[place][6] |= uapi.NLM_F_DUMP_INTR
        with pytest.raises(DumpInterrupted):
            DECODERS[name][0]([bytes(each) for each in replies])

    @pytest.mark.parametrize("length", [85, 87, 89, 91])
    @pytest.mark.parametrize("padding", [True, False])
    def test_a_length_that_is_not_aligned(self, name: str, length: int, *, padding: bool) -> None:
        octets = bytearray(length - NLMSGHDR.size)
        octets[0] = uapi.AF_INET
        reply = message(uapi.SOCK_DIAG_BY_FAMILY, bytes(octets))
        if not padding:
            reply = reply[:length]
        found, expected = DECODERS[name]
        if length < 88 or not padding:
            with pytest.raises(MalformedMessage):
                found([reply, done()])
        else:
            assert found([reply, done()]) == expected([reply, done()])

    def test_a_family_of_its_own(self, name: str) -> None:
        reply = message(uapi.SOCK_DIAG_BY_FAMILY, bytes([99]) + bytes(71))
        found, _ = DECODERS[name]
        if name == "ports_toward":
            assert found([reply, done()]) == {0: [0]}
        elif name == "source_ports":
            assert found([reply, done()]) == {0}
        else:
            with pytest.raises(MalformedMessage):
                found([reply, done()])

    def test_octets_behind_an_ipv4_address(self, name: str) -> None:
        """They have no meaning: records that differ only there are one group."""
        record = bytes([uapi.AF_INET, 1]) + bytes(70)
        strange = record[:20] + b"\xff" + record[21:]
        replies = [message(uapi.SOCK_DIAG_BY_FAMILY, each) for each in (record, strange)]
        found, expected = DECODERS[name]
        assert found([*replies, done()]) == expected([*replies, done()])
