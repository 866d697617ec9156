"""What the kernel does for each way to open connections, and in which of its functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from connectx.lab.opening import window_of
from connectx.linux import features
from connectx.linux.features import Probe

if TYPE_CHECKING:
    from connectx.lab.latency import Settings
    from connectx.lab.machine import Machine

_UNAIDED: Final = (
    "connect() calls __inet_hash_connect(), which walks the range in steps of two from a random "
    "offset. It tries all ports of the low end's parity first, here the {first} ones: it looks at "
    "the port's bind bucket and, if that is shared, calls __inet_check_established(). Once these "
    "ports are in use, every connection walks over all of them before it tries an {second} one."
)

_FULL_RANGE: Final = {
    1: (
        "IP_LOCAL_PORT_RANGE is set to the whole range. Since Linux 6.8, __inet_hash_connect() "
        "then walks port by port, from a random offset that moves past each port it gives out, "
        "so that it seldom meets one in use."
    ),
    2: (
        "IP_LOCAL_PORT_RANGE is set to the whole range. Before Linux 6.8, __inet_hash_connect() "
        "walks in steps of two all the same, and both parities cost what they cost without it."
    ),
}

_WINDOWS: Final = (
    "IP_LOCAL_PORT_RANGE is set to {tries} of random position, in which __inet_hash_connect() "
    "walks in steps of {step}. In a full window it looks at each port and gives EADDRNOTAVAIL, "
    "although other ports are free."
)

_EXPLICIT_BIND: Final = (
    "connectx binds a port that its ledger holds to be free, with SO_REUSEADDR; connect() finds "
    "out whether the 4-tuple is free. bind() goes through all sockets on that address and port "
    "(inet_csk_get_port()). After that, connect() gives the port to no socket that leaves the "
    "choice to it."
)

_ONE_PORT: Final = (
    "connectx offers the kernel a port that its ledger holds to be free, as a window of one port "
    "(IP_LOCAL_PORT_RANGE). The kernel looks at one bind bucket and checks one 4-tuple, however "
    "full the range is."
)

#: What "auto" adds to _ONE_PORT, by the kernel's step.
_THEN: Final = {
    1: " After two refusals, the kernel walks the whole range, port by port.",
    2: " If ports are refused, connectx reads the list of sockets and tries what is free.",
}

_WITHOUT_WINDOWS: Final = (
    "Without IP_LOCAL_PORT_RANGE, connect() chooses the port, one parity first. connectx binds "
    "the ports that its walk leaves out."
)

_LOCK: Final = (
    "connectx claims a port that its ledger holds to be free, under a lock: bind() with "
    "SO_REUSEADDR, the option off again, an exact SOCK_DIAG lookup of the 4-tuple, connect(). The "
    "kernel searches for nothing, and checks no 4-tuple by itself."
)

_DATAGRAM_WINDOWS: Final = (
    "IP_LOCAL_PORT_RANGE is set to one window of random position. bind() takes a port in it that "
    "no other socket of that address has, whatever its destination. A full window gives EAGAIN, "
    "although other ports are free."
)

_DATAGRAMS: Final = (
    "connect() binds the socket first: udp_lib_get_port() begins at a random port and walks in "
    "steps of a random size. It passes over every port that another socket of that address has, "
    "whatever its destination."
)


def explain(settings: Settings, machine: Machine) -> str:
    """Return a few sentences to stand beside a fill's figures."""
    streams = settings.transport.stream
    text = _of_streams(settings, machine) if streams else _of_datagrams(settings)
    return f"{text} (Linux {machine.kernel})"


def _of_streams(settings: Settings, machine: Machine) -> str:
    name = settings.way.partition(":")[0]
    step = 1 if _has(machine, features.STEP_OF_ONE) else 2
    if name == "kernel":
        parities = ("even", "odd") if settings.ports.low % 2 == 0 else ("odd", "even")
        text = _UNAIDED.format(first=parities[0], second=parities[1])
    elif name == "full-range":
        text = _FULL_RANGE[step]
    elif name == "explicit-bind":
        text = _EXPLICIT_BIND
    elif name == "one-port":
        text = _ONE_PORT
    elif name == "auto":
        mptcp = settings.protocol == "mptcp"
        windows = _has(
            machine,
            features.IP_LOCAL_PORT_RANGE_MPTCP if mptcp else features.IP_LOCAL_PORT_RANGE,
        )
        text = _ONE_PORT + _THEN[step] if windows else _WITHOUT_WINDOWS
    else:
        tries = "one window" if window_of(settings.way) else "up to 16 windows"
        text = _WINDOWS.format(tries=tries, step=("one", "two")[step - 1])
    return text


def _of_datagrams(settings: Settings) -> str:
    if window_of(settings.way):
        return _DATAGRAM_WINDOWS
    return _LOCK if settings.way == "auto" else _DATAGRAMS


def _has(machine: Machine, feature: features.Feature) -> bool:
    return machine.features[feature.name] == Probe.YES.value
