"""Libraries that open connections, through a Dialer.

The module `connectx.integrations.X` is for the library X; dots in its name are underscores. It
has the names of the library's own classes and functions, which take the same arguments, and:

- ``dialer``: a `connectx.Dialer` or `connectx.aio.Dialer`, which may serve other libraries too;
- or ``sources`` and ``ports``, as these take them, for a dialer of its own.

Without any of these the source is routing's choice. Each module is imported by its name, and then
only; connectx depends on none of the libraries.
"""
