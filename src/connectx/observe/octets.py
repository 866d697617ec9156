"""IP addresses as octets: IPv4-mapped ones are IPv4's, whose 4-tuples they occupy."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from connectx.linux.mapped import unmapped
from connectx.linux.uapi import AF_INET, AF_INET6


def packed(*hosts: str) -> tuple[int | None, list[bytes | None]]:
    """The family of addresses in text form and their octets; None for "".

    Raises ValueError for what is no address, and for both families at once.
    """
    octets = [unmapped(ip_address(host).packed) if host else None for host in hosts]
    sizes = {len(each) for each in octets if each is not None}
    if len(sizes) > 1:
        raise ValueError(f"not of one IP version: {' and '.join(hosts)}")
    return ({4: AF_INET, 16: AF_INET6}[sizes.pop()] if sizes else None), octets


def family_of(address: bytes) -> int:
    """AF_INET or AF_INET6, by the number of octets."""
    return AF_INET if len(address) == 4 else AF_INET6


def text_of(address: bytes) -> str:
    """An address as the kernel prints it."""
    return socket.inet_ntop(family_of(address), address)
