"""The plan of a command, counted before, half-way and after, with nothing trained or written."""

import shutil
from pathlib import Path

import pytest

from analysis import cost, dry_run
from analysis.command_line import parse
from analysis.experiments.registry import EXPERIMENTS
from analysis.paper.figure_3 import configure
from analysis.prepare import plans
from reptile_core import datasets
from reptile_core.meta_gradients import figure_3
from tests.helpers.script import TINY, TINY_ABLATION, TINY_EVALUATION, glyphs


def said(out: Path, *more: str, rate: float = 1e9) -> list[str]:
    options = ["--profile", "smoke", "--workers", "1", "--out", str(out), *more]
    options += ["--dataset", "glyphs"] if "ablation" in more else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_glyphs", glyphs)
        patch.setitem(EXPERIMENTS, "ablation", TINY_ABLATION)
        return dry_run.describe(plans(parse(options)), lambda run: rate)


def test_what_is_there_is_not_done_again(finished_ablation: Path, tmp_path: Path) -> None:
    first, _ = said(tmp_path, "ablation")
    assert first.startswith(
        "ablation: 10 runs, 0 there; 20 iterations left; 21 evaluations, 0 there; "
    )
    assert not (tmp_path / "runs").exists()
    shutil.copytree(finished_ablation / "runs", tmp_path / "runs")
    assert said(tmp_path, "ablation") == [
        "ablation: 10 runs, 10 there; 0 iterations left; 21 evaluations, 21 there; 0 seconds"
    ]
    more, _ = said(tmp_path, "ablation", "--seeds", "2")
    assert more.startswith(
        "ablation: 20 runs, 10 there; 20 iterations left; 42 evaluations, 21 there; "
    )
    assert said(tmp_path, "ablation", "--fresh")[0].startswith(
        "ablation: 10 runs, 0 there; 20 iterations left; "
    )


def test_hours_are_flops_over_the_rate(tmp_path: Path) -> None:
    variants = [variant for variant in figure_3()]
    training = sum(2 * cost.iteration(configure(variant, 0)) for variant in variants)
    one = cost.look(configure(variants[0], 0), TINY_EVALUATION, TINY.tasks, TINY.queries)
    seconds = 3.5 * 3600
    *_, whole = said(tmp_path, "ablation", rate=(training + 21 * one) / seconds)
    assert whole.startswith("what is left: 3.5 hours on 1 workers")


def test_what_trains_by_itself_has_the_time_that_it_states(tmp_path: Path) -> None:
    (line,) = said(tmp_path, "sine")
    assert line.startswith("sine: no runs that are kept; all of it takes ")
    _, second, _ = said(tmp_path, "ablation", "variance")
    assert "measurements of its own" in second
