"""Open connections between two marks, for calls.py to count the system calls in between.

usage: python -m bench.traced tcp|udp SOURCE WAY
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.competition import COMPETITIONS
from bench.filling import timed
from bench.harness import DESTINATION, SOURCES
from bench.ways import Fill, bare_udp_anywhere, with_connectx, with_own_socket
from connectx.addresses import PortRange
from connectx.sandbox.servers import listen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.filling import Start

#: What a way does only once, it does while these are opened.
WARM_UP: Final = 32
CONNECTIONS: Final = 64
MARK: Final = b"bench: mark"

PORTS: Final = PortRange(20000, 20999)

OWN_SOCKET: Final = "own socket"
#: What the names of those ways end with that meet each destination once.
NEW: Final = ", new destinations"


def ways(protocol: str) -> Mapping[str, Start]:
    """Return all ways whose system calls are listed."""
    listed: dict[str, Start] = {
        **COMPETITIONS[protocol].ways(),
        OWN_SOCKET: functools.partial(timed, with_own_socket),
        f"connectx{NEW}": functools.partial(timed, with_connectx),
    }
    if protocol == "udp":
        listed[f"bare loop{NEW}"] = functools.partial(timed, bare_udp_anywhere)
    return listed


def main() -> None:
    """Do what the arguments say."""
    protocol, source, way = sys.argv[1:]
    competition = COMPETITIONS[protocol]
    destinations = [
        (f"127.1.0.{number}", DESTINATION[1])
        if way.endswith(NEW)
        else competition.destinations[number % len(competition.destinations)]
        for number in range(WARM_UP + CONNECTIONS)
    ]
    fill = Fill(competition.kind, SOURCES[source], destinations, PORTS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listen("0.0.0.0", DESTINATION[1]))
        mark = stack.enter_context(Path(os.devnull).open("wb", buffering=0))
        open_block = ways(protocol)[way](fill)
        gc.disable()
        warm_up = open_block(WARM_UP)
        mark.write(MARK)
        block = open_block(CONNECTIONS)
        mark.write(MARK)
        for error in (warm_up.error, block.error):
            if error is not None:
                raise error


if __name__ == "__main__":
    main()
