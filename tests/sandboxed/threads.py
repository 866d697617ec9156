"""Threads in a sandbox of their own: without netlink, or without part of /proc."""

import ctypes
import os
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pytest

from connectx.linux.uapi import AF_NETLINK
from tests import limits

T = TypeVar("T")

#: socket(2)'s number, by machine.
_SOCKET: Final = {"x86_64": 41, "aarch64": 198, "riscv64": 198}

# linux/prctl.h, linux/seccomp.h, linux/bpf_common.h.
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06

# linux/sched.h, linux/mount.h.
_CLONE_NEWNS: Final = 0x00020000
_MS_PRIVATE_ALL: Final = 0x00044000


def without_netlink(number: int, run: Callable[[], T]) -> T:
    """Call a function in a thread whose socket(AF_NETLINK, ...) fails with an errno.

    As under RestrictAddressFamilies of systemd, and the like.
    """
    return _in_thread(lambda: _refuse_netlink(number), run)


def with_hidden(path: str, run: Callable[[], T], *, netlink: int = 0) -> T:
    """Call a function in a thread for which a directory of /proc is empty.

    netlink: the errno of socket(AF_NETLINK, ...), if that is to fail as well.
    """

    def prepare() -> None:
        _hide(path)
        if netlink:
            _refuse_netlink(netlink)

    return _in_thread(prepare, run)


def _in_thread(prepare: Callable[[], None], run: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            prepare()
            results.append(run())
        except BaseException as error:  # noqa: BLE001 -- raised below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    limits.join(thread)
    if errors:
        raise errors.pop()
    return results[0]


def _refuse_netlink(number: int) -> None:
    call = _SOCKET.get(os.uname().machine)
    if call is None:
        pytest.skip(f"kernel: the number of socket(2) on {os.uname().machine} is not known")
    steps = (
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_IF_EQUAL, 0, 3, call),
        (_LOAD, 0, 0, 16),  # seccomp_data.args[0]
        (_JUMP_IF_EQUAL, 0, 1, AF_NETLINK),
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


def _hide(path: str) -> None:
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_PRIVATE_ALL, None)
    _call("mount", b"none", path.encode(), b"tmpfs", 0, None)


def _call(name: str, *arguments: Any) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if getattr(library, name)(*wide):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
