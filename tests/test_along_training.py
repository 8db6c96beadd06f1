"""Analyses at points of a run: which points, and what is measured there, against naive calculation on a tiny run."""

from math import log

import matplotlib
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from analysis.claims import INCONCLUSIVE, REFUTED, SUPPORTED, ledger
from analysis.experiment import Context
from analysis.experiments import ablation, validity, zero_shot
from analysis.experiments.along_training import points, spread
from analysis.runs import Source
from analysis.theory.losses import quadratic
from analysis.workers import Workers
from figures import validity as validity_figure
from figures import zero_shot as zero_shot_figure
from reptile_core import datasets
from reptile_core.meta_gradients import figure_3, total
from reptile_core.philox import Purpose
from reptile_core.training import build_network

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Points of two variants and two seeds, trained for four iterations."""
    with pytest.MonkeyPatch.context() as patch, Workers(1, quiet=True) as workers:
        patch.setitem(ablation.SCALES, "smoke", ablation.Scale(iterations=4, every=2, tasks=1, seeds=2))
        source = Source("glyphs", None, datasets.load("glyphs").content)
        yield points(Context("smoke", source, workers, tmp_path_factory.mktemp("runs")), [total(1), total(4)])


def test_points_are_where_phi_was_kept(every):
    assert [(p.job.variant, p.job.run.seed, p.iteration) for p in every] == [
        (name, seed, iteration) for seed in (0, 1) for name in ("g1", "g1+g2+g3+g4") for iteration in (0, 2, 4)
    ]
    first = build_network(every[0].job.run).initialize(0)
    assert torch.equal(every[0].phi, first)
    assert not torch.equal(every[2].phi, first)


def test_spread_keeps_both_ends(every):
    assert [p.iteration for p in spread(every, 2)] == [0, 4] * 4
    assert spread(every, 9) == every


def test_losses_are_of_training_tasks_that_the_run_did_not_meet(every):
    point = every[-1]
    (loss, *others), phi = point.losses(point.job.run.sampling, 0, dtype=torch.float64), point.phi.double()
    assert len(others) == 3
    pool, run = point.pool("train", torch.float64), point.job.run
    drawn = pool.sample(run.sampling, seed=run.seed, purpose=Purpose.ANALYSIS, iteration=4, task=0)
    batch = pool.minibatch(drawn.minibatches[0])
    logits = build_network(run)(phi, batch.x)
    assert float(loss(phi)) == pytest.approx(float(F.cross_entropy(logits, batch.y, reduction="sum")), rel=1e-12)
    smooth = point.losses(run.sampling, 0, dtype=torch.float64, activation="softplus")
    assert float(smooth[0](phi)) != pytest.approx(float(loss(phi)), rel=1e-3)


def test_zero_shot_is_the_untouched_network(every):
    point = every[-1]
    rows = {r["quantity"]: r["value"] for r in zero_shot.measure(point, lambda _: None, tasks=3, adapted_tasks=1)}
    run, pool = point.job.run, point.pool("test")
    correct, losses = [], []
    for task in range(3):
        drawn = pool.sample(
            run.evaluation.sampling, seed=run.seed, purpose=Purpose.EVALUATION, iteration=0, task=task, test_shots=1
        )
        batch = pool.minibatch(drawn.support)
        logits = build_network(run)(point.phi, batch.x)
        correct.append((logits.argmax(-1) == batch.y).double().mean())
        losses.append(F.cross_entropy(logits, batch.y))
    assert rows["accuracy_before"] == pytest.approx(float(torch.stack(correct).mean()))
    # float32 sums in another order, tasks as lanes: a few 1e-7 of logits of size 1, through batch norms
    assert rows["loss_before"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-3)
    assert rows["loss_after"] < rows["loss_before"]
    assert rows["accuracy_after"] > rows["accuracy_before"]


def _zero_shot_table(before, loss):
    rows = [
        {"variant": v.name, "seed": seed, "iteration": iteration, "quantity": quantity, "value": value}
        for v in figure_3()
        for seed in range(3)
        for iteration in (0, 10)
        for quantity, value in (
            ("accuracy_before", before + 0.001 * seed), ("loss_before", loss),
            ("accuracy_after", 0.9), ("loss_after", 0.1),
        )
        if iteration == 10 or "before" in quantity
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("before", "loss", "verdicts"),
    [
        (0.2, log(5), [SUPPORTED, SUPPORTED]),
        (0.5, 0.7 * log(5), [REFUTED, REFUTED]),
        (0.23, log(5) + 1, [INCONCLUSIVE, SUPPORTED]),
    ],
)
def test_zero_shot_verdicts(before, loss, verdicts):
    rows = pd.DataFrame(zero_shot.measurements(_zero_shot_table(before, loss)))
    assert list(ledger(zero_shot.CLAIMS, rows).verdict) == verdicts


def test_explained_shares_on_quadratics_are_exact():
    """g_2's first order is all there is; g_3 lacks alpha^2 H_3 H_2 g_bar_1, which order 2 adds."""
    pool, alpha = quadratic(3), 0.05
    rows = {(r["i"], r["order"]): r["explained"] for r in validity.explained_shares(pool.losses, pool.phi, [alpha])}
    hessians = [torch.func.hessian(loss)(pool.phi) for loss in pool.losses]
    bars = [torch.func.grad(loss)(pool.phi) for loss in pool.losses]
    first = -alpha * hessians[2] @ (bars[0] + bars[1])
    second = alpha**2 * hessians[2] @ hessians[1] @ bars[0]
    assert rows[2, 1] == pytest.approx(1, abs=1e-12)
    assert rows[2, -1] == pytest.approx(-3, abs=1e-12)  # twice the change is left: 1 - 4
    change = (first + second).square().sum()
    assert rows[3, 1] == pytest.approx(float(1 - second.square().sum() / change), abs=1e-12)
    assert rows[3, 2] == pytest.approx(1, abs=1e-12)


def _validity_table(explained):
    """The share that every step at every learning rate explains: `explained`, and a little more for each seed."""
    levels = {
        "seed": range(3), "iteration": (0, 10), "activation": validity.ACTIVATIONS, "alpha": (0.0015, 0.003),
        "i": (2, 3, 4), "order": (-1, 1, 2),
    }  # fmt: skip
    table = pd.MultiIndex.from_product(levels.values(), names=levels).to_frame(index=False)
    shares = (explained + 0.001 * table.seed).where(table.order > 0, -1.0)
    return table.assign(variant="x", task=0, explained=shares, sharpness=300 * table.alpha)


@pytest.mark.parametrize(("explained", "verdict"), [(0.8, SUPPORTED), (0.2, REFUTED), (0.499, INCONCLUSIVE)])
def test_validity_verdicts(explained, verdict):
    rows = pd.DataFrame(validity.measurements(_validity_table(explained)))
    assert list(ledger([validity.CLAIM], rows).verdict) == [verdict]


def test_figures_say_what_the_tables_hold():
    settings = {"learning_rate": 0.003, "variant": "x", "batch": 25, "dtype": "float64", "seeds": 3, "tasks": 1}
    figure = validity_figure.draw({"validity": _validity_table(0.25)}, settings)["validity"]
    assert "explains 25 %" in figure.get_suptitle()
    assert {text.get_text() for text in figure.axes[0].texts} == {"25"}
    settings = {"n_way": 5, "seeds": 3, "tasks": 3, "adapted_tasks": 1}
    figure = zero_shot_figure.draw({"zero_shot": _zero_shot_table(0.2, 2.0)}, settings)["zero_shot"]
    assert figure.get_suptitle() == "Before adaptation accuracy is 20 … 20 %, whatever is trained"
