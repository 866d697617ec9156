"""Importing works on macOS and Windows, where Python lacks much of what it has on Linux."""

import pkgutil
import subprocess
import sys

import pytest

import connectx.linux
from tests import limits

#: Deletes what Python has only on Linux, and then imports the modules given as arguments.
PROGRAM = """
import importlib, sys
# First, since these modules use what is deleted below.
import asyncio, contextlib, ctypes, ipaddress, os, pathlib, select, signal, subprocess, tempfile
import _socket, socket

PORTABLE = {
    "AF_INET", "AF_INET6", "AF_UNSPEC", "SOCK_STREAM", "SOCK_DGRAM", "SOL_SOCKET", "SO_REUSEADDR",
    "IPPROTO_IP", "IPPROTO_IPV6", "IPPROTO_TCP", "IPPROTO_UDP", "SHUT_RD", "SHUT_WR", "SHUT_RDWR",
}
for module in (socket, _socket):
    for name in list(vars(module)):
        if name.isupper() and not name.startswith("_") and name not in PORTABLE:
            delattr(module, name)
for name in (
    "register_at_fork fork pipe2 eventfd uname getuid geteuid getgid getegid setns unshare pread "
    "sched_getaffinity pidfd_open O_CLOEXEC O_NONBLOCK EFD_CLOEXEC EFD_NONBLOCK"
).split():
    vars(os).pop(name, None)
for name in ("epoll", "poll", "EPOLLIN", "POLLIN", "POLLERR"):
    vars(select).pop(name, None)
for name in ("SIGHUP", "SIGKILL", "SIGCHLD", "pthread_sigmask", "setitimer"):
    vars(signal).pop(name, None)
sys.modules.update(dict.fromkeys(["fcntl", "resource", "termios", "pty", "pwd", "grp"]))
for module in sys.argv[1:]:
    importlib.import_module(module)
"""

MODULES = [
    "connectx",
    "connectx.addresses",
    "connectx.errors",
    "connectx.cli.main",
    *(module.name for module in pkgutil.iter_modules(connectx.linux.__path__, "connectx.linux.")),
]


def without_linux(*modules: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules],
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )


def test_importing_uses_nothing_that_only_linux_has() -> None:
    done = without_linux(*MODULES)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name, attribute",
    [("socket", "AF_NETLINK"), ("os", "register_at_fork"), ("select", "epoll")],
)
def test_using_it_fails(name: str, attribute: str) -> None:
    program = f"{PROGRAM}\nimport {name}; {name}.{attribute}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=limits.COMMAND_LIMIT,
    )
    assert f"module '{name}' has no attribute '{attribute}'" in done.stderr
