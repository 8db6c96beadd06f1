"""Plugins: the user's own experiments and claims, run, judged and reported like the built-in ones.

A plugin is a Python file with `EXPERIMENT`, or with `EXPERIMENTS`, a sequence of them. It may have
a `draw(tables, settings)` that returns the figures by name, as the modules in figures/ do.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

from analysis.ending import UsageError
from analysis.experiments import registry
from analysis.experiments.shared.experiment import Experiment, claims_of


@contextmanager
def loaded(paths: Sequence[Path]) -> Iterator[None]:
    """Register the experiments of these files while the context lasts.

    Raises UsageError, which names what is wrong.
    """
    added: list[str] = []
    try:
        for path in paths:
            for experiment, draw in _experiments(path):
                registry.EXPERIMENTS[experiment.name] = experiment
                registry.DRAWN[experiment.name] = draw
                added.append(experiment.name)
        yield
    finally:
        for name in added:
            del registry.EXPERIMENTS[name], registry.DRAWN[name]


def _experiments(path: Path) -> list[tuple[Experiment, registry.Draw | None]]:
    module = _imported(path)
    found = list(getattr(module, "EXPERIMENTS", []))
    if hasattr(module, "EXPERIMENT"):
        found.append(module.EXPERIMENT)
    if not found or not all(isinstance(one, Experiment) for one in found):
        raise UsageError(
            f"--plugin: expected EXPERIMENT, an Experiment, in {path}, found {found or 'none'}"
        )
    taken = {claim.id for claim in claims_of(registry.EXPERIMENTS.values())}
    names = set(registry.EXPERIMENTS)
    for one in found:
        if one.name in names:
            raise UsageError(
                f"--plugin: expected a name that no experiment has, found {one.name!r} in {path}"
            )
        if twice := [claim.id for claim in one.claims if claim.id in taken]:
            raise UsageError(
                f"--plugin: expected claims of other names than those there are, found {twice[0]!r}"
            )
        names.add(one.name)
        taken.update(claim.id for claim in one.claims)
    return [(one, getattr(module, "draw", None)) for one in found]


def _imported(path: Path) -> ModuleType:
    """Return the file, imported as a module under its own name.

    Worker processes, which get our path, can then import it too.
    """
    if not path.is_file() or not path.stem.isidentifier():
        raise UsageError(
            f"--plugin: expected a Python file whose name is an identifier, found {str(path)!r}"
        )
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = util.find_spec(path.stem)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path.resolve():
        raise UsageError(
            f"--plugin: expected a name that no other module has, found {path.stem!r}; rename the "
            "file"
        )
    try:
        return import_module(path.stem)
    except Exception as error:
        raise UsageError(
            f"--plugin: expected a file that can be imported, found {path} ({error!r})"
        ) from error
