"""Inner products along training and after one step: against stacked gradients and loops over pairs and orders.

ROUND_OFF: float64, a few hundred operations on numbers about 1.
"""

from itertools import combinations, permutations, product
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.func import grad

from analysis.claims import INCONCLUSIVE, REFUTED, SUPPORTED, ledger
from analysis.experiments import ablation, inner_products
from analysis.tables import over_seeds
from analysis.theory.losses import quadratic, tanh_network
from figures import inner_products as figure
from reptile_core.meta_gradients import total
from reptile_core.philox import Purpose
from reptile_core.training import build_network
from tests.cases import assert_close, image_pool

matplotlib.use("Agg")

ROUND_OFF = 1e-12
RUN = ablation.configure(total(4), ablation.SCALES["smoke"], 3)


def _point(iteration=7):
    """A point of a run on made-up images, as far as the measurement looks at it."""
    pools = {
        part: image_pool(classes=12, dtype=torch.float32, seed=seed) for seed, part in enumerate(("train", "test"))
    }
    phi = build_network(RUN).initialize(0)
    return SimpleNamespace(
        job=SimpleNamespace(run=RUN, variant="g1+g2+g3+g4"), iteration=iteration, phi=phi, pool=pools.__getitem__
    )


def _cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def test_a_task_is_cut_into_all_its_disjoint_minibatches():
    assert RUN.sampling == inner_products.SAMPLING  # of Reptile with 4 steps, in figure 3
    assert inner_products.REPTILE in inner_products.VARIANTS
    assert {v.k for v in inner_products.VARIANTS} == {1, 2, 4}


@pytest.mark.parametrize("characters", ["train", "test"])
def test_losses_are_of_the_same_tasks_at_every_point(characters):
    phi, pool = _point().phi, _point().pool(characters)
    drawn = pool.sample(RUN.sampling, seed=3, purpose=Purpose.ANALYSIS, iteration=0, task=1)
    losses = inner_products.losses_of(_point(iteration=9), characters, 2)
    assert [len(mine) for mine in losses] == [4, 4]
    for loss, examples in zip(losses[1], drawn.minibatches, strict=True):
        batch = pool.minibatch(examples)
        expected = F.cross_entropy(build_network(RUN)(phi, batch.x), batch.y, reduction="sum")
        assert float(loss(phi)) == pytest.approx(float(expected), rel=1e-5)  # float32


def test_gram_matrices_before_and_after_adaptation():
    """Two tasks of three minibatches; each adapts to its first, and its others are taken where that ends."""
    pool, alpha = tanh_network(6), 0.3
    losses = [pool.losses[:3], pool.losses[3:]]
    before, after = inner_products.grams(losses, pool.phi, alpha=alpha, steps=2)
    bars = torch.stack([grad(loss)(pool.phi) for loss in pool.losses])
    assert_close(before, bars @ bars.T, ROUND_OFF)
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
    rows = {(r["quantity"], r["pairs"]): r["value"] for r in inner_products.summaries(gram, 3)}

    def mean(pairs):
        return sum(_cosine(*pair) for pair in pairs) / len(pairs)

    def of(groups):
        within = [pair for group in groups for pair in combinations(group, 2)]
        return mean(within), mean([pair for two in combinations(groups, 2) for pair in product(*two)])

    within, between = of([gradients[:3], gradients[3:6], gradients[6:]])
    alike, unlike = of([gradients[number::3] for number in range(3)])
    expected = {
        "within": within, "between": between, "difference": within - between, "by number": alike - unlike
    }  # fmt: skip
    for pairs, value in expected.items():
        assert rows["cosine", pairs] == pytest.approx(value, abs=ROUND_OFF)
    assert rows["inner product", "self"] == pytest.approx(float(sum(g @ g for g in gradients)) / 9, rel=ROUND_OFF)
    ends = [pair for start in (0, 3, 6) for pair in combinations(gradients[start : start + 3], 2)]
    assert rows["inner product", "within"] == pytest.approx(float(sum(a @ b for a, b in ends)) / 9, rel=ROUND_OFF)


def test_measure_tells_every_quantity_of_a_point():
    rows, gram = inner_products.measure((_point(), "test"), lambda _: None, tasks=3)
    assert gram.shape == (12, 12)
    table = pd.DataFrame(rows)
    assert set(table.when) == {"before", "after"}
    assert set(table.characters) == {"test"}
    assert set(table.iteration) == {7}
    before = table[(table.when == "before") & (table.pairs == "self")].value.item()
    assert before == pytest.approx(float(gram.diagonal().mean()), rel=1e-6)
    assert len(table) == 2 * 9


def test_a_step_is_along_what_the_expected_update_has_beyond_avg_grad():
    """By plain loops over all orders, on a network; lengths equal; first order in the step's length."""
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

    rows = {(r["direction"], r["quantity"]): r for r in inner_products.step_effects(pool.losses, pool.phi, alpha)}
    beyond = update - k * avg_grad
    for direction, u in (("beyond", beyond), ("opposite", -beyond), ("AvgGrad", avg_grad)):
        before, after = means(pool.phi), means(pool.phi - length * u / u.norm())
        for quantity in before:
            row = rows[direction, quantity]
            assert row["before"] == pytest.approx(before[quantity], rel=1e-10)
            # the difference of two means of which ten digits are right
            assert row["after"] - row["before"] == pytest.approx(after[quantity] - before[quantity], rel=1e-6)


def test_a_step_on_quadratics_raises_the_inner_product():
    """There the part beyond AvgGrad is -alpha k (k-1)/2 AvgGradInner and terms in alpha^2, and the sign is certain."""
    pool = quadratic(4)
    rows = {
        r["direction"]: r["after"] - r["before"]
        for r in inner_products.step_effects(pool.losses, pool.phi, 1e-3)
        if r["quantity"] == "inner product"
    }
    assert rows["beyond"] > 0 > rows["opposite"]


def test_changes_are_of_means_over_tasks():
    where = {"seed": 0, "iteration": 0, "direction": "beyond"}
    steps = pd.DataFrame(
        where | {"task": task, "quantity": quantity, "before": before, "after": after}
        for quantity in ("inner product", "cosine")
        for task, (before, after) in enumerate([(1.0, 2.0), (3.0, 4.0)])
    )
    found = inner_products.changes(steps).set_index("quantity").value
    assert found["inner product"] == pytest.approx(0.5)  # 3 / 2 - 1
    assert found["cosine"] == pytest.approx(1.0)


def _tables(rise, between_rise, change):
    """Cosines within tasks rise by `rise` for k > 1, those between by `between_rise`, in training; nothing for g1."""
    noise = {0: -0.001, 1: 0.0, 2: 0.001}
    rows = [
        {
            "variant": v.name, "seed": seed, "iteration": iteration, "characters": characters, "when": when,
            "quantity": quantity, "pairs": pairs, "value": start + (v.k > 1) * (iteration / 10) * (up + noise[seed]),
        }
        for v in inner_products.VARIANTS
        for seed in noise
        for iteration in (0, 10)
        for characters in ("train", "test")
        for when in ("before", "after")
        for quantity in ("cosine", "inner product")
        for pairs, start, up in (
            ("within", 0.2, rise), ("between", 0.0, between_rise), ("difference", 0.2, rise - between_rise),
            ("by number", 0.0, (between_rise - rise) / 6), ("self", 1.0, 0.0),
        )
    ]  # fmt: skip
    steps = [
        {"seed": seed, "iteration": iteration, "task": 0, "direction": direction, "quantity": quantity, "before": 2.0,
         "after": 2.0 * (1 + by + noise[seed])}
        for seed in noise
        for iteration in (0, 10)
        for direction, by in (("beyond", change), ("opposite", -change), ("AvgGrad", -0.1))
        for quantity in ("inner product", "cosine", "squared norm")
    ]  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(steps)


@pytest.mark.parametrize(
    ("rise", "between_rise", "change", "verdicts"),
    [
        (0.3, 0.0, 0.02, [SUPPORTED, SUPPORTED]),
        (0.0, 0.0, -0.02, [REFUTED, REFUTED]),
        (0.05, 0.0, 0.0, [INCONCLUSIVE, INCONCLUSIVE]),
        (0.3, 0.3, 0.02, [REFUTED, SUPPORTED]),  # a rise that pairs from different tasks have as well
    ],
)
def test_verdicts(rise, between_rise, change, verdicts):
    rows = pd.DataFrame(inner_products.measurements(*_tables(rise, between_rise, change)))
    assert list(ledger(inner_products.CLAIMS, rows).verdict) == verdicts


def test_only_training_characters_before_adaptation_are_judged():
    rows = pd.DataFrame(inner_products.measurements(*_tables(0.3, 0.0, 0.02)))
    rises = rows[rows.claim == "inner-product-rises"]
    assert len(rises[rises.role == "check"]) == 2 * 4
    assert all("train" in case for case in rises[rises.role == "check"].case)


def test_one_seed_judges_nothing():
    table, steps = (part[part.seed == 0] for part in _tables(0.3, 0.0, 0.02))
    rows = pd.DataFrame(inner_products.measurements(table, steps))
    assert SUPPORTED not in set(ledger(inner_products.CLAIMS, rows).verdict)


def test_figures_say_what_the_tables_hold():
    table, steps = _tables(0.3, 0.0, 0.02)
    point = SimpleNamespace(job=SimpleNamespace(variant="g1+g2", run=SimpleNamespace(seed=0)), iteration=0)
    gram = 4 * torch.eye(8)
    gram[0, 1] = gram[1, 0] = 2.0
    tables = {
        "inner_products_intervals": over_seeds(
            table, ["variant", "characters", "when", "quantity", "pairs", "iteration"]
        ),
        "inner_products_changes": over_seeds(
            inner_products.changes(steps), ["direction", "quantity", "iteration"]
        ),
        "inner_products_gram": inner_products.gram_table([(point, gram)]),
    }  # fmt: skip
    settings = inner_products.settings(SimpleNamespace(profile="smoke", seeds=3))
    figures = figure.draw(tables, settings)
    assert "0.20 before meta-training, 0.20 after joint" in figures["inner_products"].get_suptitle()
    assert "0.50 after Reptile" in figures["inner_products"].get_suptitle()
    within = 2 * 0.5 / (2 * 4 * 3)  # two tasks of four minibatches: one aligned pair, both ways
    assert f"{within:.2f}, 0.00 (before)" in figures["inner_products_gram"].get_suptitle()
    assert "+2 % before training, +2 % after it" in figures["inner_products_steps"].get_suptitle()
