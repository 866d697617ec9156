"""The live view of ``connectx top``.

- ``watcher``: a thread that counts again and again, and tells what came of it.
- ``model``: what is known, and what of it is to be shown; no terminal, no clock.
- ``texts``, ``columns``, ``closer``: the same as text, in pieces with a style each.
- ``table``, ``screens``, ``app``: widgets that draw it; they alone import Textual.
"""
