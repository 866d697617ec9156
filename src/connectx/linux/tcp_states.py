"""Names of socket states, as ss(8) prints them."""

from __future__ import annotations

from typing import Final

#: include/net/tcp_states.h. For UDP, ESTAB is a connected socket and UNCONN any other.
STATE_NAMES: Final = {
    1: "ESTAB",
    2: "SYN-SENT",
    3: "SYN-RECV",
    4: "FIN-WAIT-1",
    5: "FIN-WAIT-2",
    6: "TIME-WAIT",
    7: "UNCONN",
    8: "CLOSE-WAIT",
    9: "LAST-ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "SYN-RECV",
    13: "BOUND-INACTIVE",
}
