"""Private networks, servers in them, and processes that hold sockets.

The demo, the lab, the bench and the tests share them.
"""
