"""The plugin, run on small test suites."""

import sys

import pytest

from connectx.sandbox.networks import Network

LEAKS = """
import gc, socket, subprocess
from connectx.linux import netns

kept = []

def test_leaves_a_descriptor():
    kept.append(socket.socket())

def test_leaves_a_process():
    kept.append(subprocess.Popen(["sleep", "60"]))

def test_stays_elsewhere():
    netns.unshare_network()

def test_leaves_a_cycle_to_the_collector():
    gc.collect()
    cycle = [open("/dev/null")]
    cycle.append(cycle)

def test_fails_and_its_traceback_holds_a_socket():
    sock = socket.socket()
    raise KeyError

def test_closes_what_it_opens(closing):
    closing.enter_context(socket.socket())

def teardown_module():
    kept[0].close()
    kept[1].kill()
    kept[1].wait()
"""

NAMESPACES = """
import pytest
from connectx.linux import netns

MACHINE = netns.Identity(*{machine})

@pytest.mark.parametrize("number", range(4))
def test_every_test_has_its_own(network, number):
    assert netns.current() == network.namespace.identity != MACHINE
    assert network.namespace.get_sysctl("net.ipv4.ip_local_port_range").split()[0] == "32768"
    network.port_range(20001, 20008)

def test_without_the_fixture_it_is_not_the_machines():
    assert netns.current() != MACHINE
"""

# With CAP_SETFCAP alone, a process may map itself to root in a user namespace, and nothing else.
WITHOUT_PRIVILEGE = """
import ctypes, struct, sys, pytest
header, kept = struct.pack("=Ii", 0x20080522, 0), {kept}
assert ctypes.CDLL(None).capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)) == 0
sys.exit(pytest.main(sys.argv[1:]))
"""
CAP_SETFCAP = 1 << 31

ARGUMENTS = ["-p", "xdist", "-p", "connectx.testing.fixtures", "-p", "no:cacheprovider", "-rA"]


@pytest.fixture(autouse=True)
def _few_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """To load all that are installed takes longer than a suite here."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def test_what_a_test_leaves_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(LEAKS)
    result = pytester.runpytest_subprocess(*ARGUMENTS)
    result.assert_outcomes(passed=5, failed=1, errors=3)
    result.stdout.fnmatch_lines_random(
        [
            "the test left descriptors open: *socket:*",
            "the test left child processes: *",
            "the test has not returned to the namespace*",
        ]
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_test_has_a_network_of_its_own(
    pytester: pytest.Pytester, network: Network, workers: str
) -> None:
    pytester.makepyfile(NAMESPACES.format(machine=tuple(network.namespace.identity)))
    result = pytester.runpytest_subprocess(*ARGUMENTS, "-n", workers)
    result.assert_outcomes(passed=5)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_without_privilege_too(pytester: pytest.Pytester, network: Network, workers: str) -> None:
    pytester.makepyfile(NAMESPACES.format(machine=tuple(network.namespace.identity)))
    program = WITHOUT_PRIVILEGE.format(kept=CAP_SETFCAP)
    result = pytester.run(sys.executable, "-c", program, *ARGUMENTS, "-n", workers)
    result.assert_outcomes(passed=5)


def test_where_no_namespace_can_be_made_tests_that_need_one_are_skipped(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        def test_needs_one(network):
            pass

        def test_needs_none():
            pass
        """
    )
    # Not even CAP_SETFCAP, so uid 0 cannot map itself to root.
    result = pytester.run(sys.executable, "-c", WITHOUT_PRIVILEGE.format(kept=0), *ARGUMENTS)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *cannot make a private network namespace; *as root*"])
