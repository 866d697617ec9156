"""Who can use one source 2-tuple together: A has it toward one destination, B wants it too.

This is "Mixing matrix" of the notes, cell by cell, for every protocol. The port
range has a single port, so that every technique means the same 2-tuple.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Final

import pytest

from connectx.linux import uapi
from connectx.sandbox.networks import Network, experiment_network
from connectx.sandbox.servers import Servers
from tests.kernel.mixing import (
    BIND,
    COLUMNS,
    CONNECT,
    CONNECT_REUSEADDR,
    DATAGRAM_MATRIX,
    REUSEADDR_BIND,
    REUSEPORT_BIND,
    ROWS,
    STREAM_MATRIX,
    P,
)
from tests.kernel.raw import (
    DATAGRAMS,
    FIRST,
    INUSE,
    NOTAVAIL,
    OK,
    SECOND,
    STREAMS,
    TCP,
    TCP6,
    THIRD,
    Sockets,
    Technique,
    Transport,
    abort,
    available,
    recomputes_buckets,
)

CELLS: Final = [
    pytest.param(transport, row, column, expected, id=f"{transport}: {row}, then {column}")
    for transports, matrix in ((STREAMS, STREAM_MATRIX), (DATAGRAMS, DATAGRAM_MATRIX))
    for transport in transports
    for row, cells in matrix.items()
    for column, expected in zip(COLUMNS, cells, strict=True)
]


@contextlib.contextmanager
def fresh_sockets(transport: Transport) -> Iterator[Sockets]:
    with experiment_network() as network, Servers() as servers, contextlib.ExitStack() as stack:
        sockets = Sockets(transport, stack)
        sockets.serve(servers)
        network.port_range(P, P)
        yield sockets


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("transport, row, column, expected", CELLS)
def test_cell(transport: Transport, row: str, column: str, expected: str) -> None:
    transport.socket().close()  # Skips the test where the kernel lacks the protocol.
    outcomes = {}
    for held in available(transport, ROWS[row]):
        for wanted in available(transport, COLUMNS[column]):
            with fresh_sockets(transport) as sockets:
                sockets.open(held, FIRST)
                outcomes[f"{held}, then {wanted}"] = sockets.outcome(wanted, SECOND)
    if not outcomes:
        pytest.skip(f"kernel: no way to a cell of {row}, then {column}")
    assert outcomes == dict.fromkeys(outcomes, expected)


@pytest.fixture
def one_port(network: Network) -> None:
    network.port_range(P, P)


@pytest.mark.usefixtures("one_port")
@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", CONNECT + CONNECT_REUSEADDR + REUSEADDR_BIND, ids=str)
def test_the_4_tuple_itself_is_never_shared(sockets: Sockets, technique: Technique) -> None:
    sockets.open(technique, FIRST)
    assert sockets.outcome(technique, FIRST) == NOTAVAIL
    assert sockets.outcome(technique, SECOND) == OK


@pytest.mark.usefixtures("one_port")
@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("state", ["bound", "connected"])
@pytest.mark.parametrize("holder", CONNECT_REUSEADDR, ids=str)
def test_an_explicit_binder_takes_the_port_from_the_connect_class(
    sockets: Sockets, holder: Technique, state: str
) -> None:
    (explicit,) = REUSEADDR_BIND
    sockets.open(holder, SECOND)
    make = {"bound": sockets.bound, "connected": sockets.open}[state]
    binder = make(explicit)
    for technique in available(sockets.transport, CONNECT + CONNECT_REUSEADDR):
        assert sockets.outcome(technique, THIRD) == NOTAVAIL
    abort(binder)
    assert sockets.outcome(CONNECT[0], THIRD) == (OK if recomputes_buckets() else NOTAVAIL)


@pytest.mark.usefixtures("one_port")
@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("binder", REUSEADDR_BIND + BIND + REUSEPORT_BIND, ids=str)
def test_a_port_is_the_connect_classs_again_once_all_have_left(
    sockets: Sockets, binder: Technique
) -> None:
    sock = sockets.open(binder, FIRST)
    assert sockets.outcome(CONNECT[0], SECOND) == NOTAVAIL
    abort(sock)
    assert sockets.outcome(CONNECT[0], SECOND) == OK


@pytest.mark.usefixtures("one_port")
@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("holder", CONNECT, ids=str)
def test_reuseaddr_set_after_connect_admits_explicit_binders_for_tcp(
    sockets: Sockets, holder: Technique
) -> None:
    (explicit,) = REUSEADDR_BIND
    sock = sockets.open(holder, FIRST)
    assert sockets.outcome(explicit, SECOND) == INUSE
    if sockets.transport.protocol == uapi.IPPROTO_MPTCP:
        # mptcp_setsockopt_sol_socket() passes it on to the first subflow only
        # while there is no connection.
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
        return
    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_REUSEADDR, 1)
    assert sockets.outcome(explicit, SECOND) == OK


@pytest.mark.usefixtures("one_port")
@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", CONNECT + CONNECT_REUSEADDR, ids=str)
@pytest.mark.parametrize("host", ["source", "other", "wildcard", "other family"])
def test_a_listener_on_any_address_blocks_the_connect_class(
    sockets: Sockets, network: Network, servers: Servers, technique: Technique, host: str
) -> None:
    transport = sockets.transport
    other = "2001:db8::7" if transport.family == TCP6.family else "127.0.0.7"
    if other == "2001:db8::7":
        network.add_address(other)
    address = {
        "source": transport.source,
        "other": other,
        "wildcard": transport.wildcard,
        "other family": (TCP if transport.family == TCP6.family else TCP6).source,
    }[host]
    servers.listen(address, P, protocol=transport.protocol)
    assert sockets.outcome(technique) == NOTAVAIL


@pytest.mark.usefixtures("one_port")
@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("technique", REUSEADDR_BIND + REUSEPORT_BIND + BIND, ids=str)
def test_a_listener_blocks_explicit_binds_on_its_own_address_and_as_wildcard_on_all(
    sockets: Sockets, network: Network, servers: Servers, technique: Technique
) -> None:
    transport = sockets.transport
    other = "127.0.0.7"
    if transport.family == TCP6.family:
        other = "2001:db8::7"
        network.add_address(other)
    for host, expected in (
        (transport.source, INUSE),
        (transport.wildcard, INUSE),
        (other, OK),
    ):
        with servers.listen(host, P, protocol=transport.protocol):
            assert sockets.outcome(technique) == expected, host


@pytest.mark.usefixtures("one_port")
@pytest.mark.parametrize("transport", STREAMS, ids=str)
@pytest.mark.parametrize("host", ["127.0.0.7", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("technique", REUSEADDR_BIND + BIND, ids=str)
def test_one_explicit_bind_on_any_address_of_any_family_blocks_the_connect_class(
    sockets: Sockets, closing: contextlib.ExitStack, host: str, technique: Technique
) -> None:
    # __inet_hash_connect() looks at the port's bucket and at no source address.
    elsewhere = Transport("elsewhere", sockets.transport.protocol, host, host)
    Sockets(elsewhere, closing).bound(technique)
    for wanted in available(sockets.transport, CONNECT + CONNECT_REUSEADDR):
        assert sockets.outcome(wanted) == NOTAVAIL
