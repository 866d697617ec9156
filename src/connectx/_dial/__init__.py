"""The policy of a Dialer: which source a connection gets, how many there may be, which calls wait.

A dialer counts. For each **destination** it knows how many connections are open from each of
its sources; a connection's place in that count is its **slot**. A slot is reserved before a
connection is tried, belongs to the socket once it is connected, and comes back when the
socket ends.

Ends are the hard part, because not all are reported. Sockets that connectx makes report their
close. Sockets that have another owner by then, such as SSL's, are looked for by their 4-tuple.
And other programs' sockets free ports as well: the kernel's notifications tell of them
(**endings**).

A **call** tries its sources in order. If none has a port, or the limit is reached, it joins
the destination's **wait queue**, first come, first served. Only the first **waiter** of a
queue tries; an end wakes it, and it looks by itself now and then, since nothing reports the
end of a TIME_WAIT. A search in vain earns a rest, so that waiting never costs more than a
tenth of a CPU.

    settings      the arguments of a Dialer, checked
    sources       which address comes next
    slots         what is open, what is full, which calls wait: all that is counted
    terms         what the calls of one dialer have in common
    call          one call's tries; decides, and knows neither sockets nor clocks
    waiting       how a call waits its turn: who wakes it, and when it looks by itself
    connecting    calls as they are made: an address, a name, a caller's socket
    endings       how the end of a socket is noticed
    capacity      how many connections there can be, and are
    policy        settings, and what a process has open; both faces of a dialer share it

`Call.begin` makes the first try and returns a generator for the rest, as a connection does, so
that blocking and awaiting dialers differ in how they wait and in nothing else.
"""
