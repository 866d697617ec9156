"""How the modules import each other: in one direction."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules_below(directory: Path) -> dict[str, Path]:
    """The modules of a package, by name."""
    files = directory.rglob("*.py")
    return {
        ".".join(file.relative_to(directory.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): file
        for file in files
    }


def imported(file: Path) -> set[str]:
    """What a module imports, at its top, in functions, and for type hints alone."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # What is imported is a module, or is in one.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", ["src/connectx", "bench", "tests"])
def test_no_module_imports_itself_through_others(package: str) -> None:
    modules = modules_below(ROOT / package)
    graph = {}
    for module, file in modules.items():
        names = imported(file)
        names |= {name.rpartition(".")[0] for name in names - modules.keys()}
        graph[module] = names & modules.keys() - {module}
    assert len(graph) > 10
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))
