import os
import platform

from connectx.cli.lab.output import machine_text
from connectx.lab import machine
from connectx.linux.features import FEATURES
from connectx.sandbox.networks import Network


def test_says_what_it_ran_on(network: Network) -> None:
    network.port_range(40000, 40009)
    found = machine.describe()
    assert found.kernel == os.uname().release
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.python == platform.python_version()
    assert found.features.keys() == {feature.name for feature in FEATURES}
    assert found.sysctls["net.ipv4.ip_local_port_range"] == "40000 40009"
    # Nothing names the machine.
    assert platform.node() not in repr(found)


def test_one_core_is_one_core() -> None:
    found = machine.describe()
    assert found._replace(cores=1).processors == "1 core"
    assert found._replace(cores=2).processors == "2 cores"
    assert machine_text(found._replace(cores=1), 2.0) == f"Linux {found.kernel}, 1 core, 2.0 s"


def test_a_network_says_what_was_changed_in_it(network: Network) -> None:
    network.changes.clear()
    network.port_range(40000, 40009)
    network.add_address("192.0.2.7")
    network.add_device_pair("one", "two")
    assert network.changes == [
        "net.ipv4.ip_local_port_range = 40000 40009",
        "192.0.2.7 on lo",
        "devices one and two",
    ]
