"""Variance of the updates: updates against a plain loop, estimates against simulation, verdicts.

ROUND_OFF: float64, through batch norms, where cancellation costs a few digits.
"""

from dataclasses import replace
from math import exp, log
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest
import torch

from analysis.experiments import variance
from analysis.paper import figure_3
from analysis.results.judge import judge
from analysis.theory.expectations import monte_carlo
from figures import variance as figure
from reptile_core.inner_loop import SGD
from reptile_core.losses import CrossEntropy
from reptile_core.meta_gradients import last, sum_of
from reptile_core.networks import omniglot
from reptile_core.philox import Purpose
from reptile_core.training import build_network
from tests.helpers import oracles
from tests.helpers.data import assert_close, generator, image_pool, minibatches, pairs
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

ROUND_OFF = 1e-9
SCALE = variance.SCALES["quick"]
SEEDS = range(FIRST_SEED, FIRST_SEED + 5)


def test_updates_are_those_of_a_plain_loop():
    network, alpha, batches = omniglot(5), 0.003, minibatches(4)
    module, phi = oracles.omniglot_module(5), network.initialize(0, dtype=torch.float64)
    found = variance.updates(CrossEntropy(network, reduction="sum"), phi, batches, SGD(alpha))
    optimizer = oracles.sgd(alpha)(list(module.parameters()))
    g = oracles.inner_loop(module, phi, pairs(batches), optimizer).gradients
    expected = [sum(w * x for w, x in zip(v.weights, g, strict=False)) for v in variance.SUMS]
    expected += [
        oracles.maml_gradient(module, phi, pairs(batches[:k]), lambda at, g: at - alpha * g)
        for k in (2, 3, 4)
    ]
    assert len(found) == len(variance.UPDATES) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs, ROUND_OFF)


def test_estimates_are_unbiased():
    """Estimates are unbiased, for six Gaussian vectors of known variances, drawn 5,000 times.

    Dividing by n would be off by a sixth.
    """
    mean, scale, n, times = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.5, 1.0, 2.0]), 6, 5_000
    g = generator()
    found = torch.tensor(
        [
            float(variance.noise(monte_carlo(lambda: _draw(mean, scale, g), n)[1], n))
            for _ in range(times)
        ]
    )
    error = float(found.std()) / times**0.5
    true = float(scale.square().sum())
    assert abs(float(found.mean()) - true) < 4 * error < true / n


def _draw(mean, scale, g):
    return (mean + scale * torch.randn(3, generator=g)).unsqueeze(0)


def test_measure_is_over_training_tasks_of_the_point():
    run = figure_3.configure(sum_of(4), 3)
    pool = image_pool(classes=12, dtype=torch.float32)
    phi = build_network(run).initialize(0)
    point = SimpleNamespace(
        job=SimpleNamespace(run=run), iteration=7, phi=phi, pool={"train": pool}.__getitem__
    )
    rows = {row["update"]: row for row in variance.measure(point, lambda _: None, tasks=2)}
    loss = CrossEntropy(build_network(run), reduction="sum")
    both = []
    for task in range(2):
        drawn = pool.sample(run.sampling, seed=3, purpose=Purpose.ANALYSIS, iteration=7, task=task)
        both.append(
            variance.updates(
                loss, phi, [pool.minibatch(b) for b in drawn.minibatches], SGD(0.003)
            ).double()
        )
    noise = (both[0] - both[1]).square().sum(-1) / 2
    # Multiples of AvgGrad in the mean of an update, where they are not 1.
    shares = {"g1+g2": 2.0, "g1+g2+g3": 3.0, "g1+g2+g3+g4": 4.0}
    for i, name in enumerate(variance.UPDATES):
        per_unit = shares.get(name, 1.0) ** 2
        size = float(both[0][i].square().sum())  # float32, relative to the subtracted numbers
        assert rows[name]["noise"] * per_unit == pytest.approx(float(noise[i]), abs=1e-5 * size)


def test_logs_are_means_over_the_points():
    table = pd.DataFrame(
        {
            "update": "g1",
            "seed": [0, 0, 1, 1],
            "iteration": [0, 5, 0, 5],
            "noise": [1.0, 4.0, 9.0, 1.0],
        }
    )
    assert list(variance.log_noise(table)["g1"]) == pytest.approx([log(2), log(3)])


def _table(*, last_over_sum=2.0, maml_over_sum=4.0, sum_over_joint=0.5, seeds=SEEDS):
    """Return a table of noise per unit of AvgGrad, in which g1's is 1.

    Rivals have a factor for each seed.
    """
    rows = []
    for seed in seeds:
        of_rival = exp(0.01 * (seed - SEEDS[2]))
        noise = {"g1": 1.0}
        for k, name in zip(variance.STEPS, variance.MAML_NAMES, strict=True):
            noise[sum_of(k).name] = sum_over_joint
            noise[last(k).name] = sum_over_joint * last_over_sum * of_rival
            noise[name] = sum_over_joint * maml_over_sum * of_rival
        rows += [
            {"update": name, "seed": seed, "iteration": 600, "noise": value}
            for name, value in noise.items()
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [
        ({}, ["supported", "supported"]),
        ({"last_over_sum": 0.9}, ["refuted", "supported"]),
        ({"maml_over_sum": 1.0}, ["supported", "refuted"]),
        ({"maml_over_sum": 1.06}, ["supported", "undecided"]),
        # Here g1 alone has no more noise than the sum.
        ({"sum_over_joint": 1.0}, ["undecided", "undecided"]),
    ],
)
def test_verdicts(numbers, verdicts):
    table = variance.evidence(_table(**numbers), SCALE, SEEDS)
    assert [verdict.decision for verdict in judge(variance.CLAIMS, table)] == verdicts


def test_evidence_is_the_log_of_the_ratio_and_controls_have_the_names_of_their_checks():
    table = variance.evidence(_table(), SCALE, SEEDS)
    middle = table[(table.claim == "variance-last") & (table.seed == SEEDS[2])]
    assert list(middle[middle.role == "check"].value) == pytest.approx([log(2)] * 3)
    assert list(middle[middle.role == "control"].value) == pytest.approx([0.0] * 3)
    assert list(middle[middle.role == "check"]["case"]) == list(
        middle[middle.role == "control"]["case"]
    )


def test_a_run_that_diverged_leaves_the_claims_undecided():
    table = variance.evidence(_table(seeds=SEEDS[:4]), SCALE, SEEDS)
    assert {verdict.why for verdict in judge(variance.CLAIMS, table)} == {"runs diverged"}


def test_noise_is_drawn_relative_to_that_of_joint_training():
    table = _table()
    table.loc[table.seed == SEEDS[0], "noise"] *= 7  # a factor that a seed gives to all updates
    found = variance.relative(table).set_index("update")
    assert found["mean"]["g1"] == found.low["g1"] == found.high["g1"] == 1
    assert found["mean"]["g4"] == pytest.approx(1.0)
    assert found.low["g4"] < 1 < found.high["g4"]


@pytest.mark.parametrize("iterations", [(600,), (0, 600)])
def test_figure_says_what_the_tables_hold(iterations):
    relative = variance.relative(pd.concat([_table().assign(iteration=i) for i in iterations]))
    settings = variance.settings(None, replace(SCALE, seeds=len(SEEDS)))
    drawn = figure.draw({"variance_relative": relative}, settings)["variance"]
    assert (
        drawn.get_suptitle()
        == "Noise after 600 iterations, k = 4: FOMAML 2, MAML 4 times Reptile's"
    )
    line = next(line for line in drawn.axes[0].lines if line.get_label() == "Reptile")
    assert line.get_ydata() == pytest.approx([0.5] * 3)
    title = drawn._suptitle.get_window_extent(drawn.canvas.get_renderer())
    assert title.x1 <= 0.97 * drawn.bbox.width  # room for larger numbers
    assert len(drawn.axes) == len(iterations)
