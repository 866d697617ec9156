"""Who can use one source 2-tuple together: the tables that the kernel and its model are held to."""

from typing import Final

from tests.kernel.raw import AGAIN, INUSE, NOTAVAIL, OK, Technique, connect_class

P: Final = 20001
WINDOW: Final = (P, P)

CONNECT: Final = connect_class(WINDOW)
CONNECT_REUSEADDR: Final = connect_class(WINDOW, reuseaddr=True)
CONNECT_REUSEPORT: Final = connect_class(WINDOW, reuseport=True)
REUSEADDR_BIND: Final = [Technique("REUSEADDR + bind(ip, P)", reuseaddr=True, bind=P)]
REUSEADDR_BIND_ANY: Final = [
    Technique("REUSEADDR + bind(ip, 0)", reuseaddr=True, bind=0),
    Technique("REUSEADDR + window + bind(ip, 0)", reuseaddr=True, window=WINDOW, bind=0),
]
REUSEPORT_BIND: Final = [Technique("REUSEPORT + bind(ip, P)", reuseport=True, bind=P)]
REUSEPORT_BIND_ANY: Final = [Technique("REUSEPORT + bind(ip, 0)", reuseport=True, bind=0)]
BIND: Final = [
    Technique("bind(ip, P)", bind=P),
    Technique("bind(ip, 0)", bind=0),
    Technique("window + bind(ip, 0)", window=WINDOW, bind=0),
]

ROWS: Final = {
    "connect class": CONNECT,
    "connect class, REUSEADDR": CONNECT_REUSEADDR,
    "connect class, REUSEPORT": CONNECT_REUSEPORT,
    "REUSEADDR + bind": REUSEADDR_BIND + REUSEADDR_BIND_ANY,
    "bind": BIND,
    "REUSEPORT + bind": REUSEPORT_BIND + REUSEPORT_BIND_ANY,
}

COLUMNS: Final = {
    "connect class": CONNECT,
    "connect class, REUSEADDR": CONNECT_REUSEADDR,
    "connect class, REUSEPORT": CONNECT_REUSEPORT,
    "REUSEADDR + bind(ip, P)": REUSEADDR_BIND,
    "REUSEADDR + bind(ip, 0)": REUSEADDR_BIND_ANY,
    "REUSEPORT + bind(ip, P)": REUSEPORT_BIND,
    "REUSEPORT + bind(ip, 0)": REUSEPORT_BIND_ANY,
    "bind": BIND,
}

# In the order of COLUMNS.
STREAM_MATRIX: Final = {
    "connect class": (OK, OK, OK, INUSE, INUSE, INUSE, INUSE, INUSE),
    "connect class, REUSEADDR": (OK, OK, OK, OK, INUSE, INUSE, INUSE, INUSE),
    "connect class, REUSEPORT": (OK, OK, OK, INUSE, INUSE, OK, INUSE, INUSE),
    "REUSEADDR + bind": (NOTAVAIL, NOTAVAIL, NOTAVAIL, OK, INUSE, INUSE, INUSE, INUSE),
    "bind": (NOTAVAIL, NOTAVAIL, NOTAVAIL, INUSE, INUSE, INUSE, INUSE, INUSE),
    "REUSEPORT + bind": (NOTAVAIL, NOTAVAIL, NOTAVAIL, INUSE, INUSE, OK, INUSE, INUSE),
}

# UDP: shared only where both have SO_REUSEADDR, or both have SO_REUSEPORT.
DATAGRAM_MATRIX: Final = {
    "connect class": (AGAIN, AGAIN, AGAIN, INUSE, INUSE, INUSE, INUSE, INUSE),
    "connect class, REUSEADDR": (AGAIN, OK, AGAIN, OK, OK, INUSE, INUSE, INUSE),
    "connect class, REUSEPORT": (AGAIN, AGAIN, OK, INUSE, INUSE, OK, OK, INUSE),
    "REUSEADDR + bind": (AGAIN, OK, AGAIN, OK, OK, INUSE, INUSE, INUSE),
    "bind": (AGAIN, AGAIN, AGAIN, INUSE, INUSE, INUSE, INUSE, INUSE),
    "REUSEPORT + bind": (AGAIN, AGAIN, OK, INUSE, INUSE, OK, OK, INUSE),
}
