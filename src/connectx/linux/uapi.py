"""Linux's user-space ABI, one constant a line: value, header, first kernel.

Python's socket module lacks most of them, and which ones it has depends on the platform and on
the headers that it was built with. The ABI never changes, so the values are written here.
"""

from typing import Final

# Address families, socket types and levels.
AF_INET: Final = 2  # linux/socket.h, always
AF_INET6: Final = 10  # linux/socket.h, always
AF_NETLINK: Final = 16  # linux/socket.h, always
SOCK_RAW: Final = 3  # linux/net.h, always
SOCK_CLOEXEC: Final = 0o2000000  # linux/net.h, 2.6.27
SOL_SOCKET: Final = 1  # asm-generic/socket.h, always

# Socket options, level SOL_SOCKET (1).
SO_REUSEADDR: Final = 2  # asm-generic/socket.h, always
SO_ERROR: Final = 4  # asm-generic/socket.h, always
SO_BROADCAST: Final = 6  # asm-generic/socket.h, always
SO_LINGER: Final = 13  # asm-generic/socket.h, always
SO_REUSEPORT: Final = 15  # asm-generic/socket.h, 3.9
SO_BINDTODEVICE: Final = 25  # asm-generic/socket.h, 2.0.30
SO_MARK: Final = 36  # asm-generic/socket.h, 2.6.25
SO_PROTOCOL: Final = 38  # asm-generic/socket.h, 2.6.32
SO_INCOMING_CPU: Final = 49  # asm-generic/socket.h, 4.4 (to set it)
SO_MEMINFO: Final = 55  # asm-generic/socket.h, 4.12
SO_COOKIE: Final = 57  # asm-generic/socket.h, 4.12
SO_BINDTOIFINDEX: Final = 62  # asm-generic/socket.h, 5.0
SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h, 5.14

# Socket options, level IPPROTO_IP (0); they work on AF_INET6 sockets as well.
IP_TOS: Final = 1  # linux/in.h, always
IP_FREEBIND: Final = 15  # linux/in.h, 2.4
IP_TRANSPARENT: Final = 19  # linux/in.h, 2.6.24
IP_BIND_ADDRESS_NO_PORT: Final = 24  # linux/in.h, 4.2
IP_MULTICAST_IF: Final = 32  # linux/in.h, always
IP_UNICAST_IF: Final = 50  # linux/in.h, 3.4
IP_LOCAL_PORT_RANGE: Final = 51  # linux/in.h, 6.3 and 6.1.32

# Socket options, level IPPROTO_IPV6 (41).
IPV6_MULTICAST_IF: Final = 17  # linux/in6.h, always
IPV6_V6ONLY: Final = 26  # linux/in6.h, 2.4.21
IPV6_TCLASS: Final = 67  # linux/in6.h, 2.6.14
IPV6_ADDR_PREFERENCES: Final = 72  # linux/in6.h, 2.6.26
IPV6_UNICAST_IF: Final = 76  # linux/in6.h, 3.4

# Socket options, level IPPROTO_TCP (6).
TCP_REPAIR: Final = 19  # linux/tcp.h, 3.5
TCP_FASTOPEN: Final = 23  # linux/tcp.h, 3.7
TCP_TIMESTAMP: Final = 24  # linux/tcp.h, 3.9
TCP_FASTOPEN_CONNECT: Final = 30  # linux/tcp.h, 4.11
TCP_FASTOPEN_NO_COOKIE: Final = 34  # linux/tcp.h, 4.15

# Protocols of AF_INET and AF_INET6 sockets.
IPPROTO_IP: Final = 0  # linux/in.h, always
IPPROTO_TCP: Final = 6  # linux/in.h, always
IPPROTO_UDP: Final = 17  # linux/in.h, always
IPPROTO_IPV6: Final = 41  # linux/in.h, always
IPPROTO_UDPLITE: Final = 136  # linux/in.h, 2.6.20, gone in 7.1
IPPROTO_MPTCP: Final = 262  # linux/in.h, 5.6

# sendto() and recvfrom() flags.
MSG_PEEK: Final = 0x02  # linux/socket.h, always
MSG_TRUNC: Final = 0x20  # linux/socket.h, always
MSG_FASTOPEN: Final = 0x20000000  # linux/socket.h, 3.6

# Netlink framing.
NETLINK_ROUTE: Final = 0  # linux/netlink.h, always
NETLINK_SOCK_DIAG: Final = 4  # linux/netlink.h, 3.3 (inet_diag before)
SKNLGRP_INET_TCP_DESTROY: Final = 1  # linux/sock_diag.h, 4.7
SKNLGRP_INET_UDP_DESTROY: Final = 2  # linux/sock_diag.h, 4.7
SKNLGRP_INET6_TCP_DESTROY: Final = 3  # linux/sock_diag.h, 4.7
SKNLGRP_INET6_UDP_DESTROY: Final = 4  # linux/sock_diag.h, 4.7
SOL_NETLINK: Final = 270  # linux/socket.h, always
NETLINK_CAP_ACK: Final = 10  # linux/netlink.h, 4.3
NLM_F_REQUEST: Final = 0x01  # linux/netlink.h, always
NLM_F_ACK: Final = 0x04  # linux/netlink.h, always
NLM_F_DUMP_INTR: Final = 0x10  # linux/netlink.h, 3.1
NLM_F_EXCL: Final = 0x200  # linux/netlink.h, always
NLM_F_CREATE: Final = 0x400  # linux/netlink.h, always
NLM_F_DUMP: Final = 0x300  # linux/netlink.h, always
NLMSG_ERROR: Final = 2  # linux/netlink.h, always
NLMSG_DONE: Final = 3  # linux/netlink.h, always
NLMSG_OVERRUN: Final = 4  # linux/netlink.h, always

# SOCK_DIAG.
TCPDIAG_GETSOCK: Final = 18  # linux/inet_diag.h, always
SOCK_DIAG_BY_FAMILY: Final = 20  # linux/sock_diag.h, 3.3
SOCK_DESTROY: Final = 21  # linux/sock_diag.h, 4.5
INET_DIAG_NOCOOKIE: Final = 0xFFFFFFFF  # linux/inet_diag.h, always
INET_DIAG_REQ_BYTECODE: Final = 1  # linux/inet_diag.h, always
INET_DIAG_INFO: Final = 2  # linux/inet_diag.h, always
INET_DIAG_SKV6ONLY: Final = 11  # linux/inet_diag.h, 4.3
INET_DIAG_BC_NOP: Final = 0  # linux/inet_diag.h, always
INET_DIAG_BC_JMP: Final = 1  # linux/inet_diag.h, always
INET_DIAG_BC_S_GE: Final = 2  # linux/inet_diag.h, always
INET_DIAG_BC_S_LE: Final = 3  # linux/inet_diag.h, always
INET_DIAG_BC_S_COND: Final = 7  # linux/inet_diag.h, always
INET_DIAG_BC_D_COND: Final = 8  # linux/inet_diag.h, always
INET_DIAG_BC_DEV_COND: Final = 9  # linux/inet_diag.h, 4.9

# TCP states, as SOCK_DIAG reports them for every protocol (include/net/tcp_states.h).
TCP_ESTABLISHED: Final = 1
TCP_SYN_SENT: Final = 2
TCP_SYN_RECV: Final = 3
TCP_FIN_WAIT1: Final = 4
TCP_FIN_WAIT2: Final = 5
TCP_TIME_WAIT: Final = 6
TCP_CLOSE: Final = 7
TCP_CLOSE_WAIT: Final = 8
TCP_LAST_ACK: Final = 9
TCP_LISTEN: Final = 10
TCP_CLOSING: Final = 11
TCP_NEW_SYN_RECV: Final = 12
TCP_BOUND_INACTIVE: Final = 13  # a bound, unconnected TCP socket; reported since 6.8

#: The states as ss(8) prints them. For UDP, ESTAB is a connected socket and UNCONN any other.
STATE_NAMES: Final = {
    TCP_ESTABLISHED: "ESTAB",
    TCP_SYN_SENT: "SYN-SENT",
    TCP_SYN_RECV: "SYN-RECV",
    TCP_FIN_WAIT1: "FIN-WAIT-1",
    TCP_FIN_WAIT2: "FIN-WAIT-2",
    TCP_TIME_WAIT: "TIME-WAIT",
    TCP_CLOSE: "UNCONN",
    TCP_CLOSE_WAIT: "CLOSE-WAIT",
    TCP_LAST_ACK: "LAST-ACK",
    TCP_LISTEN: "LISTEN",
    TCP_CLOSING: "CLOSING",
    TCP_NEW_SYN_RECV: "SYN-RECV",
    TCP_BOUND_INACTIVE: "BOUND-INACTIVE",
}

# RTNETLINK.
RTM_GETLINK: Final = 18  # linux/rtnetlink.h, always
RTM_GETROUTE: Final = 26  # linux/rtnetlink.h, always
RTM_NEWROUTE: Final = 24  # linux/rtnetlink.h, always
RTA_DST: Final = 1  # linux/rtnetlink.h, always
RTA_SRC: Final = 2  # linux/rtnetlink.h, always
RTA_OIF: Final = 4  # linux/rtnetlink.h, always
RTA_PREFSRC: Final = 7  # linux/rtnetlink.h, always
RTA_MARK: Final = 16  # linux/rtnetlink.h, 2.6.39
RTA_UID: Final = 25  # linux/rtnetlink.h, 4.10
RTA_IP_PROTO: Final = 27  # linux/rtnetlink.h, 4.18
RTA_DPORT: Final = 29  # linux/rtnetlink.h, 4.18
RTM_NEWLINK: Final = 16  # linux/rtnetlink.h, always
RTM_NEWADDR: Final = 20  # linux/rtnetlink.h, always
RTN_LOCAL: Final = 2  # linux/rtnetlink.h, always
RTMGRP_LINK: Final = 0x1  # linux/rtnetlink.h, always
RTMGRP_IPV6_ROUTE: Final = 0x400  # linux/rtnetlink.h, always
IFF_UP: Final = 0x1  # linux/if.h, always
IFLA_IFNAME: Final = 3  # linux/if_link.h, always
IFLA_LINKINFO: Final = 18  # linux/if_link.h, 2.6.13
IFLA_EXT_MASK: Final = 29  # linux/if_link.h, 3.4
RTEXT_FILTER_SKIP_STATS: Final = 0x8  # linux/rtnetlink.h, 4.4
LOOPBACK_IFINDEX: Final = 1  # net/flow.h, 2.6.39
IFLA_INFO_KIND: Final = 1  # linux/if_link.h, 2.6.24
IFLA_INFO_DATA: Final = 2  # linux/if_link.h, 2.6.24
VETH_INFO_PEER: Final = 1  # linux/veth.h, 2.6.24
IFA_ADDRESS: Final = 1  # linux/if_addr.h, always
IFA_LOCAL: Final = 2  # linux/if_addr.h, always
IFA_F_NODAD: Final = 0x02  # linux/if_addr.h, 2.6.19

# Namespaces.
CLONE_NEWUSER: Final = 0x10000000  # linux/sched.h, 3.8
CLONE_NEWNET: Final = 0x40000000  # linux/sched.h, 2.6.24

# prctl(2).
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h, 2.1.57
