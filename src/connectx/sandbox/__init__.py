"""Private networks, servers in them, and processes that hold sockets.

The demo, the lab, the bench and the tests run in it. Each module stands on the one before:

- ``networks``: a private network namespace, to experiment in.
- ``children``: a forked process with a pipe to it. Everything that forks here uses it.
- ``workers``: children that carry out tasks, and keep what a task leaves for the next.
- ``holders``: workers that together hold more sockets than one process may have.
- ``servers``: listeners, receivers, and an echo server in a child.
- ``echo``: tasks for workers: accept and echo, and check that every connection echoes.
"""
