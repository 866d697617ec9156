"""Open connections between two marks, for calls.py to count the system calls in between.

usage: python -m bench.traced tcp|udp SOURCE WAY
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
from pathlib import Path
from typing import Final

from bench.competition import TCP, UDP
from bench.harness import SOURCES, Settings, listen_at_destination
from connectx.addresses import PortRange

#: What a way does only once, it does while these are opened.
WARM_UP: Final = 32
CONNECTIONS: Final = 64
MARK: Final = b"bench: mark"

PORTS: Final = PortRange(20000, 20999)


def main() -> None:
    """Do what the arguments say."""
    protocol, source, way = sys.argv[1:]
    competition = {"tcp": TCP, "udp": UDP}[protocol]
    fill = competition.fill(Settings(1, PORTS, print), SOURCES[source])
    with contextlib.ExitStack() as stack:
        if fill.kind is socket.SOCK_STREAM:
            stack.enter_context(listen_at_destination())
        mark = stack.enter_context(Path(os.devnull).open("wb", buffering=0))
        open_block = competition.ways()[way](fill)
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
