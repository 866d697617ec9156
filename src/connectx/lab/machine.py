"""The machine that an experiment ran on, in plain terms."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final, NamedTuple

import connectx
from connectx.linux import features

#: What bears on source ports and is the same for every experiment on a machine.
_SYSCTLS: Final = (
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_local_port_step_width",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_max_tw_buckets",
    "net.core.somaxconn",
)


class Machine(NamedTuple):
    """A machine and its kernel, without its name.

    Attributes:
        kernel: The release of the running kernel.
        cores: How many CPUs this process may use.
        python: The version of Python.
        connectx: The version of connectx.
        features: What the kernel can do: "yes", "no" or "could not tell" by the name of the
            feature.
        sysctls: Settings of the calling thread's network namespace, without those that it
            cannot see.
    """

    kernel: str
    cores: int
    python: str
    connectx: str
    features: dict[str, str]
    sysctls: dict[str, str]

    @property
    def processors(self) -> str:
        """The cores in words: "1 core" or "2 cores"."""
        return f"{self.cores:,} core{'' if self.cores == 1 else 's'}"


def describe() -> Machine:
    """Return the machine as the calling thread sees it."""
    return Machine(
        kernel=platform.release(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        connectx=connectx.__version__,
        features={feature.name: features.probe(feature).value for feature in features.FEATURES},
        sysctls={name: text for name in _SYSCTLS if (text := _read(name)) is not None},
    )


def _read(sysctl: str) -> str | None:
    try:
        return " ".join(Path("/proc/sys", *sysctl.split(".")).read_text().split())
    except FileNotFoundError:
        # Older kernels (6.1) hide net.core from a namespace that an ordinary user owns.
        return None
