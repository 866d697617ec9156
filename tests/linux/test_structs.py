from struct import Struct

import pytest

from connectx.linux import structs

#: sizeof in the headers of linux-libc-dev, as a C compiler gives it.
SIZES = {
    "NLMSGHDR": 16,  # linux/netlink.h
    "NETLINK_STATUS": 4,
    "RTATTR": 4,  # linux/rtnetlink.h
    "RTMSG": 12,
    "IFINFOMSG": 16,
    "IFADDRMSG": 8,  # linux/if_addr.h
    "TCP_INFO_IDLE": 56,
    "INET_DIAG_SOCKID": 48,  # linux/inet_diag.h
    "INET_DIAG_REQ": 60,
    "INET_DIAG_REQ_V2": 56,
    "INET_DIAG_MSG": 72,
    "INET_DIAG_BC_OP": 4,
    "INET_DIAG_HOSTCOND": 8,
    "LOCAL_PORT_RANGE": 4,  # u32 in do_ip_setsockopt()
}


def test_sizes() -> None:
    sizes = {name: value.size for name, value in vars(structs).items() if isinstance(value, Struct)}
    assert sizes == SIZES


def test_a_layout_of_another_size_is_refused() -> None:
    with pytest.raises(AssertionError, match="takes 6 bytes, but the kernel's takes 8"):
        structs.layout("IH", 8)


@pytest.mark.parametrize(
    "name, index, offset",
    [
        ("NLMSGHDR", 3, 8),  # nlmsg_seq
        ("INET_DIAG_SOCKID", 5, 40),  # idiag_cookie
        ("INET_DIAG_REQ", 0, 4),  # id
        ("INET_DIAG_REQ", 1, 52),  # idiag_states
        ("INET_DIAG_REQ_V2", 4, 8),  # id
        ("INET_DIAG_MSG", 4, 4),  # id
        ("INET_DIAG_MSG", 8, 64),  # idiag_uid
        ("INET_DIAG_HOSTCOND", 2, 4),  # port
        ("RTMSG", 8, 8),  # rtm_flags
    ],
)
def test_offsets(name: str, index: int, offset: int) -> None:
    """Each field is at the offset in the headers: changing that octet changes that field."""
    layout: Struct = getattr(structs, name)
    octets = bytearray(layout.size)
    before = layout.unpack(octets)
    octets[offset] = 1
    after = layout.unpack(octets)
    assert [before[i] == after[i] for i in range(len(before))].index(False) == index
