"""Libraries' functions with other functions in the place of those that they call.

Some libraries leave no way to give them a socket, or only one that switches off what they do
otherwise, such as proxies. What they have is a function that calls socket.create_connection() or
the loop's. A copy of that function can call ours: the library's own module stays as it is, and
whatever else the function does is the library's, whichever release it is.
"""

from __future__ import annotations

import types
from typing import Any


class Instead:
    """Stands for an object, such as a module, and has some attributes of its own."""

    def __init__(self, of: Any, **own: Any) -> None:
        self.__dict__.update(own)
        self._of = of

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def rebound(function: Any, **names: Any) -> Any:
    """Return a copy of a function, to which some names of its module mean something else.

    It takes some 3 µs.
    """
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
