import errno
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectx.addresses import PortRange
from connectx.linux import netns, sysctl
from connectx.sandbox.networks import Network
from tests import limits


def test_port_range(network: Network) -> None:
    assert sysctl.read_port_range() == PortRange(32768, 60999)
    network.port_range(20000, 20001)
    assert sysctl.read_port_range() == PortRange(20000, 20001)


def test_reserved_ports(network: Network) -> None:
    assert sysctl.read_reserved_ports() == ()
    network.reserved_ports("10000-20000,8080,9148")
    assert sysctl.read_reserved_ports() == (
        PortRange(8080, 8080),
        PortRange(9148, 9148),
        PortRange(10000, 20000),
    )


def test_a_long_list_of_reserved_ports_is_read_whole(network: Network) -> None:
    """The kernel writes it in one go, up to the size of the buffer; open().read() has 8 KiB."""
    path = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    ports = range(1, 65535, 2)
    with path.open("wb", buffering=0) as file:
        rest = ",".join(map(str, ports)).encode()
        while rest:
            # It also takes at most a page at a time, and adds to what was there.
            rest = rest[file.write(rest) :]
    assert sysctl.read_reserved_ports() == tuple(PortRange(port, port) for port in ports)
    assert len(path.read_bytes()) == 8192, "the reason why sysctl.py reads as it does"
    network.reserved_ports("")
    assert sysctl.read_reserved_ports() == ()


def test_unprivileged_port_start(network: Network) -> None:
    assert sysctl.read_unprivileged_port_start() == 1024
    network.sysctl("net.ipv4.ip_unprivileged_port_start", 80)
    assert sysctl.read_unprivileged_port_start() == 80


def test_port_step_width(network: Network) -> None:
    assert sysctl.read_port_step_width() == 0
    if not Path("/proc/sys/net/ipv4/ip_local_port_step_width").exists():
        pytest.skip("kernel: no ip_local_port_step_width before 7.1")
    network.sysctl("net.ipv4.ip_local_port_step_width", 64)
    assert sysctl.read_port_step_width() == 64


def test_port_step_width_where_the_kernel_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysctl, "_DIRECTORY", f"{tmp_path}/")
    assert sysctl.read_port_step_width() == 0
    tmp_path.joinpath("ip_local_port_step_width").write_text("64\n")
    assert sysctl.read_port_step_width() == 64
    # Without /proc it is not known.
    monkeypatch.setattr(sysctl, "_DIRECTORY", f"{tmp_path}/absent/")
    with pytest.raises(FileNotFoundError, match=r"is /proc mounted\?"):
        sysctl.read_port_step_width()


@pytest.mark.parametrize("name", ["tcp_tw_reuse", "tcp_timestamps"])
def test_numbers(network: Network, name: str) -> None:
    for value in (0, 1):
        network.sysctl(f"net.ipv4.{name}", value)
        assert sysctl.read_int(name) == value


def test_a_thread_reads_its_own_namespace(network: Network) -> None:
    network.port_range(20000, 20001)
    inside = []

    def elsewhere() -> None:
        with netns.private_network() as other:
            other.set_sysctl("net.ipv4.ip_local_port_range", "30000 30001")
            inside.append(sysctl.read_port_range())
            moved.set()
            assert checked.wait(limits.LIMIT)

    moved, checked = threading.Event(), threading.Event()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert moved.wait(limits.LIMIT)
    try:
        assert sysctl.read_port_range() == PortRange(20000, 20001)
    finally:
        checked.set()
        limits.join(thread)
    assert inside == [PortRange(30000, 30001)]


def test_a_sysctl_this_kernel_lacks(network: Network) -> None:  # noqa: ARG001
    with pytest.raises(FileNotFoundError, match=r"no sysctl net\.ipv4\.ip_no_such_thing") as caught:
        sysctl.read_int("ip_no_such_thing")
    assert caught.value.errno == errno.ENOENT


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysctl, "_DIRECTORY", f"{tmp_path}/absent/")
    with pytest.raises(FileNotFoundError, match=r"is /proc mounted\?"):
        sysctl.read_port_range()


# Parsing.

ports = st.integers(0, 65535)
ranges = st.tuples(ports, ports).map(lambda ends: PortRange(min(ends), max(ends)))


@given(ranges)
def test_a_range_is_parsed(expected: PortRange) -> None:
    assert sysctl.parse_port_range(f"{expected.low}\t{expected.high}\n") == expected


@given(st.lists(ranges))
def test_reserved_ports_are_parsed(expected: list[PortRange]) -> None:
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in expected)
    assert sysctl.parse_reserved_ports(text + "\n") == tuple(expected)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1 2 3", "2 1", "1 65536", "-1 5", "+1 5", "1_0 20", "a b", "\u0661 \u0662", "1-2"],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        sysctl.parse_port_range(text)


@pytest.mark.parametrize(
    "text",
    [",", "1,", "1-", "-1", "1-2-3", "2-1", "65536", "1 2", "1;2", "\u0663", "1,,2", " 1 , 2"],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        sysctl.parse_reserved_ports(text)


@given(st.text(st.sampled_from("0123456789-, \t\n\u0663")))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (sysctl.parse_port_range, sysctl.parse_reserved_ports):
        try:
            parse(text)
        except ValueError as error:
            assert "not a" in str(error)  # noqa: PT017 -- not every text is refused
