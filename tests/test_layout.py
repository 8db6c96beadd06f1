"""Imports go one way: no room imports from one above it, and no imports are circular.

A room is a package or a module, and FLOORS lists the rooms from the bottom up.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Rooms on one floor do not import each other.
FLOORS = (
    ("reptile_core", "analysis.program"),
    ("analysis.paper", "analysis.theory"),
    ("analysis.runs",),
    ("analysis.results",),
    ("analysis.ending",),
    ("analysis.experiments",),
    ("analysis.budget", "analysis.cost", "analysis.command_line", "analysis.plugins"),
    ("analysis.plan",),
    ("analysis.prepare", "analysis.again"),
    ("analysis.one_run", "analysis.dry_run", "analysis.plugins"),
    ("figures",),
    ("reproduce",),
)
# `Network.of` imports own_network only when it is called, and own_network builds on networks.
ALLOWED = {("reptile_core.networks", "reptile_core.own_network")}


def modules() -> dict[str, Path]:
    """Return every module of the project by its dotted name."""
    paths = [
        path
        for name in ("reptile_core", "analysis", "figures")
        for path in (ROOT / name).rglob("*.py")
    ]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in [*paths, ROOT / "reproduce.py"]
    }
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imported(path: Path, known: set[str]) -> set[str]:
    """Return which of the known modules a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: expected absolute imports"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found & known


def floor(module: str) -> tuple[int, str]:
    """Return the number of a module's floor, and the module's room."""
    for number, rooms in enumerate(FLOORS):
        for room in rooms:
            if module == room or module.startswith(f"{room}."):
                return number, room
    raise AssertionError(f"{module}: expected a room of FLOORS")


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    found = {name: imported(path, set(known)) - {name} for name, path in known.items()}
    return {
        name: {other for other in others if (name, other) not in ALLOWED}
        for name, others in found.items()
    }


def test_no_import_runs_upwards(graph: dict[str, set[str]]) -> None:
    upwards = []
    for module in graph.keys() - {"analysis"}:
        number, room = floor(module)
        for other in graph[module]:
            below, its_room = floor(other)
            if its_room != room and below >= number:
                upwards.append(f"{module} imports {other}")
    assert sorted(upwards) == []


def test_no_import_runs_in_a_circle(graph: dict[str, set[str]]) -> None:
    # CycleError names a cycle.
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_both_tests_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from figures import style\n    import analysis.plan\n")
    assert imported(path, {"figures.style", "analysis.plan"}) == {"figures.style", "analysis.plan"}
    assert (
        floor("figures.style")
        > floor("analysis.plan")
        > floor("analysis.results.judge")
        > floor("reptile_core.files")
    )
