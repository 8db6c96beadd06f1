"""Inner products along training and after one step, against plain loops.

The loops run over stacked gradients, pairs and orders.
ROUND_OFF: float64, a few hundred operations on numbers about 1.
"""

from dataclasses import dataclass, replace
from itertools import combinations, permutations, product
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.func import grad

from analysis.experiments import inner_products
from analysis.experiments import inner_products_measuring as measuring
from analysis.experiments.inner_products_claims import CLAIMS
from analysis.experiments.shared.trained_points import TrainedPoint
from analysis.paper import figure_3
from analysis.results.judge import judge
from analysis.results.tables import over_seeds
from analysis.theory.inner_products import gradient_gram
from analysis.theory.losses import quadratic, tanh_network
from figures import inner_products as figure
from reptile_core.meta_gradients import sum_of
from reptile_core.philox import Purpose
from reptile_core.training import build_network
from tests.helpers.data import assert_close, image_pool
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

ROUND_OFF = 1e-12
RUN = figure_3.configure(sum_of(4), 3)
SCALE = inner_products.SCALES["smoke"]
SEEDS = range(FIRST_SEED, FIRST_SEED + 5)


def _point(iteration=7):
    """Return what the measurement uses of a point of a run, on made-up images."""
    pools = {
        part: image_pool(classes=12, dtype=torch.float32, seed=seed)
        for seed, part in enumerate(("train", "test"))
    }
    phi = build_network(RUN).initialize(0)
    return SimpleNamespace(
        job=SimpleNamespace(run=RUN, variant="g1+g2+g3+g4"),
        iteration=iteration,
        phi=phi,
        pool=pools.__getitem__,
    )


def _cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_a_task_is_cut_into_all_its_disjoint_minibatches():
    assert RUN.sampling == measuring.SAMPLING  # figure 3's sampling for Reptile with 4 steps
    assert inner_products.REPTILE in inner_products.VARIANTS
    assert {v.k for v in inner_products.VARIANTS} == {1, 2, 4}


@pytest.mark.parametrize("characters", ["train", "test"])
def test_losses_are_of_the_same_tasks_at_every_point(characters):
    phi, pool = _point().phi, _point().pool(characters)
    drawn = pool.sample(RUN.sampling, seed=3, purpose=Purpose.ANALYSIS, iteration=0, task=1)
    losses = measuring.losses_of(_point(iteration=9), characters, 2)
    assert [len(mine) for mine in losses] == [4, 4]
    for loss, examples in zip(losses[1], drawn.minibatches, strict=True):
        batch = pool.minibatch(examples)
        expected = F.cross_entropy(build_network(RUN)(phi, batch.x), batch.y, reduction="sum")
        assert float(loss(phi)) == pytest.approx(float(expected), rel=1e-5)  # float32


def test_gram_matrix_after_adaptation():
    """The Gram matrix after adaptation is that of stacked gradients.

    Two tasks have three minibatches each.
    Each task adapts to its first, and the gradients of the others are taken at the end point.
    """
    pool, alpha = tanh_network(6), 0.3
    losses = [pool.losses[:3], pool.losses[3:]]
    after = measuring.adapted_gram(losses, pool.phi, alpha=alpha, steps=2)
    moved = []
    for first, *others in losses:
        phi = pool.phi - alpha * grad(first)(pool.phi)
        phi = phi - alpha * grad(first)(phi)
        moved += [grad(loss)(phi) for loss in others]
    assert_close(after, torch.stack(moved) @ torch.stack(moved).T, ROUND_OFF)


def test_summaries_are_means_over_pairs():
    pool = tanh_network(9)
    gradients = [grad(loss)(pool.phi) for loss in pool.losses]
    gram = torch.stack(gradients) @ torch.stack(gradients).T
    rows = {(r["quantity"], r["pairs"]): r["value"] for r in measuring.summaries(gram, 3)}

    def mean(pairs):
        return sum(_cosine(*pair) for pair in pairs) / len(pairs)

    groups = [gradients[:3], gradients[3:6], gradients[6:]]
    within = mean([pair for group in groups for pair in combinations(group, 2)])
    between = mean([pair for two in combinations(groups, 2) for pair in product(*two)])
    expected = {"within": within, "between": between, "difference": within - between}
    for pairs, value in expected.items():
        assert rows["cosine", pairs] == pytest.approx(value, abs=ROUND_OFF)
    assert rows["inner product", "self"] == pytest.approx(
        float(sum(g @ g for g in gradients)) / 9, rel=ROUND_OFF
    )
    ends = [pair for start in (0, 3, 6) for pair in combinations(gradients[start : start + 3], 2)]
    assert rows["inner product", "within"] == pytest.approx(
        float(sum(a @ b for a, b in ends)) / 9, rel=ROUND_OFF
    )


def test_rise_is_the_change_of_the_difference_with_its_own_error():
    """The rise is the change of the difference between two points, with an error of its own.

    Both points have the same three tasks.
    The error, by leaving out a task, is that of the change.
    """

    def difference(phi, kept):
        g = [grad(loss)(phi) for loss in pool.losses]
        groups = [g[3 * task : 3 * task + 3] for task in kept]
        within = [_cosine(*pair) for group in groups for pair in combinations(group, 2)]
        between = [_cosine(*pair) for two in combinations(groups, 2) for pair in product(*two)]
        return sum(within) / len(within) - sum(between) / len(between)

    pool = tanh_network(9)
    ends = pool.phi, 0.5 * pool.phi
    start, end = (gradient_gram(pool.losses, phi) for phi in ends)
    found = measuring.rise(start, end, 3)
    all_tasks = range(3)
    assert found.value == pytest.approx(
        difference(ends[1], all_tasks) - difference(ends[0], all_tasks), abs=ROUND_OFF
    )
    without = [[task for task in all_tasks if task != out] for out in all_tasks]
    each = torch.tensor([difference(ends[1], kept) - difference(ends[0], kept) for kept in without])
    assert found.standard_error == pytest.approx(
        float((2 * each.var(correction=0)).sqrt()), rel=1e-5
    )


@pytest.mark.parametrize("after_adaptation", [False, True])
def test_measure_tells_every_quantity_of_a_point(after_adaptation):
    item = (_point(), "test")
    rows, gram = measuring.measure(item, lambda _: None, tasks=3, after_adaptation=after_adaptation)
    assert gram.shape == (12, 12)
    table = pd.DataFrame(rows)
    assert set(table.when) == ({"before", "after"} if after_adaptation else {"before"})
    assert set(table.characters) == {"test"}
    assert set(table.iteration) == {7}
    before = table[(table.when == "before") & (table.pairs == "self")].value.item()
    assert before == pytest.approx(float(gram.diagonal().mean()), rel=1e-6)
    assert len(table) == (1 + after_adaptation) * 7


def test_the_start_of_a_seeds_runs_is_measured_once():
    every = [
        _named(variant, seed, iteration)
        for seed in (0, 1)
        for variant in ("g1", "g2")
        for iteration in (0, 4)
    ]
    chosen = inner_products.same_phi(every)
    assert list(chosen) == every
    assert chosen[every[2]] == every[0]
    assert chosen[every[6]] == every[4]
    assert len(set(chosen.values())) == 6


@dataclass(frozen=True)
class _Run:
    seed: int


@dataclass(frozen=True)
class _Job:
    variant: str
    run: _Run


def _named(variant, seed, iteration):
    return TrainedPoint(_Job(variant, _Run(seed)), iteration)


def test_a_step_is_along_what_the_expected_update_has_beyond_avg_grad():
    """A step goes along the part of the expected update that AvgGrad does not explain.

    Expected values come from plain loops over all orders, on a network.
    Steps in all directions have the same length.
    """
    pool, alpha, k = tanh_network(3), 0.05, 3
    sums = []
    for order in permutations(pool.losses):
        phi, update = pool.phi, 0
        for loss in order:
            g = grad(loss)(phi)
            phi, update = phi - alpha * g, update + g
        sums.append(update)
    update = torch.stack(sums).mean(0)
    avg_grad = torch.stack([grad(loss)(pool.phi) for loss in pool.losses]).mean(0)
    length = 0.1 * 0.25 * alpha * update.norm()

    def means(phi):
        g = [grad(loss)(phi) for loss in pool.losses]
        pairs = list(combinations(g, 2))
        return {
            "inner product": float(sum(a @ b for a, b in pairs)) / len(pairs),
            "cosine": sum(_cosine(*pair) for pair in pairs) / len(pairs),
            "squared norm": float(sum(x @ x for x in g)) / len(g),
        }

    rows = {
        (r["direction"], r["quantity"]): r
        for r in measuring.step_effects(pool.losses, pool.phi, alpha)
    }
    beyond = update - k * avg_grad
    for direction, u in (("beyond", beyond), ("opposite", -beyond), ("AvgGrad", avg_grad)):
        before, after = means(pool.phi), means(pool.phi - length * u / u.norm())
        for quantity in before:
            row = rows[direction, quantity]
            assert row["before"] == pytest.approx(before[quantity], rel=1e-10)
            # The means are right to ten digits, their difference to six.
            assert row["after"] - row["before"] == pytest.approx(
                after[quantity] - before[quantity], rel=1e-6
            )


def test_a_step_on_quadratics_raises_the_inner_product():
    """A step along the part beyond AvgGrad raises the inner product on quadratics.

    There that part is -alpha k (k-1)/2 AvgGradInner and terms in alpha^2: its sign is certain.
    """
    pool = quadratic(4)
    rows = {
        r["direction"]: r["after"] - r["before"]
        for r in measuring.step_effects(pool.losses, pool.phi, 1e-3)
        if r["quantity"] == "inner product"
    }
    assert rows["beyond"] > 0 > rows["opposite"]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(3.0, 5.0, 0.25), (-1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (0.0, 2.0, 1.0), (0.0, 0.0, 0.0)],
)
def test_bounded_change(before, after, change):
    assert inner_products.bounded_change(before, after) == pytest.approx(change)


def test_changes_are_of_means_over_tasks():
    tasks = [(1.0, 2.0), (3.0, 4.0), (2.0, 6.0)]
    where = {"seed": 0, "iteration": 0, "direction": "beyond"}
    steps = pd.DataFrame(
        where | {"task": task, "quantity": quantity, "before": before, "after": after}
        for quantity in ("inner product", "cosine")
        for task, (before, after) in enumerate(tasks)
    )
    found = inner_products.changes(steps).set_index("quantity")
    assert found.value["inner product"] == pytest.approx((12 - 6) / (12 + 6))
    assert found.value["cosine"] == pytest.approx(2.0)
    without = np.array([(10 - 5) / 15, (8 - 3) / 11, (6 - 4) / 10])  # leaving one task out
    assert found.task_error["inner product"] == pytest.approx((2 * without.var()) ** 0.5)
    assert found.task_error["cosine"] == pytest.approx(1.0)  # of 1, 1, 4: sqrt(3 / 3)


def _noise(seed):
    return 0.001 * (seed - SEEDS[2])


def _tables(sums=0.3, lasts=0.3, joint=0.0, beyond=0.02, avg_grad=-0.1, seeds=SEEDS):
    """Return made-up tables: inner products along training, rises and changes.

    Rises of the difference of cosines are given by kind of variant.
    Changes of the inner product are given by direction of a step.
    """
    of_kind = {"joint": joint, "sum": sums, "last": lasts}
    rises = [
        {
            "variant": v.name,
            "seed": seed,
            "characters": characters,
            "value": of_kind[v.kind] + _noise(seed),
            "task_error": 0.001,
        }
        for v in inner_products.VARIANTS
        for seed in seeds
        for characters in ("train", "test")
    ]
    along = [
        {
            "variant": v.name, "seed": seed, "iteration": iteration, "characters": characters,
            "when": when, "quantity": quantity, "pairs": pairs,
            "value": 0.2 + 0.1 * (v.k > 1) * (iteration > 0),
        }
        for v in inner_products.VARIANTS
        for seed in seeds
        for iteration in SCALE.iterations
        for characters in ("train", "test")
        for when in ("before", "after")
        for quantity in ("cosine", "inner product")
        for pairs in ("within", "between", "difference", "self")
    ]  # fmt: skip
    changes = [
        {"direction": direction, "quantity": quantity, "iteration": iteration, "seed": seed,
         "value": by + _noise(seed), "task_error": 0.001}
        for direction, by in (("beyond", beyond), ("opposite", -beyond), ("AvgGrad", avg_grad))
        for quantity in ("inner product", "cosine", "squared norm")
        for iteration in SCALE.iterations
        for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(along), pd.DataFrame(rises), pd.DataFrame(changes)


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [
        ({}, ["supported"] * 3),
        ({"sums": 0.0, "lasts": 0.0, "beyond": -0.02}, ["refuted"] * 3),
        ({"sums": 0.05, "beyond": 0.0}, ["undecided", "supported", "undecided"]),
        ({"lasts": 0.0}, ["supported", "refuted", "supported"]),
        ({"joint": 0.4}, ["undecided", "undecided", "supported"]),  # joint training does it as well
        # A step along AvgGrad raises the inner product as well.
        ({"avg_grad": 0.05}, ["supported", "supported", "undecided"]),
    ],
)
def test_verdicts(numbers, verdicts):
    table = inner_products.evidence(*_tables(**numbers), SCALE, SEEDS)
    assert [verdict.decision for verdict in judge(CLAIMS, table)] == verdicts


def test_only_training_characters_before_adaptation_are_judged():
    rows = inner_products.evidence(*_tables(), SCALE, SEEDS)
    judged = rows[rows.role.isin(("check", "control"))]
    cases = judged.groupby("claim", sort=False)["case"].unique().map(list)
    assert cases["inner-product-rises"] == ["g1", "g1+g2", "g1+g2+g3+g4"]
    assert cases["inner-product-rises-last"] == ["g1", "g2", "g4"]
    assert cases["inner-product-step"] == ["after 0 iterations", "after 4 iterations"]
    assert set(rows[rows.role == "shown"]["case"]) >= {
        "g4, test characters",
        "after 4 iterations, opposite",
    }


def test_the_inner_product_is_shown_as_a_bounded_change():
    rows = inner_products.evidence(*_tables(), SCALE, SEEDS)
    shown = rows[rows["case"] == "g1+g2, change of the inner product, bounded"]
    assert list(shown.value) == pytest.approx([0.2] * 5)  # from 0.2 to 0.3: 0.1 / 0.5


def test_a_run_that_diverged_leaves_the_claims_undecided():
    rows = inner_products.evidence(*_tables(seeds=SEEDS[1:]), SCALE, SEEDS)
    assert {verdict.why for verdict in judge(CLAIMS, rows)} == {"runs diverged"}


def test_figures_say_what_the_tables_hold():
    table, _, changes = _tables()
    point, gram = _named("g1+g2", FIRST_SEED, 0), 4 * torch.eye(8)
    gram[0, 1] = gram[1, 0] = 2.0
    tables = {
        "inner_products_intervals": over_seeds(
            table, ["variant", "characters", "when", "quantity", "pairs", "iteration"]
        ),
        "inner_products_changes": over_seeds(changes, ["direction", "quantity", "iteration"]),
        "inner_products_gram": inner_products.gram_table([(point, gram)]),
    }
    settings = inner_products.settings(
        None, replace(inner_products.SCALES["smoke"], seeds=len(SEEDS))
    )
    figures = figure.draw(tables, settings)
    assert "0.20 before meta-training, 0.20 after joint" in figures["inner_products"].get_suptitle()
    assert "0.30 after Reptile" in figures["inner_products"].get_suptitle()
    within = 2 * 0.5 / (2 * 4 * 3)  # two tasks of four minibatches: one aligned pair, both ways
    assert f"{within:.2f}, 0.00 (before)" in figures["inner_products_gram"].get_suptitle()
    assert "+0.02 at the start, +0.02 at the end" in figures["inner_products_steps"].get_suptitle()


def test_figure_without_adaptation_and_test_characters_has_one_row():
    table, _, changes = _tables()
    table = table[(table.when == "before") & (table.characters == "train")]
    by = ["variant", "characters", "when", "quantity", "pairs", "iteration"]
    tables = {
        "inner_products_intervals": over_seeds(table, by),
        "inner_products_changes": over_seeds(changes, ["direction", "quantity", "iteration"]),
        "inner_products_gram": inner_products.gram_table(
            [(_named("g1+g2", FIRST_SEED, i), torch.eye(8)) for i in (0, 4)]
        ),
    }
    settings = inner_products.settings(
        None, replace(inner_products.SCALES["quick"], seeds=len(SEEDS))
    )
    drawn = figure.draw(tables, settings)["inner_products"]
    assert len(drawn.axes) == 3
    assert not any(
        "hollow" in text.get_text() or "adaptation" in text.get_text() for text in drawn.texts
    )


@pytest.mark.parametrize(("tasks", "named"), [(2, 2), (12, 12), (13, 7), (24, 12)])
def test_maps_of_many_tasks_number_some(tasks, named):
    gram = inner_products.gram_table([(_named("g1+g2", FIRST_SEED, 0), torch.eye(4 * tasks))])
    settings = inner_products.settings(None, inner_products.SCALES["smoke"])
    drawn = figure._matrices(gram, settings)
    labels = [label.get_text() for label in drawn.axes[0].get_xticklabels()]
    assert len(labels) == named and labels[0] == "1"
