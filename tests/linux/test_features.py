import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from connectx.linux import features, netlink, socket_dump, uapi
from connectx.linux.features import FEATURES, Feature, Probe, kernel_version, probe
from connectx.sandbox.networks import Network
from tests import limits

MPTCP_FEATURES: Final = (features.MPTCP, features.IP_LOCAL_PORT_RANGE_MPTCP)


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    features._known.cache_clear()
    yield
    features._known.cache_clear()


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_a_kernel_that_is_new_enough_has_it(network: Network, feature: Feature) -> None:  # noqa: ARG001
    """Older kernels may have it too, as a backport; but the answer must be conclusive."""
    found = probe(feature)
    assert found is not Probe.UNKNOWN
    if feature is features.UDP_LITE and kernel_version() >= (7, 1):
        return
    if kernel_version() >= feature.since and found is not Probe.YES:
        # As Debian's 5.10 is; the sysctls exist only with CONFIG_MPTCP.
        if feature in MPTCP_FEATURES and not Path("/proc/sys/net/mptcp").exists():
            pytest.skip("kernel: built without MPTCP")
        pytest.fail(f"{feature.name} is not found")


def test_all_features_are_listed() -> None:
    defined = [value for value in vars(features).values() if isinstance(value, Feature)]
    assert sorted(FEATURES, key=id) == sorted(defined, key=id)
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)


def counting(outcomes: list[bool | OSError]) -> Feature:
    def trial() -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    return Feature("of this test", (1, 0), "nothing", trial)


@pytest.mark.parametrize("outcome, expected", [(True, Probe.YES), (False, Probe.NO)])
def test_yes_and_no_are_remembered(outcome: bool, expected: Probe) -> None:  # noqa: FBT001
    feature = counting([outcome])
    assert [probe(feature) for _ in range(3)] == [expected] * 3


def test_what_cannot_be_told_is_tried_again() -> None:
    feature = counting([OSError(errno.EMFILE, "full"), OSError(errno.EPERM, "no"), True])
    assert [probe(feature) for _ in range(4)] == [
        Probe.UNKNOWN,
        Probe.UNKNOWN,
        Probe.YES,
        Probe.YES,
    ]


class Refusing(socket.socket):
    """A socket of a kernel that lacks every option."""

    def setsockopt(self, *_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

    def getsockopt(self, *_: int) -> bytes:  # type: ignore[override]
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))


OPTIONS = [
    features.IP_BIND_ADDRESS_NO_PORT,
    features.IP_LOCAL_PORT_RANGE,
    features.IP_LOCAL_PORT_RANGE_MPTCP,
    features.SO_COOKIE,
    features.SO_NETNS_COOKIE,
    features.TCP_FASTOPEN_CONNECT,
]


@pytest.mark.parametrize("feature", OPTIONS, ids=lambda feature: feature.name)
def test_an_option_the_kernel_does_not_know(
    network: Network,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    feature: Feature,
) -> None:
    monkeypatch.setattr(socket, "socket", Refusing)
    assert probe(feature) is Probe.NO


@pytest.mark.parametrize(
    "feature",
    [feature for feature in FEATURES if feature is not features.STEP_OF_ONE],
    ids=lambda feature: feature.name,
)
def test_without_descriptors_nothing_can_be_told(
    network: Network,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    feature: Feature,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(netlink, "NetlinkSocket", refuse)
    assert probe(feature) is Probe.UNKNOWN


@pytest.mark.parametrize(
    "name, feature",
    [
        ("net.ipv4.tcp_fastopen", features.TCP_FASTOPEN_CONNECT),
        ("net.mptcp.enabled", features.MPTCP),
        ("net.mptcp.enabled", features.IP_LOCAL_PORT_RANGE_MPTCP),
    ],
)
def test_what_a_namespace_switches_off_says_nothing_of_the_kernel(
    network: Network, name: str, feature: Feature
) -> None:
    # Either answer: MPTCP came to Linux before its windows did.
    known = probe(feature)
    assert known is not Probe.UNKNOWN
    features._known.cache_clear()
    try:
        network.sysctl(name, 0)
    except FileNotFoundError:
        pytest.skip(f"kernel: no {name}")
    assert probe(feature) is Probe.UNKNOWN
    network.sysctl(name, 1)
    assert probe(feature) is known


def test_without_udp_diag(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """A protocol without a diag module takes the place of UDP."""
    monkeypatch.setattr(
        socket_dump, "encode_dump", lambda *_: bytes([uapi.AF_INET, 33]) + bytes(54)
    )
    assert probe(features.SOCK_DIAG_UDP) is Probe.NO


def test_probes_leave_no_port_taken(network: Network) -> None:
    """Not even briefly: all of them work where no port of the range is free."""
    network.port_range(20000, 20000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket() as stream:
        sock.bind(("", 20000))
        stream.bind(("", 20000))
        assert {probe(feature) for feature in FEATURES} <= {Probe.YES, Probe.NO}


@pytest.mark.parametrize(
    "release, version",
    [("6.18.44-fc", (6, 18)), ("6.1.0-18-amd64", (6, 1)), ("7.0-rc1", (7, 0)), ("unknown", (0, 0))],
)
def test_kernel_version(
    monkeypatch: pytest.MonkeyPatch, release: str, version: tuple[int, int]
) -> None:
    uname = os.uname()
    changed = os.uname_result((*uname[:2], release, *uname[3:]))
    monkeypatch.setattr(os, "uname", lambda: changed)
    assert kernel_version() == version
    expected = Probe.YES if version >= (6, 8) else Probe.NO
    assert probe(features.STEP_OF_ONE) is expected


def test_importing_it_tries_nothing() -> None:
    program = (
        "import sys\n"
        "def audit(event, args):\n"
        "    if event.startswith('socket.'): raise SystemExit(event)\n"
        "import socket\n"
        "sys.addaudithook(audit)\n"
        "import connectx.linux.features\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=limits.COMMAND_LIMIT)
