"""Text, octets, scopes and protocols, turned into one another."""

from __future__ import annotations

import errno
import itertools
import socket
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx import addresses
from connectx.addresses import PROTOCOL_OF, PROTOCOLS, Endpoint, PortRange, ports_in, ranges_of
from connectx.linux import uapi
from tests import limits


class TestAddressForms:
    @pytest.mark.parametrize(
        "host, octets",
        [
            ("192.0.2.7", b"\xc0\0\2\7"),
            ("0.0.0.0", bytes(4)),
            ("::", bytes(16)),
            ("2001:db8::7", bytes.fromhex("20010db8000000000000000000000007")),
            ("::ffff:192.0.2.7", bytes(10) + b"\xff\xff\xc0\0\2\7"),
            ("fe80::1", b"\xfe\x80" + bytes(13) + b"\1"),
        ],
    )
    def test_text_and_octets_are_each_others_inverse(self, host: str, octets: bytes) -> None:
        assert addresses.packed(host) == octets
        assert addresses.text(octets) == host

    def test_text_is_the_kernels_whatever_form_it_was_written_in(self) -> None:
        for written, printed in [
            ("2001:DB8:0:0::7", "2001:db8::7"),
            ("::ffff:c000:207", "::ffff:192.0.2.7"),
        ]:
            assert addresses.text(addresses.packed(written) or b"") == printed

    @pytest.mark.parametrize(
        "host",
        [
            "",
            "localhost",
            "192.0.2",
            "192.0.2.256",
            "1.2.3.4 ",
            "fe80::1%lo",
            "1:2",
            "::1\0",
            "\ud800",
        ],
    )
    def test_other_text_has_no_octets(self, host: str) -> None:
        assert addresses.packed(host) is None

    def test_a_mapped_address_holds_an_ipv4_address_and_no_other_does(self) -> None:
        mapped = addresses.packed("::ffff:192.0.2.7") or b""
        assert mapped[:12] == addresses.V4_MAPPED
        assert addresses.unmapped(mapped) == b"\xc0\0\2\7"
        assert addresses.unmapped(b"\xc0\0\2\7") == b"\xc0\0\2\7"
        other = addresses.packed("2001:db8::7") or b""
        assert addresses.unmapped(other) == other
        assert addresses.text(mapped) == addresses.V4_MAPPED_TEXT + "192.0.2.7"

    def test_the_family_follows_from_the_number_of_octets(self) -> None:
        assert addresses.family_of(bytes(4)) == socket.AF_INET
        assert addresses.family_of(bytes(16)) == socket.AF_INET6


class TestScopes:
    @pytest.mark.parametrize(
        "host, needed",
        [
            ("fe80::1", True),
            ("febf::1", True),
            ("ff01::1", True),
            ("ff02::1", True),
            ("fec0::1", False),
            ("ff05::1", False),
            ("2001:db8::1", False),
            ("::1", False),
            ("169.254.0.1", False),
        ],
    )
    def test_link_local_addresses_need_one(self, host: str, *, needed: bool) -> None:
        assert addresses.needs_scope(addresses.packed(host) or b"") is needed

    def test_a_scope_is_a_name_or_an_index(self) -> None:
        index = socket.if_nametoindex("lo")
        assert addresses.resolve_scope("fe80::1%lo") == ("fe80::1", index)
        assert addresses.resolve_scope("fe80::1%7") == ("fe80::1", 7)

    def test_without_one_in_the_text_the_given_index_is_kept(self) -> None:
        assert addresses.resolve_scope("fe80::1") == ("fe80::1", 0)
        assert addresses.resolve_scope("fe80::1", 3) == ("fe80::1", 3)

    @pytest.mark.parametrize("host", ["fe80::1%", "fe80::1%no-such-device", "fe80::1%\u0662"])
    def test_an_unknown_interface_is_named_in_the_error(self, host: str) -> None:
        with pytest.raises(OSError, match="no interface is named") as caught:
            addresses.resolve_scope(host)
        assert caught.value.errno == errno.ENODEV
        assert repr(host.partition("%")[2]) in str(caught.value)

    def test_an_endpoint_prints_with_its_scope(self) -> None:
        assert addresses.with_scope("fe80::7", 2) == "fe80::7%2"
        assert addresses.with_scope("2001:db8::7", 0) == "2001:db8::7"
        assert str(Endpoint("fe80::7", 443, 0, 2)) == "[fe80::7%2]:443"
        assert str(Endpoint("2001:db8::7", 0)) == "[2001:db8::7]:*"
        assert str(Endpoint("", 443)) == "*:443"


class TestSocketAddresses:
    def test_each_family_has_its_own_form(self) -> None:
        assert Endpoint("192.0.2.7", 80).sockaddr(socket.AF_INET) == ("192.0.2.7", 80)
        assert Endpoint("fe80::7", 80, 5, 2).sockaddr(socket.AF_INET6) == ("fe80::7", 80, 5, 2)


class TestPortRanges:
    def test_one_covers_another(self) -> None:
        assert PortRange(10, 20).covers(PortRange(10, 20))
        assert not PortRange(10, 20).covers(PortRange(9, 20))
        assert not PortRange(10, 20).covers(PortRange(10, 21))

    @given(st.sets(st.integers(1, 40)))
    def test_ranges_hold_the_ports_they_were_made_of(self, ports: set[int]) -> None:
        ranges = ranges_of(ports)
        assert ports_in(ranges) == ports
        assert all(one.high + 1 < other.low for one, other in itertools.pairwise(ranges))


class TestProtocols:
    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_a_socket_of_each_is_recognised(self, name: str) -> None:
        protocol = PROTOCOLS[name]
        assert protocol.name == name
        assert PROTOCOL_OF[protocol.type, protocol.number] is protocol
        assert protocol.stream == (protocol.type == socket.SOCK_STREAM)

    def test_the_defaults_are_recognised_by_their_own_numbers_too(self) -> None:
        assert PROTOCOL_OF[socket.SOCK_STREAM, socket.IPPROTO_TCP].name == "tcp"
        assert PROTOCOL_OF[socket.SOCK_DGRAM, socket.IPPROTO_UDP].name == "udp"
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as plain:
            number = plain.getsockopt(uapi.SOL_SOCKET, uapi.SO_PROTOCOL)
        assert PROTOCOL_OF[socket.SOCK_STREAM, number].name == "tcp"

    def test_mptcp_uses_the_ports_of_tcp(self) -> None:
        assert PROTOCOLS["mptcp"].table == PROTOCOLS["tcp"].table == uapi.IPPROTO_TCP

    def test_the_numbers_are_those_of_the_kernels_headers(self) -> None:
        assert PROTOCOLS["mptcp"].number == uapi.IPPROTO_MPTCP
        assert PROTOCOLS["udplite"].number == PROTOCOLS["udplite"].table == uapi.IPPROTO_UDPLITE
        assert PROTOCOLS["udp"].table == uapi.IPPROTO_UDP


class TestOtherPlatforms:
    def test_it_is_imported_without_the_constants_that_only_linux_has(self) -> None:
        # What the socket module of macOS and Windows has, of what addresses might want.
        script = """
            import socket
            for name in list(vars(socket)):
                if name.isupper() and name not in {
                    "AF_INET", "AF_INET6", "SOCK_STREAM", "SOCK_DGRAM", "IPPROTO_TCP", "IPPROTO_UDP"
                }:
                    delattr(socket, name)
            from connectx import addresses
            assert addresses.packed("192.0.2.7") == bytes([192, 0, 2, 7])
            assert set(addresses.PROTOCOLS) == {"tcp", "mptcp", "udp", "udplite"}
        """
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            check=True,
            timeout=limits.COMMAND_LIMIT,
        )
