"""How a call gets to its system calls: as short as scripts/trace-calls shows."""

import importlib.machinery
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

SCRIPT: Final = Path(__file__).parents[1] / "scripts" / "trace-calls"

#: The deepest stack of connectx's functions, and the most files, in a call to a destination
#: that is known and to a new one.
DEPTH: Final = 8
FILES: Final = {"warm": 6, "new destination": 10, "refused once": 10}
#: The same over UDP from a port that another connection has.
SHARED: Final = {"warm, shared port": 6, "new destination, shared port": 10}
#: Those that need no lookup.
SIMPLE: Final = ("warm", "new destination")
#: What a Dialer may add.
MORE_FILES: Final = 3
MORE_DEPTH: Final = 3


@cache
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("trace_calls", str(SCRIPT))
    spec = importlib.util.spec_from_loader("trace_calls", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def traces() -> dict[str, Any]:
    return {trace.name: trace for trace in script().traces()}


@pytest.mark.parametrize(
    "protocol, state",
    [(protocol, state) for protocol in ("TCP", "UDP") for state in FILES]
    + [("UDP", state) for state in SHARED],
)
@pytest.mark.parametrize("way", ["create_connection", "Dialer"])
def test_a_call_takes_a_short_way(
    traces: dict[str, Any], way: str, protocol: str, state: str
) -> None:
    trace = traces[f"{way}, {protocol}, {state}"]
    more = way == "Dialer"
    assert trace.depth <= DEPTH + more * MORE_DEPTH
    assert len(trace.files) <= (FILES | SHARED)[state] + more * MORE_FILES
    # A UDP port that is shared is looked up twice, and a refused one once more.
    most = {"linux/sock_diag.py": 3} if protocol == "UDP" and state not in SIMPLE else {}
    again = {file: count for file, count in trace.files.items() if count > most.get(file, 2)}
    assert again == {}, "left and entered again more than once"


def test_the_script_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert script().main(["--path"]) == 0
    printed = capsys.readouterr().out
    assert "create_connection, UDP, new destination" in printed
    assert "claim  (_connect/udp_connect.py)" in printed
    assert "claim_alone  (_connect/udp_connect.py)" in printed
