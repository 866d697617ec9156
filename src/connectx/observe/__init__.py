"""See exhaustion coming: what is in use, and what is wrong.

`snapshot` counts source ports in use per destination.
"""

from connectx.observe.usage import Row, Snapshot, snapshot

__all__ = ["Row", "Snapshot", "snapshot"]
