"""rho of the paper's variants, gains and correlations against naive ones, verdicts on made-up curves."""

import json

import matplotlib
import numpy as np
import pytest

from analysis.claims import REFUTED, SUPPORTED
from analysis.experiments import rho
from analysis.theory.expectations import predicted
from figures.rho import draw
from figures.style import style
from reptile_core.meta_gradients import figure_3
from tests.made_up import context, verdicts

matplotlib.use("Agg")


def test_rho_of_the_papers_variants():
    by_name = {variant.name: rho.rho(variant.weights) for variant in figure_3()}
    assert by_name == pytest.approx(
        {
            "g1": 0, "g1+g2": 1 / 2, "(g1+g2)/2": 1 / 2, "g2": 1, "g1+g2+g3": 1, "(g1+g2+g3)/3": 1, "g3": 2,
            "g1+g2+g3+g4": 3 / 2, "(g1+g2+g3+g4)/4": 3 / 2, "g4": 3,
        }
    )  # fmt: skip


@pytest.mark.parametrize("variant", rho.VARIANTS, ids=lambda v: v.name)
def test_rho_is_what_the_theorem_has(variant):
    avg_grad, avg_grad_inner = predicted(variant.weights)
    assert avg_grad == pytest.approx(1.0)
    assert rho.rho(variant.weights) == pytest.approx(-avg_grad_inner / avg_grad)
    assert variant.k == 4


def test_all_take_the_same_step_along_avg_grad():
    longest = next(v for v in figure_3() if v.name == "g1+g2+g3+g4")
    for variant in rho.VARIANTS:
        run = rho.configure(variant, rho.SCALES["paper"], seed=0)
        assert run.outer.step * sum(run.weights) == pytest.approx(0.25 * sum(longest.weights))
        assert run.outer.final == run.outer.step
        assert run.sampling.pool == 4 * run.sampling.batch  # disjoint


def test_rho_and_noise_are_kept_apart():
    rhos = [rho.rho(v.weights) for v in rho.VARIANTS]
    noises = [rho.noise(v.weights) for v in rho.VARIANTS]
    assert abs(np.corrcoef(np.argsort(np.argsort(rhos)), np.argsort(np.argsort(noises)))[0, 1]) < 0.4
    assert len(rhos) - len(set(np.round(rhos, 9))) == 3  # pairs


def _wiggle(name, seed):
    """Something small that differs between variants and seeds."""
    return 1e-4 * (sum(map(ord, name)) * seed % 7)


def _run(gain, *, seeds=3):
    """Made-up curves from 0.5 by gain(variant), a little more for each seed and variant."""
    weights = {v.name: v for v in rho.VARIANTS}

    def accuracy(job, iteration):
        found = gain(weights[job.variant])
        if found is None:
            return 0.5 if iteration == 0 else None
        return 0.5 + (found + _wiggle(job.variant, job.run.seed)) * iteration / 4

    made = context(accuracy, seeds=seeds)
    return rho.EXPERIMENT.run(made), rho.EXPERIMENT.settings(made)


def test_gains_and_correlation_against_naive_ones():
    result, _ = _run(lambda v: 0.05 * rho.rho(v.weights), seeds=2)
    gains = result.tables["rho_gains"].set_index("variant")["mean"]
    for variant in rho.VARIANTS:
        extra = [_wiggle(variant.name, seed) for seed in (0, 1)]
        expected = np.mean([0.75 * (0.05 * rho.rho(variant.weights) + e) for e in extra])  # at half way and at the end
        assert gains[variant.name] == pytest.approx(expected)
    found = result.tables["rho_correlations"].set_index("seed")
    assert found.rho[0] == pytest.approx(1.0)
    assert found.noise[0] == pytest.approx(_spearman([-rho.noise(v.weights) for v in rho.VARIANTS]))


def _spearman(values):
    """Correlation of mid-ranks with those of rho, by counting."""

    def ranks(x):
        x = np.round(x, 9)
        return np.array([(x < y).sum() + ((x == y).sum() + 1) / 2 for y in x])

    return np.corrcoef(ranks(values), ranks([rho.rho(v.weights) for v in rho.VARIANTS]))[0, 1]


def test_verdicts():
    def judged(gain, **options):
        return verdicts(rho.EXPERIMENT, _run(gain, **options)[0])["ablation-rho"]

    assert judged(lambda v: 0.05 * rho.rho(v.weights)) == SUPPORTED
    assert judged(lambda v: -0.05 * rho.rho(v.weights)) == REFUTED
    assert judged(lambda v: -0.05 * rho.noise(v.weights)) not in (SUPPORTED, REFUTED)  # the control holds as well
    assert judged(lambda v: 0.05 * rho.rho(v.weights), seeds=1) not in (SUPPORTED, REFUTED)


def test_a_run_that_diverged_counts_as_chance():
    result, _ = _run(lambda v: None if v.name == "2g4-g3" else 0.05 * rho.rho(v.weights), seeds=2)
    gains = result.tables["rho_gains"].set_index("variant")["mean"]
    assert gains["2g4-g3"] == pytest.approx(0.2 - 0.5)


def test_figure_draws_the_numbers():
    result, settings = _run(lambda v: 0.05 * rho.rho(v.weights))
    json.dumps(settings)
    with style():
        figure = draw(result.tables, settings)["rho"]
    left, right = figure.axes
    assert len([line for line in left.get_lines() if len(line.get_xdata()) == 3]) == len(rho.VARIANTS)
    heights = sorted(float(line.get_ydata()[0]) for line in right.get_lines() if line.get_marker() == "o")
    assert heights == pytest.approx(sorted(100 * result.tables["rho_gains"]["mean"]))
    assert f"rank correlation of {result.tables['rho_correlations'].rho.mean():.2f}" in figure.get_suptitle()
