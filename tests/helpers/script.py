"""The script run inside the test's own process, and what it said.

The ablation runs a profile of a second, and nothing is drawn.
"""

import atexit
import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

import reproduce
from analysis.experiments import ablation
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.curves import Scale
from analysis.runs.workers import Progress, Workers, silent
from reptile_core import datasets
from reptile_core.tasks import Sampling

glyphs = cache(datasets._glyphs)
TINY = Scale(looks=(1, 2), tasks=2, seeds=1, queries=1)
# One step of five images: adapting to test tasks would take most of a run's time.
TINY_EVALUATION = Sampling(n_way=5, shots=1, batch=5, steps=1)
TINY_ABLATION = replace(
    ablation.EXPERIMENT, scales={"smoke": TINY}, run=partial(ablation.run, sampling=TINY_EVALUATION)
)


class InProcess(Workers):
    """Workers that do all work in this process, one item after another."""

    def map(
        self, name: str, function: Callable[[Any, Progress], Any], items: Sequence[Any], **_: object
    ) -> list[Any]:
        return [function(item, silent) for item in items]


@dataclass(frozen=True)
class Said:
    """The script's exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; the test fails if there was anything else."""
        assert self.err.startswith("reproduce.py: error: ") and self.err.count("\n") == 1, self.err
        return self.err


def script(*arguments: object, draw: Callable[..., list[Path]] = lambda *_: []) -> Said:
    """Run reproduce.main on these arguments, with the ablation's smoke profile made tiny.

    Nothing is drawn, unless by `draw`.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("analysis.prepare.Workers", InProcess)
        patch.setattr("analysis.one_run.Workers", InProcess)
        patch.setattr("figures.background.draw", draw)
        patch.setattr(datasets, "_glyphs", glyphs)
        patch.setitem(EXPERIMENTS, "ablation", TINY_ABLATION)
        code = reproduce.main([str(argument) for argument in arguments])
    return Said(code, out.getvalue(), err.getvalue())


SMOKE = ("--profile", "smoke", "--dataset", "glyphs")


def ablation_in(folder: Path, *more: object) -> tuple[object, ...]:
    return "ablation", *SMOKE, "--quiet", "--out", folder, *more


@cache
def finished() -> Path:
    """Return the output folder of an ablation of ten runs of two iterations, on glyphs.

    Tests may read and copy it, but not change it.
    """
    folder = Path(tempfile.mkdtemp(prefix="finished-ablation-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert script(*ablation_in(folder)).code == 0
    return folder


def finished_in(folder: Path, *, only: str = "") -> Path:
    """Copy the output of a finished ablation to a folder, and return the folder.

    only: a part to copy, such as its runs. One run serves all tests.
    The manifest names another folder in its command.
    """
    shutil.copytree(finished() / only, folder / only, dirs_exist_ok=True)
    return folder


def tables_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "tables").iterdir()}
