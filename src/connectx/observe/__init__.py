"""See exhaustion coming, and explain it.

`snapshot` counts source ports in use per destination; `examine` finds what is wrong, and
`diagnose` what an error comes from that was caught.
"""

from connectx.observe.doctor import Diagnosis, diagnose, examine
from connectx.observe.usage import Row, Snapshot, snapshot

__all__ = ["Diagnosis", "Row", "Snapshot", "diagnose", "examine", "snapshot"]
