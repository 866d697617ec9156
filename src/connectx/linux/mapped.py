"""IPv4-mapped addresses as octets (RFC 4291, 2.5.5.2): their sockets occupy IPv4's 4-tuples."""

from __future__ import annotations

from typing import Final

#: What the 16 octets of an IPv4-mapped address begin with.
V4_MAPPED: Final = bytes(10) + b"\xff\xff"


def unmapped(address: bytes) -> bytes:
    """The IPv4 address in an IPv4-mapped one; any other as it is."""
    return address.removeprefix(V4_MAPPED)
