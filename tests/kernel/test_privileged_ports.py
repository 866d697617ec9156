"""The range of ephemeral ports cannot reach into the privileged ones: no finding says it does."""

import errno

import pytest

from connectx.sandbox.networks import Network


def test_the_kernel_refuses_either_sysctl(network: Network) -> None:
    """ipv4_privileged_ports() and ipv4_local_port_range() in net/ipv4/sysctl_net_ipv4.c."""
    network.port_range(20001, 20020)
    for start in (20002, 20020, 20021, 65535):
        with pytest.raises(OSError, match="Invalid argument") as caught:
            network.sysctl("net.ipv4.ip_unprivileged_port_start", start)
        assert caught.value.errno == errno.EINVAL
    network.sysctl("net.ipv4.ip_unprivileged_port_start", 20001)
    with pytest.raises(OSError, match="Invalid argument"):
        network.port_range(20000, 20020)
