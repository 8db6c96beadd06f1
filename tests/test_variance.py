"""Variance of the updates: the updates against a plain loop, the estimates against simulation, verdicts.

ROUND_OFF: float64, through batch norms, where cancellation costs a few digits.
"""

from itertools import permutations
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analysis.claims import INCONCLUSIVE, REFUTED, SUPPORTED, ledger
from analysis.experiments import ablation, variance
from analysis.theory.expectations import monte_carlo
from figures import variance as figure
from reptile_core.inner_loop import SGD
from reptile_core.meta_gradients import average, figure_3, last, total
from reptile_core.networks import CrossEntropy, omniglot
from reptile_core.philox import Purpose
from reptile_core.training import build_network
from tests import oracles
from tests.cases import assert_close, generator, image_pool, minibatches, pairs

matplotlib.use("Agg")

ROUND_OFF = 1e-9


def test_updates_are_those_of_a_plain_loop():
    network, alpha, batches = omniglot(5), 0.003, minibatches(4)
    module, phi = oracles.omniglot_module(5), network.initialize(0, dtype=torch.float64)
    found = variance.updates(CrossEntropy(network, reduction="sum"), phi, batches, SGD(alpha))
    optimizer = oracles.sgd(alpha)(list(module.parameters()))
    g = oracles.inner_loop(module, phi, pairs(batches), optimizer).gradients
    expected = [sum(w * x for w, x in zip(v.weights, g, strict=False)) for v in figure_3()]
    expected += [
        oracles.maml_gradient(module, phi, pairs(batches[:k]), lambda at, g: at - alpha * g) for k in (2, 3, 4)
    ]
    assert len(found) == len(variance.UPDATES) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs, ROUND_OFF)


def test_estimates_are_unbiased():
    """5,000 times six Gaussian vectors of known mean and variances; the naive |u_bar|^2 would be off by V / n."""
    mean, scale, n, times = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.5, 1.0, 2.0]), 6, 5_000
    g = generator()
    found = torch.tensor(
        [
            [float(part) for part in variance.signal_and_noise(*monte_carlo(lambda: _draw(mean, scale, g), n), n)]
            for _ in range(times)
        ]
    )
    error = found.std(0) / times**0.5
    true = torch.stack([mean.square().sum(), scale.square().sum()])
    assert ((found.mean(0) - true).abs() < 4 * error).all()
    assert 4 * error[0] < true[1] / n  # small enough to see what is taken off


def _draw(mean, scale, g):
    return (mean + scale * torch.randn(3, generator=g)).unsqueeze(0)


def test_measure_is_over_training_tasks_of_the_point():
    run = ablation.configure(total(4), ablation.SCALES["smoke"], 3)
    pool = image_pool(classes=12, dtype=torch.float32)
    phi = build_network(run).initialize(0)
    point = SimpleNamespace(job=SimpleNamespace(run=run), iteration=7, phi=phi, pool={"train": pool}.__getitem__)
    rows = {row["update"]: row for row in variance.measure(point, lambda _: None, tasks=2)}
    loss = CrossEntropy(build_network(run), reduction="sum")
    both = []
    for task in range(2):
        drawn = pool.sample(run.sampling, seed=3, purpose=Purpose.ANALYSIS, iteration=7, task=task)
        both.append(variance.updates(loss, phi, [pool.minibatch(b) for b in drawn.minibatches], SGD(0.003)).double())
    noise = (both[0] - both[1]).square().sum(-1) / 2
    signal = (both[0] * both[1]).sum(-1)  # for two tasks |u_bar|^2 - V / 2 is u_1 . u_2
    for i, name in enumerate(variance.UPDATES):
        size = float(both[0][i].square().sum())  # float32, relative to what is subtracted
        assert rows[name]["noise"] == pytest.approx(float(noise[i]), abs=1e-5 * size)
        assert rows[name]["signal"] == pytest.approx(float(signal[i]), abs=1e-5 * size)
        assert rows[name]["ratio"] == pytest.approx(rows[name]["signal"] / rows[name]["noise"])


def test_variants_of_an_equal_step_are_averages_and_last_gradients():
    assert [v.name for v in variance.EQUAL_STEP] == [
        "g1", "(g1+g2)/2", "g2", "(g1+g2+g3)/3", "g3", "(g1+g2+g3+g4)/4", "g4"
    ]  # fmt: skip


def test_band_of_the_correlation_is_that_of_random_orders():
    n = len(variance.EQUAL_STEP)
    found = np.array([stats.spearmanr(range(n), order).statistic for order in list(permutations(range(n)))[::7]])
    low = next(claim.low for claim in variance.CLAIMS if claim.id == "variance-speed")
    assert (found >= low).mean() == pytest.approx(1 / 40, abs=0.01)


def test_ratios_are_means_over_the_run():
    table = pd.DataFrame(
        {"update": "g1", "seed": [0, 0, 1, 1], "iteration": [0, 5, 0, 5], "ratio": [0.1, 0.3, 0.0, 0.2]}
    )
    assert list(variance.ratios(table)["g1"]) == pytest.approx([0.2, 0.1])
    found = variance.intervals(table)
    assert list(found["mean"]) == pytest.approx([0.05, 0.25, 0.15])
    assert list(found.iteration[:2]) == [0, 5]
    assert np.isnan(found.iteration.iloc[2])


def test_early_is_a_fifth_of_training_or_two_measurements():
    def curves(end):
        return pd.DataFrame(
            {"variant": "g1", "seed": 0, "iteration": i, "quantity": "accuracy", "value": 0.5 + 0.01 * i}
            for i in range(end + 1)
        )

    assert variance.early_gains(curves(5))["g1", 0] == pytest.approx(0.015)
    assert variance.early_gains(curves(20))["g1", 0] == pytest.approx(0.025)


SCALE_OF = {"joint": 40.0, "sum": 5.0, "average": 5.0, "last": 10.0}


def _tables(*, last_factor=1.0, maml_factor=1.0, order=1):
    """Relative variances: joint 40, sums 5, last gradients 10 and MAML 20, over k; gains in the opposite order."""
    rows, speed = [], []
    for seed in range(3):
        for variant in figure_3():
            value = SCALE_OF[variant.kind] / variant.k * (last_factor if variant.kind == "last" else 1)
            rows.append({"update": variant.name, "seed": seed, "iteration": 0, "ratio": 1 / value})
            speed.append({"variant": variant.name, "seed": seed, "ratio": 1 / value, "gain": -order * value})
        for k, name in zip(variance.STEPS, variance.MAML, strict=True):
            value = 20.0 / k * maml_factor * (1 + 0.01 * seed)
            rows.append({"update": name, "seed": seed, "iteration": 0, "ratio": 1 / value})
    return pd.DataFrame(rows), pd.DataFrame(speed)


@pytest.mark.parametrize(
    ("tables", "verdicts"),
    [
        ({}, [SUPPORTED, SUPPORTED, SUPPORTED]),
        ({"last_factor": 0.4}, [REFUTED, SUPPORTED, SUPPORTED]),
        ({"maml_factor": 0.2}, [SUPPORTED, REFUTED, SUPPORTED]),
        ({"maml_factor": 0.26}, [SUPPORTED, INCONCLUSIVE, SUPPORTED]),
        ({"order": -1}, [SUPPORTED, SUPPORTED, REFUTED]),
    ],
)
def test_verdicts(tables, verdicts):
    rows = pd.DataFrame(variance.measurements(*_tables(**tables)))
    assert list(ledger(variance.CLAIMS, rows).verdict) == verdicts


def test_no_signal_in_the_other_is_lower_variance():
    table, speed = _tables()
    table.loc[table["update"] == last(2).name, "ratio"] = -0.01
    rows = pd.DataFrame(variance.measurements(table, speed))
    assert ledger(variance.CLAIMS, rows).verdict[0] == SUPPORTED


def test_speeds_pair_each_variant_with_its_own_curve():
    table, _ = _tables()
    curves = pd.DataFrame(
        {"variant": v.name, "seed": seed, "iteration": i, "quantity": "accuracy", "value": 0.1 * i * v.k}
        for v in figure_3()
        for seed in range(3)
        for i in range(3)
    )
    found = variance.speeds(table, curves).set_index(["variant", "seed"])
    assert found.gain[average(3).name, 2] == pytest.approx(0.45)
    assert found.ratio["g4", 0] == pytest.approx(0.4)


def test_labels_are_put_apart():
    assert figure.apart([5.0, 1.0, 20.0, 2.0], 3) == [7.0, 1.0, 20.0, 4.0]
    assert figure.apart([], 3) == []


def test_figure_says_what_the_tables_hold():
    table, speed = _tables()
    tables = {"variance_intervals": variance.intervals(table), "variance_speed": speed}
    settings = variance.settings(SimpleNamespace(profile="smoke", seeds=3))
    drawn = figure.draw(tables, settings)["variance"]
    assert "1.2 for Reptile, 2.5 for FOMAML, 5 for MAML, 40 for" in drawn.get_suptitle()
    line = next(line for line in drawn.axes[0].lines if line.get_label() == "Reptile")
    assert line.get_ydata() == pytest.approx([40, 60, 80])  # in %: k / 5
    assert len(drawn.axes[-1].texts) == 10
