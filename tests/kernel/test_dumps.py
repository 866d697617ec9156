"""What a dump of sockets holds while sockets come and go."""

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from connectx.linux import uapi
from connectx.linux.netlink import NetlinkSocket, Run, messages
from connectx.linux.sock_diag import decode_record
from connectx.linux.socket_dump import Filter, encode_dump, records, with_v6only
from connectx.linux.sockopts import get_so_cookie
from connectx.sandbox.networks import Network

#: More than fit into one datagram.
SOCKETS = 900
PORT = 20000


@pytest.fixture
def on_one_port(network: Network, closing: contextlib.ExitStack) -> list[socket.socket]:
    """UDP sockets with one source port, which is what UDP's buckets are chosen by; oldest first."""
    del network
    return [closing.enter_context(connected(number)) for number in range(SOCKETS)]


def connected(number: int) -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", PORT))
    sock.connect((f"127.0.{number // 250}.{number % 250 + 1}", 53))
    return sock


def dumping() -> Iterator[Counter[bytes]]:
    """Cookies so far, after each datagram: the kernel goes on only when that has been read."""
    found: Counter[bytes] = Counter()
    request = encode_dump(uapi.AF_INET, uapi.AF_INET, Filter(uapi.IPPROTO_UDP))
    with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
        run: Run
        for run in netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, request):
            found.update(decode_record(each.payload).cookie for each in messages(run.messages))
            yield found


def test_a_bound_socket_is_listed_whatever_single_port_is_wanted(network: Network) -> None:
    """The kernel compares idiag_sport with that of any other socket."""
    del network
    with socket.socket() as bound, socket.socket() as listener:
        bound.bind(("127.0.0.1", PORT))
        listener.bind(("127.0.0.1", PORT + 1))
        listener.listen()
        with NetlinkSocket(uapi.NETLINK_SOCK_DIAG) as netlink:
            wanted = Filter(uapi.IPPROTO_TCP, source_port=PORT + 2)
            request = encode_dump(uapi.AF_INET, uapi.AF_INET, wanted)
            listed = {
                decode_record(each.payload).source_port
                for run in netlink.dump(uapi.SOCK_DIAG_BY_FAMILY, request)
                for each in messages(run.messages)
            }
            assert records(netlink, wanted) == []
            assert with_v6only(netlink, wanted) == []
    if not listed:
        pytest.skip("kernel: before 6.8 a dump leaves bound sockets out")
    assert listed == {PORT}


def test_a_dump_of_what_stays_as_it_is_has_each_once(on_one_port: list[socket.socket]) -> None:
    *_, found = dumping()
    assert found == Counter(map(get_so_cookie, on_one_port))


def test_one_that_goes_hides_one_that_stays(on_one_port: list[socket.socket]) -> None:
    dump = dumping()
    seen = next(dump)
    assert len(seen) < SOCKETS
    gone = next(sock for sock in on_one_port if get_so_cookie(sock) in seen)
    stay = {get_so_cookie(sock) for sock in on_one_port if sock is not gone}
    gone.close()
    *_, found = dump
    assert len(stay - found.keys()) == 1


def test_one_that_comes_doubles_one_that_stays(
    on_one_port: list[socket.socket], closing: contextlib.ExitStack
) -> None:
    dump = dumping()
    next(dump)
    closing.enter_context(connected(SOCKETS))
    *_, found = dump
    twice = [cookie for cookie, times in found.items() if times == 2]
    assert len(twice) == 1
    assert twice[0] in set(map(get_so_cookie, on_one_port))
