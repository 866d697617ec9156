"""Whose a socket is: units and containers, and processes that may not be looked into."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from connectx.linux import processes
from connectx.linux.processes import Owners, Process, owners, socket_descriptors, unit_in
from tests import limits
from tests.observe.helpers import named

ID = "0123456789abcdef" * 4
SHORT = ID[:12]
POD = "pod6f1c1b0e-5f5a-4e0f-9c1b-0f2d0a3b4c5d"
UNIT_POD = POD.replace("-", "_")

#: /proc/PID/cgroup as systemd and the container runtimes make it.
CGROUPS = {
    "no cgroups": ("", ""),
    "the root": ("0::/\n", ""),
    "a service": ("0::/system.slice/nginx.service\n", "nginx.service"),
    "an instance": (
        "0::/system.slice/system-getty.slice/getty@tty1.service\n",
        "getty@tty1.service",
    ),
    "a service with a cgroup of its own below": (
        "0::/system.slice/haproxy.service/workers\n",
        "haproxy.service",
    ),
    "a user's scope": (
        "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-term-77.scope\n",
        "app-term-77.scope",
    ),
    "a session": ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
    "version 1": (
        "12:pids:/system.slice/ssh.service\n1:name=systemd:/system.slice/ssh.service\n0::/\n",
        "ssh.service",
    ),
    "docker, version 2, systemd": (f"0::/system.slice/docker-{ID}.scope\n", SHORT),
    "docker, version 2, cgroupfs": (f"0::/docker/{ID}\n", SHORT),
    "docker, version 1": (f"11:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n", SHORT),
    "docker, below its container": (f"0::/docker/{ID}/init.scope\n", SHORT),
    "podman": (f"0::/machine.slice/libpod-{ID}.scope\n", SHORT),
    "podman, below its container": (
        f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container\n",
        SHORT,
    ),
    "containerd": (f"0::/system.slice/containerd.service/{ID}\n", SHORT),
    "containerd, its own namespace": (f"10:cpu:/k8s.io/{ID}\n", SHORT),
    "kubernetes, version 1, cgroupfs": (f"4:memory:/kubepods/burstable/{POD}/{ID}\n", SHORT),
    "kubernetes, version 2, systemd": (
        f"0::/kubepods.slice/kubepods-besteffort-{UNIT_POD}.slice/cri-containerd-{ID}.scope\n",
        SHORT,
    ),
    "kubernetes, version 1, containerd": (
        f"2:cpu:/system.slice/containerd.service/kubepods-{UNIT_POD}.slice:cri-containerd:{ID}\n",
        SHORT,
    ),
    "cri-o": (f"0::/kubepods.slice/kubepods-{POD}.slice/crio-{ID}.scope\n", SHORT),
    "cri-o's monitor": (f"0::/kubepods.slice/kubepods-{POD}.slice/crio-conmon-{ID}.scope\n", SHORT),
    "a container in a container": (f"0::/docker/{'f' * 64}/docker/{ID}\n", SHORT),
    "a name that only looks like an id": (f"0::/system.slice/x{ID}.service\n", f"x{ID}.service"),
    "too short": ("0::/docker/0123456789ab\n", ""),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_the_unit_or_container(name: str) -> None:
    cgroups, expected = CGROUPS[name]
    assert unit_in(cgroups) == expected


def test_a_process_as_text() -> None:
    assert str(Process(7, "web", "")) == "web (7)"
    assert str(Process(7, "web", SHORT)) == f"web (7, {SHORT})"


@pytest.mark.parametrize(
    "unit, arguments, described",
    [
        ("", "", "web (7)"),
        ("", "web", "web (7)"),
        ("", "web --port 80", "web (7) [web --port 80]"),
        (SHORT, "web --port 80", f"web (7, {SHORT}) [web --port 80]"),
        ("web.service", "web --port 80", "web (7, web.service)"),
        ("session-3.scope", "python x.py", "web (7, session-3.scope) [python x.py]"),
        ("", "x" * 49, f"web (7) [{'x' * 48}...]"),
    ],
)
def test_a_process_with_its_command_line(unit: str, arguments: str, described: str) -> None:
    assert Process(7, "web", unit, arguments).described == described


@pytest.mark.parametrize(
    "name, shown",
    [
        ("x[/]y", "x[/]y"),
        ("\x1b]0;HI\x07", "\\x1b]0;HI\\x07"),
        ("two\nlines\n", "two\\nlines\\n"),
        ("\u202etxt", "\\u202etxt"),
        ("añejo 猫", "añejo 猫"),
    ],
)
def test_a_name_that_is_no_text_for_a_terminal(name: str, shown: str) -> None:
    with named(name), socket.socket() as sock:
        (process,) = owners().by_inode[os.fstat(sock.fileno()).st_ino]
    assert process.command == shown


OWNER = """
import os, socket, sys
sock = socket.socket()
print(os.fstat(sock.fileno()).st_ino, flush=True)
sys.stdin.read()
"""


def test_a_command_line_has_no_directory_and_nothing_unprintable() -> None:
    command = [sys.executable, "-c", OWNER, "a\x1b[31mb"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        inode = int(limits.line_from(child))
        (process,) = owners().by_inode[inode]
    assert process.pid == child.pid
    assert process.arguments.startswith(f"{Path(sys.executable).name} -c \\nimport os")
    assert process.arguments.endswith(" a\\x1b[31mb")


def test_descriptors_of_sockets() -> None:
    with socket.socket() as sock, sock.dup() as second:
        inode = os.fstat(sock.fileno()).st_ino
        lowest = min(sock.fileno(), second.fileno())
        assert socket_descriptors(os.getpid())[inode] == lowest
    assert socket_descriptors(2**22 + 1) == {}


LOOKER = """
import os
from connectx.linux.processes import owners
os.setgid({user})
os.setuid({user})
found = owners()
print(len(found.by_inode.get({inode}, ())), found.hidden)
"""


def test_another_users_processes_are_hidden_and_counted() -> None:
    # Where an ordinary user has a user namespace of its own, it is root, and has no other user.
    if os.geteuid() != 0 or Path("/proc/self/uid_map").read_text().split()[2] == "1":
        pytest.skip("kernel: an ordinary user cannot become another")
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        inode = int(limits.line_from(owner))
        assert [each.pid for each in owners().by_inode[inode]] == [owner.pid]
        try:
            looker = subprocess.run(
                [sys.executable, "-c", LOOKER.format(user=65534, inode=inode)],
                capture_output=True,
                text=True,
                check=True,
                timeout=limits.COMMAND_LIMIT,
            )
        finally:
            owner.communicate(timeout=limits.LIMIT)
    found, hidden = map(int, looker.stdout.split())
    assert found == 0
    assert hidden > 0


def test_what_has_ended_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_: str) -> set[int]:
        raise ProcessLookupError

    monkeypatch.setattr(processes, "_inodes", ended)
    assert owners() == Owners({}, 0)


def test_a_socket_that_is_open_twice_counts_once() -> None:
    with socket.socket() as sock, sock.dup() as other:
        assert sock.fileno() != other.fileno()
        (process,) = owners().by_inode[os.fstat(sock.fileno()).st_ino]
    assert process.pid == os.getpid()
