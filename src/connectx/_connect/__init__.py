"""One connection: from a call's arguments to a connected socket.

The kernel keeps one thing unique: the 4-tuple of a protocol, which is source address, source
port, destination address and destination port. So a source port may serve any number of
destinations at a time, and a call has to answer one question: which port of the range is
free toward *this* destination? Four parts answer it.

- The **ledger** remembers what is known: one byte a port for a destination that needs it. It
  proposes a port at random, or lets the kernel walk through the range. It is a hint, never a
  promise, because other programs open and close sockets without telling anybody.
- The **kernel** decides. TCP puts a proposal to it as a port window (IP_LOCAL_PORT_RANGE),
  which connect() either can use or cannot. UDP has no such check, so the **UDP lock** makes
  one: bind, lock, look, connect.
- The **attempt** says what comes next when a proposal is refused: another one, the kernel's
  own search, or a look at the list of sockets. It walks the table of a **strategy**, and
  each table ends with a verdict.
- The **namespace** is where all of that holds: its port range, its reserved ports, its
  routes. A socket names its namespace, so no call ever has to be told.

How a call goes, file by file:

    request          the arguments, checked: a source and a destination
    namespace        what is known of the socket's network namespace
    plan             the request as it is carried out there: program, source, ledger
    connection       does what the attempt says, and all else but waiting
      attempt        what to do next; strategies.py has its tables
      ledger         which ports may be free
        rest         those that were in use a moment ago
        walk         how far the kernel's walk is from one of these
      udp_connect    the critical section of a UDP connection
      failures       the error for a verdict
    own_socket       sockets that report their end, and can be replaced
    unpatched        what gevent may have put something in the place of
    callers_socket   sockets that must be left as they were found
    names            from a name to the addresses to try
    steps            what a call yields, for a driver to wait for

Nearly every call ends with its first try. `Connection.begin` makes that one, without an attempt,
and returns a generator for whatever is left. A driver goes through the generator: it waits for
what is yielded, and decides nothing.
"""
