"""Which characters train: runs against the table's, the control, verdicts, the figure.

Verdicts are tested on made-up tables.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from analysis.experiments import splits
from analysis.experiments.shared.experiment import EPOCH, Context
from analysis.paper.benchmarks import SCALES, configure
from analysis.results.judge import judge
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from analysis.runs import evaluation_chunks
from analysis.runs.job import Source
from analysis.runs.store import Outcome
from analysis.runs.workers import silent
from figures.splits import draw
from figures.style import style
from reptile_core import datasets
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

SMALL = replace(splits.BENCHMARK, steps=2, batch=5, train_shots=2)


@pytest.fixture
def context(tmp_path):
    """Return a context on the glyphs, in this process."""

    def in_turn(name, function, items, *, sizes=None, unit=""):
        return [function(item, silent) for item in items]

    source = Source("glyphs", None, datasets.load("glyphs").content, real=False)
    return Context(
        "smoke", source, SimpleNamespace(map=in_turn, quiet=True), tmp_path / "runs", epoch=EPOCH
    )  # type: ignore[arg-type]


def test_runs_are_the_tables_but_for_the_authors_split(context):
    real = replace(
        context, profile="paper", source=replace(context.source, name="omniglot", real=True)
    )
    by_seed, authors = splits.trainings(real)
    table = configure(splits.BENCHMARK, splits.REPTILE, SCALES["paper"]["omniglot-5way"], 3)
    for training in (by_seed, authors):
        run = training.job(3, real).run
        assert run == table
    assert (by_seed.source.split, authors.source.split) == ("seed", "authors")
    assert by_seed.job(3, real).key != authors.job(3, real).key


def test_glyphs_have_no_authors_split_and_a_run_measures_every_cell(context, monkeypatch):
    monkeypatch.setattr(evaluation_chunks, "CHUNK", 15)
    result = splits.run(context, benchmark=SMALL)
    table, shares = result.tables["splits"], result.tables["splits_shares"]
    assert (
        set(table.split) == {"seed"}
        and set(table["count"]) == {20}
        and len(table) == len(shares) == 4
    )
    assert set(table.seed) == {FIRST_SEED}
    assert (table.split_error >= 0).all() and (table.shuffled_error >= 0).all()
    assert not table.split_error.equals(table.shuffled_error)
    settings = splits.settings(context, benchmark=SMALL)
    json.dumps(settings)
    with style():
        assert draw(result.tables, settings).keys() == {"splits"}


def test_shares_are_of_the_error_rate():
    cell = {"split": ["seed"], "seed": [0], "shots": [1], "transductive": [False], "value": [0.9]}
    row = splits.shares(
        pd.DataFrame(cell | {"split_error": [0.01], "shuffled_error": [0.005]})
    ).iloc[0]
    assert (row.share, row.shuffled, row.published) == pytest.approx((0.196, 0.098, 0.09 / 4.61))


def test_a_run_that_diverged_says_nothing_of_splits(context, monkeypatch):
    """A run that diverged says nothing of splits.

    It classifies at chance, on any characters, and the floor keeps its log finite.
    """
    lost = Outcome("diverged at iteration 1", 1.0, 1)
    monkeypatch.setattr(Context, "train", lambda self, name, jobs: dict.fromkeys(jobs, lost))
    result = splits.run(context, benchmark=SMALL)
    assert set(result.tables["splits"].value) == {0.2}
    shares = result.evidence[result.evidence.role == "shown"]  # of made-up characters
    assert shares.value.tolist() == pytest.approx([np.log(splits.FLOOR)] * 4)


def _shares(share, shuffled, *, seeds=5, spread=0.002):
    """Return made-up shares of every run and cell, a little larger from run to run.

    The paper's share is 0.02.
    """
    rows = []
    for run in range(2 * seeds):
        for shots in (1, 5):
            for transductive in (False, True):
                cell = {"shots": shots, "transductive": transductive, "published": 0.02}
                split = {"split": "authors" if run % 2 else "seed", "seed": FIRST_SEED + run // 2}
                rows.append(split | cell | {"share": share + spread * run, "shuffled": shuffled})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("shares", "verdict", "control"),
    [
        (_shares(0.1, 0.0), SUPPORTED, "failed"),
        (_shares(0.0, 0.0, spread=0.0005), REFUTED, "uninformative"),
        (_shares(0.015, 0.0, spread=0.001), UNDECIDED, "failed"),
        (_shares(0.1, 0.2), UNDECIDED, "passed"),
        # Three seeds and the authors' split are four splits.
        (_shares(0.1, 0.0, seeds=3), UNDECIDED, "uninformative"),
    ],
)
def test_verdicts(shares, verdict, control):
    (found,) = judge(splits.CLAIMS, splits.evidence(shares, real=True))
    assert (found.decision, found.control) == (verdict, control)


def test_the_authors_runs_count_as_one_split():
    found = splits.evidence(_shares(0.1, 0.0), real=True, seconds=60.0)
    case = found[(found.role == "check") & (found.case == "1-shot, Reptile")]
    assert case.seed.tolist() == [
        FIRST_SEED,
        FIRST_SEED + 1,
        FIRST_SEED + 2,
        FIRST_SEED + 3,
        FIRST_SEED + 4,
        FIRST_SEED + 999,
    ]
    theirs = [np.log((0.1 + 0.002 * run) / 0.02) for run in (1, 3, 5, 7, 9)]
    assert case.value.iloc[-1] == pytest.approx(np.mean(theirs))
    assert set(found.seconds) == {60.0}


def test_made_up_characters_are_only_shown():
    (found,) = judge(splits.CLAIMS, splits.evidence(_shares(0.1, 0.0), real=False))
    assert (found.decision, found.why, len(found.shown)) == (UNDECIDED, "shown only", 8)


def test_an_estimate_without_a_log_counts_as_the_floor():
    found = splits.evidence(_shares(0.1, 0.0), real=True)
    assert found.value[found.role == "control"].tolist() == pytest.approx(
        [np.log(splits.FLOOR)] * 4 * 6
    )


def test_report_and_figure_give_the_numbers():
    shares = _shares(0.1, 0.0, seeds=3, spread=0.0)
    table = shares.assign(
        value=0.95 + 0.01 * (shares.split == "seed"), standard_error=0.003, split_error=0.004
    )
    table = splits.with_bars(table)
    assert table[["over_tasks", "over_both"]].to_numpy() == pytest.approx(
        np.tile([0.00588, 0.0098], (len(table), 1))
    )
    lines = splits.report(table)
    assert "  1-shot, Reptile, the authors' characters: 95.00 ± 0.00; 0.40" in lines
    assert "  5-shot, Reptile + transduction, characters drawn by seed: 96.00 ± 0.00; 0.40" in lines
    assert "  1-shot, Reptile, the authors' characters: 95.00; 0.40" in splits.report(
        table[table.seed == FIRST_SEED]
    )
    settings = {"benchmark": {"n_way": 5, "iterations": 100_000}, "kinds": ["seed", "authors"]}
    settings |= {"iterations": 3_000, "tasks": 1_000, "seeds": 3, "evaluation_steps": 50}
    with style():
        figure = draw({"splits": table, "splits_shares": shares}, settings)["splits"]
    assert figure.get_suptitle() == (
        "Another choice of characters moves the 1-shot error rate by ± 10 % (control: 0 %); the "
        "paper's ± is 2 %"
    )
    left, right = figure.axes
    drawn = np.concatenate(
        [line.get_ydata() for line in left.get_lines() if line.get_marker() == "o"]
    )
    assert sorted(drawn) == pytest.approx([95.0] * 3 + [96.0] * 3)
    dots = [line.get_ydata() for line in right.get_lines() if line.get_marker() == "o"]
    assert np.concatenate(dots) == pytest.approx(np.full(24, 10.0))
