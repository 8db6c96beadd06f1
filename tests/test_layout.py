"""Imports go one way: no package imports from a layer above its own, and no imports are circular.

A package may also be a single module. LAYERS lists the packages from the bottom up.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Packages of one layer do not import each other.
LAYERS = (
    ("reptile_core", "analysis.program"),
    ("analysis.paper", "analysis.theory"),
    ("analysis.runs",),
    ("analysis.results",),
    ("analysis.ending",),
    ("analysis.experiments",),
    ("analysis.budget", "analysis.cost", "analysis.command_line"),
    ("analysis.plan", "analysis.request"),
    ("analysis.option_checks",),
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


def layer_of(module: str) -> tuple[int, str]:
    """Return the number of a module's layer, and the module's package."""
    for number, packages in enumerate(LAYERS):
        for package in packages:
            if module == package or module.startswith(f"{package}."):
                return number, package
    raise AssertionError(f"{module}: expected a package of LAYERS")


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports of another package that is not in a layer below."""
    found = []
    for module in graph.keys() - {"analysis"}:
        number, package = layer_of(module)
        for other in graph[module]:
            its_number, its_package = layer_of(other)
            if its_package != package and its_number >= number:
                found.append(f"{module} imports {other}")
    return sorted(found)


def order(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules, each after those that it imports; CycleError names a cycle."""
    return list(TopologicalSorter(graph).static_order())


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    found = {name: imported(path, set(known)) - {name} for name, path in known.items()}
    return {
        name: {other for other in others if (name, other) not in ALLOWED}
        for name, others in found.items()
    }


def test_no_import_runs_upwards(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == []


def test_no_import_runs_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert len(order(graph)) == len(graph)


def test_an_upward_import_and_a_cycle_are_found(graph: dict[str, set[str]]) -> None:
    up = {"reptile_core.philox": graph["reptile_core.philox"] | {"analysis.plan"}}
    assert upward(graph | up) == ["reptile_core.philox imports analysis.plan"]
    beyond = {"analysis.theory.taylor": {"analysis.paper.quotes"}}  # another package of its layer
    assert upward(graph | beyond) == ["analysis.theory.taylor imports analysis.paper.quotes"]
    (below, *_) = sorted(graph["reptile_core.training"])
    with pytest.raises(CycleError):
        order(graph | {below: graph[below] | {"reptile_core.training"}})


def test_imports_inside_functions_are_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from figures import style\n    import analysis.plan\n")
    assert imported(path, {"figures.style", "analysis.plan"}) == {"figures.style", "analysis.plan"}


def test_no_test_imports_another() -> None:
    """What tests share is in tests/helpers, so that each can be read and moved alone."""
    files = {f"tests.{path.stem}": path for path in (ROOT / "tests").glob("test_*.py")}
    assert len(files) > 50
    assert {
        name: found for name, path in files.items() if (found := imported(path, set(files)))
    } == {}
