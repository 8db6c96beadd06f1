"""Zero-shot: exact averages over labellings against plain loops, the untouched network.

Also the verdict and the figure.
"""

from dataclasses import replace
from itertools import permutations
from math import log
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from analysis.experiments import zero_shot
from analysis.paper import figure_3
from analysis.results.judge import judge
from figures import zero_shot as figure
from reptile_core import meta_gradients
from reptile_core.philox import Purpose
from reptile_core.training import build_network
from tests.helpers.data import generator, image_pool
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

RUN = figure_3.configure(meta_gradients.sum_of(1), FIRST_SEED)


def _logits_and_labels(n_way=3, tasks=2, images=6):
    logits = torch.randn(tasks, images, n_way, generator=generator())
    return logits, torch.arange(images).remainder(n_way).expand(tasks, -1)


def test_deviations_by_plain_loops():
    logits, labels = _logits_and_labels()
    every = [torch.tensor(order)[labels] for order in permutations(range(3))]
    loss, accuracy = torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.float64)
    for dealt in every:
        for task in range(2):
            loss[task] += F.cross_entropy(logits[task].double(), dealt[task], reduction="none") / 6
            accuracy[task] += (logits[task].argmax(-1) == dealt[task]).double() / 6
    found = zero_shot.deviations(logits, labels)
    assert found["accuracy_all"] == pytest.approx(float((accuracy - 1 / 3).abs().max()), abs=1e-12)
    assert found["loss_all"] == pytest.approx(max(0.0, float((log(3) - loss).max())), abs=1e-12)
    one = F.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none")
    assert found["loss_one"] == pytest.approx(float((log(3) - one).clamp(min=0).mean()))
    right = (logits.argmax(-1) == labels).double().mean()
    assert found["accuracy_one"] == pytest.approx(float((right - 1 / 3).abs()))


def test_averages_over_all_labellings_are_exact_and_over_some_are_not(monkeypatch):
    logits, labels = _logits_and_labels()
    found = zero_shot.deviations(logits, labels)
    assert max(found["accuracy_all"], found["loss_all"]) < 1e-9
    monkeypatch.setattr(zero_shot, "permutations", lambda classes: list(permutations(classes))[:-1])
    found = zero_shot.deviations(logits, labels)
    assert found["accuracy_all"] > 1e-9


def test_a_network_that_ignores_its_images_would_pass_the_control():
    logits, labels = torch.zeros(2, 6, 3), _logits_and_labels()[1]
    found = zero_shot.deviations(logits, labels)
    assert max(found["accuracy_one"], found["loss_one"]) < 1e-9


def test_spread_is_that_of_dealing_labels():
    """The spread is that of dealing labels.

    Four tasks are all classified alike.
    The accuracy of one deal is then the share of places that a random permutation keeps.
    """
    logits = F.one_hot(torch.arange(3)).double().expand(4, 3, 3)
    found = zero_shot.before_adaptation(logits, torch.arange(3).expand(4, -1))
    matches = torch.tensor(
        [sum(i == j for i, j in enumerate(order)) / 3 for order in permutations(range(3))]
    )
    assert found["accuracy_spread"] == pytest.approx(float((matches.var(correction=0) / 4).sqrt()))
    assert found["accuracy_before"] == 1


@pytest.mark.parametrize("is_last", [False, True])
def test_measures_the_untouched_network(is_last):
    pool, phi = image_pool(classes=12, dtype=torch.float32), build_network(RUN).initialize(0)
    point = SimpleNamespace(
        job=SimpleNamespace(run=RUN), phi=phi, is_last=is_last, pool={"test": pool}.__getitem__,
        row=lambda quantity, value: {"quantity": quantity, "value": value},
    )  # fmt: skip
    rows = {
        r["quantity"]: r["value"]
        for r in zero_shot.measure(point, lambda _: None, tasks=3, adapted_tasks=1)
    }
    correct, losses = [], []
    for task in range(3):
        drawn = pool.sample(
            figure_3.EVALUATION,
            seed=FIRST_SEED,
            purpose=Purpose.EVALUATION,
            iteration=0,
            task=task,
            test_shots=1,
        )
        batch = pool.minibatch(drawn.support)
        logits = build_network(RUN)(phi, batch.x)
        correct.append((logits.argmax(-1) == batch.y).double().mean())
        losses.append(F.cross_entropy(logits, batch.y))
    assert rows["accuracy_before"] == pytest.approx(float(torch.stack(correct).mean()))
    # With tasks as lanes, float32 sums have another order: a few 1e-7 of logits of size 1, through
    # batch norms.
    assert rows["loss_before"] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-3)
    assert ("loss_after" in rows) == ("accuracy_all" in rows) == is_last
    if is_last:
        assert rows["loss_after"] < rows["loss_before"]
        assert rows["accuracy_after"] > rows["accuracy_before"]
        assert max(rows["accuracy_all"], rows["loss_all"]) < 1e-9


def _table(**changed):
    """Return a table of every variant at the start and at the end, in two seeds."""
    before = {"accuracy_before": 0.2, "loss_before": 2.0, "accuracy_spread": 0.01}
    end = {
        "accuracy_after": 0.9, "loss_after": 0.1, "accuracy_all": 1e-17, "loss_all": 0.0,
        "accuracy_one": 0.01, "loss_one": 0.2,
    }  # fmt: skip
    rows = [
        {
            "variant": v.name,
            "seed": seed,
            "iteration": iteration,
            "quantity": quantity,
            "value": value,
        }
        for v in meta_gradients.figure_3()
        for seed in (FIRST_SEED, FIRST_SEED + 1)
        for iteration, part in ((0, before), (10, before | end | changed))
        for quantity, value in part.items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "supported"),
        ({"accuracy_all": 1e-3}, "refuted"),
        ({"loss_all": 1e-3}, "refuted"),
        ({"accuracy_one": 0.0}, "undecided"),
        ({"loss_one": 0.0}, "undecided"),
    ],
)
def test_verdict(changed, verdict):
    (found,) = judge([zero_shot.CLAIM], zero_shot.evidence(_table(**changed), FIRST_SEED))
    assert found.decision == verdict
    assert len(found.cases) == 2 * 10


def test_variants_are_those_of_the_scales_minibatches():
    assert [v.name for v in zero_shot.SCALES["quick"].variants] == [
        "g1", "g1+g2", "(g1+g2)/2", "g2", "g1+g2+g3+g4", "(g1+g2+g3+g4)/4", "g4"
    ]  # fmt: skip
    assert len(zero_shot.SCALES["paper"].variants) == 10


def test_figure_says_what_the_table_holds():
    settings = zero_shot.settings(None, replace(zero_shot.SCALES["smoke"], seeds=2))
    drawn = figure.draw({"zero_shot": _table()}, settings)["zero_shot"]
    assert drawn.get_suptitle() == "Before adaptation accuracy is 20 … 20 %, whatever is trained"
    band = drawn.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((20 - 2 / 2**0.5, 20 + 2 / 2**0.5))
