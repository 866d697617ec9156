import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from connectx.linux import netns
from connectx.sandbox.networks import Network
from connectx.sandbox.servers import Servers
from tests import limits


def test_private_network_is_another_one_and_returns_to_the_former(network: Network) -> None:
    outer = netns.current()
    assert outer == network.namespace.identity
    with netns.private_network() as inner:
        assert netns.current() == inner.identity != outer
    assert netns.current() == outer


def test_private_network_returns_after_an_error(network: Network) -> None:
    with pytest.raises(KeyError), netns.private_network():
        raise KeyError
    assert netns.current() == network.namespace.identity


def test_namespaces_have_ports_of_their_own(network: Network) -> None:
    network.sysctl("net.ipv4.ip_unprivileged_port_start", 0)
    with socket.create_server(("127.0.0.1", 80)):
        with netns.private_network(), socket.create_server(("127.0.0.1", 80)):
            pass
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            socket.create_server(("127.0.0.1", 80))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_is_up(network: Network, servers: Servers, host: str) -> None:  # noqa: ARG001
    listener = servers.listen(host)
    with socket.create_connection(listener.getsockname()[:2]) as client:
        assert client.getpeername() == listener.getsockname()


def test_a_descriptor_names_a_namespace_and_leads_back_to_it(network: Network) -> None:
    descriptor = netns.open_namespace()
    try:
        assert netns.identify(descriptor) == network.namespace.identity
        assert not os.get_inheritable(descriptor)
        with netns.private_network():
            netns.enter(descriptor)
            assert netns.current() == network.namespace.identity
    finally:
        os.close(descriptor)


def test_enter_refuses_what_is_no_namespace() -> None:
    with Path(os.devnull).open() as file, pytest.raises(OSError, match="network namespace") as info:
        netns.enter(file.fileno())
    assert info.value.errno == errno.EINVAL


def test_a_thread_starts_in_its_creators_namespace_and_moves_alone(network: Network) -> None:
    seen: list[netns.Identity] = []

    def move() -> None:
        seen.append(netns.current())
        netns.unshare_network()
        seen.append(netns.current())

    thread = threading.Thread(target=move)
    thread.start()
    limits.join(thread)
    assert seen[0] == network.namespace.identity == netns.current()
    assert seen[1] != seen[0]


def test_sysctls_are_read_and_written(network: Network) -> None:
    private = network.namespace
    network.port_range(20001, 20008)
    assert private.get_sysctl("net.ipv4.ip_local_port_range").split() == ["20001", "20008"]
    network.reserved_ports("20002,20004-20005")
    assert private.get_sysctl("net.ipv4.ip_local_reserved_ports") == "20002,20004-20005"
    network.reserved_ports("")
    assert not private.get_sysctl("net.ipv4.ip_local_reserved_ports")


def test_a_sysctl_the_kernel_refuses_says_which(network: Network) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as info:
        network.port_range(20008, 20001)
    assert "ip_local_port_range" in info.value.__notes__[0]
    with pytest.raises(FileNotFoundError):
        network.sysctl("net.ipv4.no_such_setting", 1)


@pytest.mark.parametrize("name", ["kernel.hostname", "net/../kernel/hostname", "network"])
def test_sysctls_of_the_whole_machine_are_refused(network: Network, name: str) -> None:
    with pytest.raises(ValueError, match="not a sysctl of a network namespace"):
        network.sysctl(name, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda private: private.set_sysctl("net.ipv4.tcp_fin_timeout", 7),
        lambda private: private.get_sysctl("net.ipv4.tcp_fin_timeout"),
        lambda private: private.add_address("192.0.2.7"),
        lambda private: private.add_device_pair("left", "right"),
    ],
)
def test_nothing_is_changed_from_another_namespace(
    network: Network, change: Callable[[netns.PrivateNetwork], object]
) -> None:
    with netns.private_network() as inner:
        before = inner.get_sysctl("net.ipv4.tcp_fin_timeout")
        with pytest.raises(RuntimeError, match="nothing was changed"):
            change(network.namespace)
        assert inner.get_sysctl("net.ipv4.tcp_fin_timeout") == before
        assert [name for _, name in socket.if_nameindex()] == ["lo"]


# A process that may not make a network namespace, but may map itself to root in a user namespace.
# For that, the kernel asks uid 0 for CAP_SETFCAP (5.12), and an ordinary user for nothing.
_WITHOUT_PRIVILEGE = """
import ctypes, socket, struct, sys, threading
from pathlib import Path
from connectx.linux import netns
header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
kept = 1 << 31  # CAP_SETFCAP
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)) == 0
"""


def _without_privilege(program: str) -> None:
    # In a process of its own: only one with a single thread can enter a user namespace, and
    # there is no way back.
    subprocess.run(
        [sys.executable, "-c", _WITHOUT_PRIVILEGE + program],
        check=True,
        timeout=limits.COMMAND_LIMIT,
    )


@pytest.mark.usefixtures("network")
def test_without_privilege_the_network_comes_with_a_user_namespace() -> None:
    _without_privilege("""
with netns.private_network() as network:
    assert network.rootless
    network.set_sysctl("net.ipv4.ip_local_port_range", "20001 20008")
    network.add_address("192.0.2.7")
    with socket.create_server(("192.0.2.7", 9000)):
        pass
    with netns.private_network() as inner:
        assert not inner.rootless
        assert netns.current() == inner.identity
    assert netns.current() == network.identity
assert netns.current() == network.identity, "there is no way back"
""")


@pytest.mark.usefixtures("network")
def test_without_privilege_a_process_with_threads_is_told_so() -> None:
    _without_privilege("""
done = threading.Event()
threading.Thread(target=done.wait).start()
before = netns.current()
try:
    netns.unshare_network()
except OSError as error:
    assert error.errno == 22, error
    assert "before the process starts threads" in str(error), error
else:
    sys.exit("not refused")
finally:
    done.set()
assert netns.current() == before
""")


@pytest.mark.usefixtures("network")
def test_a_limit_on_namespaces_is_named() -> None:
    _without_privilege("""
assert netns.unshare_network().rootless
# The limit of the new user namespace, not the machine's.
Path("/proc/sys/user/max_net_namespaces").write_text("0")
try:
    netns.unshare_network()
except OSError as error:
    assert error.errno == 28, error
    assert "set user.max_net_namespaces above 0" in str(error), error
else:
    sys.exit("not refused")
""")
