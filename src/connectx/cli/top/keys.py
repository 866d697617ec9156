"""The keys of the live view, as its help lists them."""

from typing import Final

KEYS: Final = """\
up, down, page up, page down, home, end   move
enter      show the details of a pair; escape to go back
/          filter by words in protocol, source and destination; escape for all
p          filter by protocol
s          sort by share, number in use, rate, or name
?          show these keys
q, Ctrl-C  quit
"""
