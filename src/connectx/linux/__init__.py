"""The kernel's interface: constants, layouts, options, netlink, /proc. Nothing else knows them."""
