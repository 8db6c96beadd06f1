"""What `reptile_core` exports, and its docstring's plain torch loop against `train` in float64.

Tolerance: round-off of two programs through a dozen steps of SGD, relative to the distance
travelled, as in test_training.
"""

import copy
import pkgutil
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import torch
import torch.nn.functional as F

import reptile_core
from reptile_core import Run
from reptile_core.philox import Purpose
from tests.helpers import oracles
from tests.helpers.data import image_pool

ROOT = Path(__file__).parents[1]
POOL = image_pool()
SYMBOLS = {"alpha": 0.003, "step": 0.25, "iterations": 3}
TOLERANCE = 1e-9


def snippets() -> list[str]:
    """Return the indented blocks of the docstring."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", reptile_core.__doc__ or "", re.MULTILINE)
    return [dedent(block).strip() for block in blocks if block.strip()]


def trained() -> dict[str, Any]:
    """Run the docstring's second snippet in float64, and return its variables."""
    names = {name: getattr(reptile_core, name) for name in reptile_core.__all__}
    space = names | SYMBOLS | {"pool": POOL, "Run": partial(Run, dtype="float64")}
    exec(snippets()[1], space)
    return space


def minibatches(run: Run, iteration: int) -> list[oracles.Batch]:
    drawn = POOL.sample(
        run.sampling, seed=run.seed, purpose=Purpose.TRAINING, iteration=iteration, task=0
    )
    images = POOL.images.flatten(0, 1).double()
    return [(images[batch.index], batch.label) for batch in drawn.minibatches]


def test_the_docstring_shows_reptile_in_a_dozen_lines() -> None:
    plain, ours = snippets()
    assert len(plain.splitlines()) <= 12
    assert "train(run, pool, start(run))" in ours


def test_train_does_what_the_plain_lines_do() -> None:
    found = trained()
    run, phi = found["run"], found["state"].phi
    origin = reptile_core.start(run).phi
    model = oracles.load(oracles.omniglot_module(5), origin)
    tasks = [minibatches(run, iteration) for iteration in range(run.iterations)]
    exec(
        snippets()[0],
        {"copy": copy, "torch": torch, "F": F, "model": model, "tasks": tasks} | SYMBOLS,
    )
    way = phi - origin
    assert phi.dtype == torch.float64
    assert (oracles.weights_of(model) - phi).norm() <= TOLERANCE * way.norm()
    *_, fomaml = reptile_core.train(
        Run(**{**vars(run), "weights": reptile_core.last(5).weights}), POOL, reptile_core.start(run)
    )
    assert (fomaml.phi - phi).norm() > 1e-3 * way.norm(), (
        "the control: another direction ends elsewhere"
    )


def test_every_name_is_there_with_a_docstring_and_none_hides_a_module() -> None:
    names = reptile_core.__all__
    modules = {module.name for module in pkgutil.iter_modules(reptile_core.__path__)}
    assert names == sorted(names) and 12 <= len(names) <= 20
    assert not modules & set(names)
    assert [name for name in names if not getattr(reptile_core, name).__doc__] == []


def test_the_core_loads_nothing_that_only_experiments_need() -> None:
    heavy = {
        "analysis",
        "figures",
        "matplotlib",
        "pandas",
        "PIL",
        "pooch",
        "requests",
        "scipy",
        "seaborn",
        "sklearn",
    }
    code = f"import sys, reptile_core; print(*sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
