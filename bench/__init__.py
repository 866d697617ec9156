"""``make bench``: connectx beside the ways that it has to measure up to, in one run.

- ``targets``: every figure that has a target, and the target.
- ``ways``: the ways to open a connection; ``native`` and ``c/`` have the fills in C.
- ``filling``, ``competition``: whole fills of the range, each way alone.
- ``turns``: single calls, the ways by turns.
- the other modules: one measurement each.

Times are of calls that were not interrupted: on a busy machine another process takes the CPU for
milliseconds, in the middle of a call that takes microseconds (harness.marked()). Ratios compare
what was measured in the same run, in turns, and are medians of several rounds.
"""
