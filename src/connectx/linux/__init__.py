"""Linux's interface for programs, and nothing else; no other package knows it.

- Constants and structures: ``uapi``, ``structs``, ``tcp_states``.
- Sockets: ``sockopts`` (a typed function for each option), ``disconnect``.
- Netlink: ``netlink`` carries messages; ``sock_diag``, ``socket_dump``, ``sock_destroy`` and
  ``destroy_events`` are about sockets, ``route`` and ``rtnetlink`` about routes and addresses.
- /proc: ``sysctl``, ``counters``, ``tables``.
- ``netns``: network namespaces; ``features``: what this kernel can do.

Importing these modules works on every platform, and uses nothing that only Linux has.
"""
