"""Linux's interface for programs, and nothing else; no other package knows it.

- ``uapi`` has the constants, ``structs`` the structures.
- ``sockopts`` has a typed function for each socket option; ``disconnect`` undoes connect().
- ``netlink`` carries messages. ``sock_diag``, ``socket_dump``, ``sock_destroy`` and
  ``destroy_events`` are about sockets, ``route`` and ``rtnetlink`` about routes and addresses.
- ``sysctl`` and its neighbours read /proc.
- ``netns`` is about network namespaces, ``features`` about what this kernel can do.

Importing these modules works on every platform, and uses nothing that only Linux has.
"""
