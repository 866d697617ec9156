"""Other network namespaces, such as those of containers, by name, path or process."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where ip-netns(8) keeps its names.
_NAMES: Final = "/run/netns"


def path_of(namespace: str) -> str:
    """Return the file that stands for a namespace.

    Args:
        namespace: A process id, a path (which has a slash), or a name of ip-netns(8).
    """
    if "/" in namespace:
        return namespace
    if namespace.isascii() and namespace.isdecimal():
        return f"/proc/{namespace}/ns/net"
    # Text, because importing pathlib takes as long as everything else here.
    return f"{_NAMES}/{namespace}"


@contextlib.contextmanager
def visiting(namespace: str | None) -> Iterator[None]:
    """Move the calling thread to a network namespace, and afterwards back.

    Args:
        namespace: As `path_of` takes it; None to stay.

    Raises:
        ValueError: The text is empty.
        OSError: ENOENT for a namespace or process that does not exist, EINVAL for a file that
            is no namespace, EPERM without CAP_SYS_ADMIN in it.
    """
    if namespace is None:
        yield
        return
    # Imported here, because it takes a fifth of the time that `connectx usage` takes to start.
    from connectx.linux import netns  # noqa: PLC0415

    if not namespace:
        raise ValueError("a network namespace has a name, a path, or the pid of a process in it")
    path = path_of(namespace)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FileNotFoundError(error.errno, "there is no such network namespace", path) from error
    try:
        former = netns.open_namespace()
        try:
            _enter(descriptor, path)
            try:
                yield
            finally:
                netns.enter(former)
        finally:
            os.close(former)
    finally:
        os.close(descriptor)


def _enter(descriptor: int, path: str) -> None:
    """Enter a namespace; an error names its file."""
    from connectx.linux import netns  # noqa: PLC0415 - as above

    try:
        netns.enter(descriptor)
    except OSError as error:
        number = error.errno or errno.EPERM
        why = "it is not one" if number == errno.EINVAL else os.strerror(number)
        raise OSError(number, f"cannot enter the network namespace, {why}", path) from error
