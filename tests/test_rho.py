"""rho of the paper's variants, contrasts and gains against ones written by hand, verdicts on made-up curves."""

import json

import matplotlib
import numpy as np
import pytest

from analysis.experiments import rho
from analysis.results.judge import REFUTED, SUPPORTED, UNDECIDED
from analysis.theory.expectations import predicted
from figures.rho import draw
from figures.style import style
from reptile_core.meta_gradients import figure_3
from tests.made_up import context, judged, verdicts

matplotlib.use("Agg")

ALL = rho.variants("paper")


def test_rho_of_the_papers_variants():
    by_name = {variant.name: rho.rho(variant.weights) for variant in figure_3()}
    assert by_name == pytest.approx(
        {
            "g1": 0, "g1+g2": 1 / 2, "(g1+g2)/2": 1 / 2, "g2": 1, "g1+g2+g3": 1, "(g1+g2+g3)/3": 1, "g3": 2,
            "g1+g2+g3+g4": 3 / 2, "(g1+g2+g3+g4)/4": 3 / 2, "g4": 3,
        }
    )  # fmt: skip


@pytest.mark.parametrize("variant", ALL, ids=lambda v: v.name)
def test_rho_is_what_the_theorem_has(variant):
    avg_grad, avg_grad_inner = predicted(variant.weights)
    assert avg_grad == pytest.approx(1.0)
    assert rho.rho(variant.weights) == pytest.approx(-avg_grad_inner / avg_grad, abs=1e-9)
    assert variant.k == 4


def test_all_take_the_same_step_along_avg_grad():
    longest = next(v for v in figure_3() if v.name == "g1+g2+g3+g4")
    for variant in ALL:
        run = rho.configure(variant, seed=0)
        assert run.outer.step * sum(run.weights) == pytest.approx(0.25 * sum(longest.weights))
        assert run.outer.final == run.outer.step
        assert run.sampling.pool == 4 * run.sampling.batch  # disjoint


def test_every_scale_is_a_prefix_of_the_same_runs():
    assert {scale.iterations for scale in rho.SCALES.values()} == {rho.configure(ALL[0], seed=0).iterations}


def test_contrasts_are_the_ones_that_one_would_write_down():
    assert list(rho.of_equal_rho().values()) == [
        {"(g1+g2+g3)/3": 1, "g2": -1},
        {"(g1+g2+g3+g4)/4": 1, "(g1+g4)/2": -1 / 2, "(g2+g3)/2": -1 / 2},
        {"(g2+g3+g4)/3": 1, "g3": -1},
    ]
    assert list(rho.of_equal_noise().values()) == [
        {"g4": 1, "g2": -1},
        {"(g2+g3+g4)/3": 1, "(g1+g2+g3)/3": -1},
    ]
    assert rho.tie() == {"(g2+g3)/2": 1, "(g1+g4)/2": -1}


@pytest.mark.parametrize(
    ("contrasts", "of_rho", "of_noise"),
    [(rho.of_equal_rho(), 0, -1), (rho.of_equal_noise(), 1, 0), ({"tie": rho.tie()}, 0, 0)],
)
def test_contrasts_differ_in_one_thing(contrasts, of_rho, of_noise):
    by_name = {variant.name: variant.weights for variant in rho.JUDGED}
    for contrast in contrasts.values():
        assert sum(contrast.values()) == pytest.approx(0)
        assert np.sign(round(sum(w * rho.rho(by_name[name]) for name, w in contrast.items()), 6)) == of_rho
        assert np.sign(round(sum(w * rho.noise(by_name[name]) for name, w in contrast.items()), 6)) == of_noise


def test_a_mean_of_contrasts_has_a_share_of_each():
    assert rho.mean_of({"x": {"a": 1, "b": -1}, "y": {"b": 1, "c": -1}}) == {"a": 0.5, "b": 0.0, "c": -0.5}


def _wiggle(name, seed):
    """Something small that differs between variants and seeds."""
    return 1e-4 * (sum(map(ord, name)) * seed % 7)


def _run(gain, *, seeds=5, profile="smoke"):
    """Made-up curves from 0.5 by gain(variant) per unit of the last look, a little more for each seed and variant."""
    weights = {v.name: v for v in ALL}
    last = rho.SCALES[profile].until

    def accuracy(job, iteration):
        found = gain(weights[job.variant])
        if found is None:
            return 0.5 if iteration == 0 else None
        return 0.5 + (found + _wiggle(job.variant, job.run.seed)) * iteration / last

    made = context(accuracy, seeds=seeds, profile=profile)
    return rho.EXPERIMENT.run(made), rho.EXPERIMENT.settings(made)


def _helped_by_rho(variant):
    return 0.05 * rho.rho(variant.weights)


def _helped_by_both(variant):
    return 0.3 + 0.05 * rho.rho(variant.weights) - 0.1 * rho.noise(variant.weights)


def test_gains_and_correlation_against_naive_ones():
    result, _ = _run(_helped_by_rho, seeds=2)
    gains = result.tables["rho_gains"].set_index("variant")["mean"]
    for variant in rho.JUDGED:
        extra = [_wiggle(variant.name, seed) for seed in (2_000, 2_001)]
        expected = np.mean([0.75 * (0.05 * rho.rho(variant.weights) + e) for e in extra])  # at half way and at the end
        assert gains[variant.name] == pytest.approx(expected)
    found = result.tables["rho_correlations"].set_index("seed")
    assert found.rho[2_000] == pytest.approx(_spearman(_values(2_000), [rho.rho(v.weights) for v in rho.JUDGED]))
    assert found.noise[2_000] == pytest.approx(_spearman(_values(2_000), [-rho.noise(v.weights) for v in rho.JUDGED]))


def _values(seed):
    return [_helped_by_rho(v) + _wiggle(v.name, seed) for v in rho.JUDGED]


def _spearman(a, b):
    """Correlation of mid-ranks, by counting."""

    def ranks(x):
        x = np.round(x, 9)
        return np.array([(x < y).sum() + ((x == y).sum() + 1) / 2 for y in x])

    return np.corrcoef(ranks(a), ranks(b))[0, 1]


@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_verdicts(profile):
    def found(gain, **options):
        return verdicts(rho.EXPERIMENT, _run(gain, profile=profile, **options)[0])

    assert found(_helped_by_both) == {"ablation-noise": SUPPORTED, "ablation-rho": SUPPORTED}
    assert found(lambda v: 0.5 - _helped_by_both(v)) == {"ablation-noise": REFUTED, "ablation-rho": REFUTED}
    assert set(found(_helped_by_both, seeds=4).values()) == {UNDECIDED}


def test_a_cause_that_only_one_claim_names_supports_only_that():
    assert verdicts(rho.EXPERIMENT, _run(_helped_by_rho)[0])["ablation-rho"] == SUPPORTED
    assert verdicts(rho.EXPERIMENT, _run(_helped_by_rho)[0])["ablation-noise"] != SUPPORTED


def test_a_difference_where_theory_has_none_spoils_both():
    found = judged(rho.EXPERIMENT, _run(lambda v: 0.5 if v.name == "(g2+g3)/2" else _helped_by_both(v))[0])
    assert found["ablation-rho"].why == "the control does not fail"
    assert SUPPORTED not in {verdict.decision for verdict in found.values()}


def test_each_contrast_is_shown_and_not_judged():
    verdict = judged(rho.EXPERIMENT, _run(_helped_by_both)[0])["ablation-noise"]
    assert [case.name for case in verdict.cases] == ["mean of 3"]
    assert [case.name for case in verdict.shown] == list(rho.of_equal_rho())
    assert np.mean([case.mean for case in verdict.shown]) == pytest.approx(verdict.cases[0].mean)


def test_a_run_that_diverged_counts_as_chance():
    result, _ = _run(lambda v: None if v.name == "g4" else _helped_by_rho(v), seeds=2)
    gains = result.tables["rho_gains"].set_index("variant")["mean"]
    assert gains["g4"] == pytest.approx(0.2 - 0.5)


def test_figure_draws_the_numbers():
    result, settings = _run(_helped_by_both)
    json.dumps(settings)
    with style():
        figure = draw(result.tables, settings)["rho"]
    left, right = figure.axes
    assert len([line for line in left.get_lines() if len(line.get_xdata()) == 3]) == len(rho.JUDGED)
    heights = sorted(float(line.get_ydata()[0]) for line in right.get_lines() if line.get_marker() == "o")
    assert heights == pytest.approx(sorted(100 * result.tables["rho_gains"]["mean"]))
    places = [float(line.get_xdata()[0]) for line in right.get_lines() if line.get_marker() == "o"]
    assert len(set(places)) == len(rho.JUDGED)
    points = 100 * result.tables["rho_pairs"].set_index("differ")["mean"]
    assert f"gains +{points['noise']:.1f} points" in figure.get_suptitle()
    assert f"equal noise +{points['rho']:.1f}" in figure.get_suptitle()
