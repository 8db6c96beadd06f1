"""The Taylor series where it is used: terms and shares on quadratics, verdicts, figure.

Terms and shares are compared with closed forms.
"""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest
import torch
from torch.func import grad, hessian

from analysis.experiments import validity
from analysis.results.judge import judge
from analysis.theory.losses import quadratic
from figures import validity as figure
from tests.helpers.data import assert_close
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

ROUND_OFF = 1e-12
SEEDS = range(FIRST_SEED, FIRST_SEED + 5)
SCALE = validity.SCALES["quick"]


def _quadratic_point(seed=FIRST_SEED):
    """Return what the measurement uses of a point, with two tasks that are quadratics."""
    pools = [quadratic(4, seed=task) for task in range(2)]
    run = SimpleNamespace(seed=seed, sampling=None, inner=SimpleNamespace(learning_rate=0.05))
    return pools, SimpleNamespace(
        job=SimpleNamespace(run=run),
        iteration=7,
        phi=pools[0].phi,
        losses=lambda sampling, task, dtype: pools[task].losses,
    )


def test_changes_and_terms_on_quadratics():
    """On quadratics g_2 - g_bar_2 is its first-order term; g_3's lacks alpha^2 H_3 H_2 g_bar_1."""
    pool, alpha = quadratic(3), 0.05
    hessians = [hessian(loss)(pool.phi) for loss in pool.losses]
    bars = [grad(loss)(pool.phi) for loss in pool.losses]
    (change_2, term_2), (change_3, term_3) = validity.changes_and_terms(
        pool.losses, pool.phi, alpha
    )
    assert_close(term_2, -alpha * hessians[1] @ bars[0], ROUND_OFF)
    assert_close(change_2, term_2, ROUND_OFF)
    assert_close(term_3, -alpha * hessians[2] @ (bars[0] + bars[1]), ROUND_OFF)
    assert_close(change_3 - term_3, alpha**2 * hessians[2] @ hessians[1] @ bars[0], 1e-10)


@pytest.mark.parametrize(
    ("term", "q", "cosine"),
    [
        ([2.0, 0.0], 1.0, 1.0),
        ([-2.0, 0.0], 0.2, -1.0),
        ([0.0, 2.0], 1 / 3, 0.0),
        ([1.0, 1.0], 2 / 3, 0.5**0.5),
    ],
)
def test_agreement_is_bounded(term, q, cosine):
    """Agreement is bounded: at the band's end, q = 2/3, half of |c|^2 is explained."""
    found = validity.agreement(torch.tensor([2.0, 0.0]), torch.tensor(term))
    assert found["q"] == pytest.approx(q)
    assert found["cosine"] == pytest.approx(cosine)


def test_a_task_is_held_against_its_own_term_and_anothers():
    pools, point = _quadratic_point()
    rows = {
        (r["task"], r["i"], r["term"]): r for r in validity.measure(point, lambda _: None, tasks=2)
    }
    assert len(rows) == 2 * 3 * 2
    pairs = [validity.changes_and_terms(pool.losses, point.phi, 0.05) for pool in pools]
    for task in range(2):
        for i in validity.STEPS:
            change, own = pairs[task][i - 2]
            other = pairs[1 - task][i - 2][1]
            assert rows[task, i, "own"]["q"] == pytest.approx(validity.agreement(change, own)["q"])
            assert rows[task, i, "another task's"]["cosine"] == pytest.approx(
                validity.agreement(change, other)["cosine"]
            )
    assert rows[0, 2, "own"]["q"] == pytest.approx(1, abs=ROUND_OFF)


def test_explained_shares_on_quadratics_are_exact():
    """Explained shares on quadratics are exact.

    g_2's first order is all there is; g_3 lacks alpha^2 H_3 H_2 g_bar_1, which order 2 adds.
    """
    pool, alpha = quadratic(3), 0.05
    rows = {
        (r["i"], r["order"]): r["explained"]
        for r in validity.explained_shares(pool.losses, pool.phi, [alpha])
    }
    hessians = [hessian(loss)(pool.phi) for loss in pool.losses]
    bars = [grad(loss)(pool.phi) for loss in pool.losses]
    first = -alpha * hessians[2] @ (bars[0] + bars[1])
    second = alpha**2 * hessians[2] @ hessians[1] @ bars[0]
    assert rows[2, 1] == pytest.approx(1, abs=ROUND_OFF)
    change = (first + second).square().sum()
    assert rows[3, 1] == pytest.approx(float(1 - second.square().sum() / change), abs=ROUND_OFF)
    assert rows[3, 2] == pytest.approx(1, abs=ROUND_OFF)


def _table(q=0.8, cosine=0.5, other=0.1, seeds=SEEDS):
    """Return a table of agreements at every step, a little larger for each seed and task.

    q, cosine: the agreement of a task's own term.
    other: the agreement of another task's term.
    """
    levels = {
        "seed": seeds, "iteration": SCALE.iterations, "task": range(4), "i": (2, 3, 4),
        "term": ("own", "another task's"),
    }  # fmt: skip
    table = pd.MultiIndex.from_product(levels.values(), names=levels).to_frame(index=False)
    noise = 0.001 * (table.seed - FIRST_SEED - 2) + 0.001 * table.task
    own = table.term == "own"
    return table.assign(
        q=noise + q * own + other * ~own, cosine=noise + cosine * own + other * ~own
    )


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [
        ({}, ["supported", "supported"]),
        ({"q": 0.3, "cosine": 0.1}, ["refuted", "refuted"]),
        ({"q": 0.6655}, ["undecided", "supported"]),
        ({"other": 0.9}, ["undecided", "undecided"]),  # any task's term agrees
    ],
)
def test_verdicts(numbers, verdicts):
    table = validity.evidence(_table(**numbers), SCALE, SEEDS)
    assert [verdict.decision for verdict in judge(validity.CLAIMS, table)] == verdicts


def test_evidence_is_a_mean_over_tasks_with_its_error():
    table = validity.evidence(_table(), SCALE, SEEDS)
    row = table[
        (table.claim == "taylor-validity")
        & (table["case"] == "g_3, start")
        & (table.role == "check")
    ].iloc[2]
    assert row.seed == FIRST_SEED + 2
    assert row.value == pytest.approx(0.8 + 0.0015)
    assert row.task_error == pytest.approx(0.001 * (5 / 3) ** 0.5 / 2)
    assert row.tasks == 4


def test_a_run_that_diverged_leaves_the_claims_undecided():
    table = validity.evidence(_table(seeds=SEEDS[:4]), SCALE, SEEDS)
    assert {verdict.why for verdict in judge(validity.CLAIMS, table)} == {"runs diverged"}


def test_figure_says_what_the_tables_hold():
    levels = {
        "seed": (FIRST_SEED,), "iteration": SCALE.iterations, "activation": validity.ACTIVATIONS,
        "alpha": (0.0015, 0.003), "i": (2, 3, 4), "order": validity.ORDERS,
    }  # fmt: skip
    shares = pd.MultiIndex.from_product(levels.values(), names=levels).to_frame(index=False)
    shares = shares.assign(task=0, explained=0.25, sharpness=300 * shares.alpha)
    tables = {"validity": _table(), "validity_map": shares}
    drawn = figure.draw(tables, validity.settings(None, replace(SCALE, seeds=len(SEEDS))))[
        "validity"
    ]
    assert "cosine 0.50 at the start, 0.50 at the end" in drawn.get_suptitle()
    assert "explained in 100 %, 100 % of cases" in drawn.get_suptitle()
    assert {text.get_text() for text in drawn.axes[0].texts} == {"25"}
    legend = drawn.axes[-1].get_legend()
    dashed = next(line for line in legend.get_lines() if line.get_linestyle() == "--")
    on, off = dashed._dash_pattern[1][:2]  # in points
    drawn_at = legend.handlelength * legend.get_texts()[0].get_fontsize()
    assert drawn_at >= 3 * on + 2 * off, "fewer than three dashes look solid around a marker"
    assert any(
        f"a picture of one seed, {FIRST_SEED}, and 1 task" in " ".join(t.get_text().split())
        for t in drawn.texts
    )
