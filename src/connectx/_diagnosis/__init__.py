"""Why connections fail, and what helps.

`ConnectxError.explain()` and `connectx doctor` (`connectx.observe.examine`) share this room:

- `causes`: every cause with its remedies, and the folklore. A new one begins here.
- `facts`: what can be known, as plain values.
- `snapshot`, `census`, `machine`, `call`: look at the kernel, and fill in the facts. In turn:
  the ports in use per source and destination, the ports toward one destination, everything
  else about a network namespace, and a call that failed in it.
- `ownership`, `sharing`: whose a socket is, and which UDP sockets share what should be one's.
- `doctor_rules`, `firewall`, `port`, `datagrams`, `searching`: from facts to findings (`finding`).
  `commands`: what fills the gaps in the commands that these print.
- `verdict`: from facts and findings to the one sentence about a failed call.
- `explanation`: `explain()`, and the only module that knows how connectx connects.

The facts are about sockets, whoever opened them, so everything but `explanation` stands on
`connectx.linux` alone.
"""
