"""Which characters train: runs against the table's, the control, verdicts on made-up tables, the figure."""

import json
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest

from analysis.claims import CANNOT_FAIL, INCONCLUSIVE, REFUTED, SUPPORTED, ledger
from analysis.experiment import Context
from analysis.experiments import few_shot, splits
from analysis.runs import Source
from figures.splits import draw
from figures.style import style
from reptile_core import datasets

matplotlib.use("Agg")


@pytest.fixture
def context(tmp_path):
    """On the glyphs, in this process."""

    def in_turn(name, function, items, *, sizes=None, unit=""):
        return [function(item, lambda *_: None) for item in items]

    source = Source("glyphs", None, datasets.load("glyphs").content, real=False)
    return Context("smoke", source, SimpleNamespace(map=in_turn, quiet=True), tmp_path / "runs")  # type: ignore[arg-type]


def test_runs_are_the_tables_but_for_the_authors_split(context):
    real = replace(context, profile="paper", source=replace(context.source, name="omniglot", real=True))
    by_seed, authors = splits.trainings(real)
    table = few_shot.configure(splits.BENCHMARK, splits.REPTILE, few_shot.SCALES["paper"]["omniglot-5way"], 3)
    for training in (by_seed, authors):
        run = training.job(3, real).run
        assert run == table
    assert (by_seed.source.split, authors.source.split) == ("seed", "authors")
    assert by_seed.job(3, real).key != authors.job(3, real).key


def test_glyphs_have_no_authors_split_and_a_run_measures_every_cell(context, monkeypatch):
    monkeypatch.setattr(few_shot, "PIECE", 15)
    monkeypatch.setattr(splits, "BENCHMARK", replace(splits.BENCHMARK, steps=2, batch=5, train_shots=2))
    result = splits.run(context)
    table, shares = result.tables["splits"], result.tables["splits_shares"]
    assert set(table.split) == {"seed"} and set(table["count"]) == {20} and len(table) == len(shares) == 4
    assert (table.split_error >= 0).all() and (table.shuffled_error >= 0).all()
    assert not table.split_error.equals(table.shuffled_error)
    json.dumps(splits.settings(context))
    with style():
        assert draw(result.tables, splits.settings(context)).keys() == {"splits"}


def test_shares_are_of_the_error_rate():
    cell = {"split": ["seed"], "seed": [0], "shots": [1], "transductive": [False], "value": [0.9]}
    row = splits.shares(pd.DataFrame(cell | {"split_error": [0.01], "shuffled_error": [0.005]})).iloc[0]
    assert (row.share, row.shuffled, row.published) == pytest.approx((0.196, 0.098, 0.09 / 4.61))


def _shares(share, shuffled, *, runs=6, spread=0.002):
    """Made-up shares of every run and cell, a little larger from run to run."""
    rows = [
        {
            "split": "authors" if run % 2 else "seed",
            "seed": run // 2,
            "shots": shots,
            "transductive": transductive,
            "share": share + spread * run,
            "shuffled": shuffled,
            "published": 0.02,
        }
        for run in range(runs)
        for shots in (1, 5)
        for transductive in (False, True)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        (_shares(0.1, 0.0), SUPPORTED),
        (_shares(0.0, 0.0), REFUTED),
        (_shares(0.015, 0.0), INCONCLUSIVE),
        (_shares(0.1, 0.1), CANNOT_FAIL),
        (_shares(0.1, 0.0, runs=1), CANNOT_FAIL),  # one run has no interval, nor has its control
    ],
)
def test_verdicts(shares, verdict):
    found = ledger(splits.CLAIMS, pd.DataFrame(splits.measurements(shares)).assign(profile="paper"))
    assert found.verdict.tolist() == [verdict]


def test_report_and_figure_give_the_numbers():
    shares = _shares(0.1, 0.0, spread=0.0)
    table = shares.assign(value=0.95 + 0.01 * (shares.split == "seed"), standard_error=0.003, split_error=0.004)
    table = splits.with_bars(table)
    assert table[["over_tasks", "over_both"]].to_numpy() == pytest.approx(np.tile([0.00588, 0.0098], (len(table), 1)))
    lines = splits.report(table)
    assert "  1-shot, Reptile, the authors' characters: 95.00 ± 0.00; 0.40" in lines
    assert "  5-shot, Reptile + transduction, characters drawn by seed: 96.00 ± 0.00; 0.40" in lines
    assert "  1-shot, Reptile, the authors' characters: 95.00; 0.40" in splits.report(table[table.seed == 0])
    settings = {"benchmark": {"n_way": 5, "iterations": 100_000}, "kinds": ["seed", "authors"]}
    settings |= {"iterations": 3_000, "tasks": 1_000, "seeds": 3, "evaluation_steps": 50}
    with style():
        figure = draw({"splits": table, "splits_shares": shares}, settings)["splits"]
    assert figure.get_suptitle() == (
        "Another choice of characters moves the 1-shot error rate by ± 10 % (control: 0 %); the paper's ± is 2 %"
    )
    left, right = figure.axes
    drawn = np.concatenate([line.get_ydata() for line in left.get_lines() if line.get_marker() == "o"])
    assert sorted(drawn) == pytest.approx([95.0] * 3 + [96.0] * 3)
    dots = [line.get_ydata() for line in right.get_lines() if line.get_marker() == "o"]
    assert np.concatenate(dots) == pytest.approx(np.full(24, 10.0))
