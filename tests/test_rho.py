"""Weights of the arms against their geometry and the theorem, contrasts, verdicts, the figure.

Verdicts and figure are tested on made-up curves.
"""

import json

import matplotlib
import numpy as np
import pytest

from analysis.experiments import rho
from analysis.results.claims import seeds
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from analysis.theory.expectations import predicted
from figures.rho import draw
from figures.style import style
from reptile_core.meta_gradients import figure_3
from tests.helpers.runs import context, judged, verdicts

matplotlib.use("Agg")

SEED = seeds(rho.EPOCH, 1)[0]
BY_NAME = {arm.name: arm for arm in rho.ARMS}
NEAR = (rho.LOW, rho.HIGH, *rho.AS_FAR)


def test_rho_of_the_papers_variants():
    by_name = {variant.name: rho.rho(variant.weights) for variant in figure_3()}
    assert by_name == pytest.approx(
        {
            "g1": 0, "g1+g2": 1 / 2, "(g1+g2)/2": 1 / 2, "g2": 1, "g1+g2+g3": 1, "(g1+g2+g3)/3": 1,
            "g3": 2, "g1+g2+g3+g4": 3 / 2, "(g1+g2+g3+g4)/4": 3 / 2, "g4": 3,
        }
    )  # fmt: skip


@pytest.mark.parametrize("arm", rho.ARMS, ids=lambda arm: arm.name)
def test_rho_and_noise_are_what_the_design_asks_and_the_theorem_has(arm):
    for seed in (SEED, SEED + 1):
        weights = arm.weights(seed)
        avg_grad, avg_grad_inner = predicted(weights)
        assert avg_grad == pytest.approx(1.0, abs=1e-12)
        assert -avg_grad_inner == pytest.approx(
            {-1: 2 / 3, 0: 3 / 2, 1: 7 / 3}[arm.tilt], abs=1e-12
        )
        noise = 0.25 if arm == rho.QUIET else 14 / 36 if arm in NEAR else 0.7
        assert sum(w * w for w in weights) == pytest.approx(noise, abs=1e-12)


def test_rho_goes_to_the_last_weights_that_are_not_negative():
    assert rho.HIGH.weights(SEED) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6], abs=1e-12)
    assert rho.LOW.weights(SEED) == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0], abs=1e-12)


def test_the_others_are_opposite_pairs_on_orthogonal_axes():
    away = {name: np.array(arm.weights(SEED)) - 0.25 for name, arm in BY_NAME.items()}
    pairs = [
        ("large rho", "small rho"),
        *[(f"{axis} axis, +", f"{axis} axis, -") for axis in ("first", "second")],
    ]
    for one, other in (*pairs, ("as far, +", "as far, -")):
        assert away[one] == pytest.approx(-away[other], abs=1e-12)
    gram = [[away[a] @ away[b] for b, _ in pairs] for a, _ in pairs]
    assert np.allclose(gram, np.diag([14 / 36 - 0.25, 0.45, 0.45]), atol=1e-12)
    assert np.cross(away["as far, +"][:3], away["first axis, +"][:3]) == pytest.approx(
        np.zeros(3), abs=1e-12
    )


def test_each_seed_draws_axes_of_its_own_and_both_directions_are_as_likely():
    drawn = np.array([rho.FIRST[0].weights(seed) for seed in range(2_000)]) - 0.25
    assert len(np.unique(drawn.round(6), axis=0)) == len(drawn)
    # Each weight has about a third of the square, 0.45.
    assert np.abs(drawn.mean(0)).max() < 4 * (0.45 / 3 / 2_000) ** 0.5


def test_all_take_the_step_along_avg_grad_of_the_longest_sum():
    longest = next(v for v in figure_3() if v.name == "g1+g2+g3+g4")
    for arm in rho.ARMS:
        run = rho.configure(arm, SEED)
        assert run.outer.step * sum(run.weights) == pytest.approx(0.25 * sum(longest.weights))
        assert run.outer.final == run.outer.step
        assert run.sampling.pool == 4 * run.sampling.batch  # room for disjoint minibatches


def test_every_scale_is_a_prefix_of_the_same_runs():
    assert {scale.iterations for scale in rho.SCALES.values()} == {
        rho.configure(rho.QUIET, SEED).iterations
    }


@pytest.mark.parametrize(
    ("contrast", "of_rho", "of_noise"),
    [
        (rho.QUIETER, 0, -0.45),
        (rho.LARGER, 5 / 3, 0),
        (rho.AXIS_LESS_AXIS, 0, 0),
        (rho.OPPOSITE, 0, 0),
    ],
)
def test_contrasts_differ_in_one_thing(contrast, of_rho, of_noise):
    assert sum(contrast.values()) == pytest.approx(0)
    by_name = {name: BY_NAME[name].weights(SEED) for name in contrast}
    assert sum(w * rho.rho(by_name[name]) for name, w in contrast.items()) == pytest.approx(
        of_rho, abs=1e-12
    )
    assert sum(w * rho.noise(by_name[name]) for name, w in contrast.items()) == pytest.approx(
        of_noise, abs=1e-12
    )


def _wiggle(name, seed):
    """Return something small that differs between arms and seeds."""
    return 1e-4 * (sum(map(ord, name)) * seed % 7)


def _run(gain, *, seeds=5, profile="smoke"):
    """Return the results of made-up curves.

    They rise from 0.5 by gain(weights) up to the last look.
    They rise a little more for each seed and arm.
    """
    last = rho.SCALES[profile].until

    def accuracy(job, iteration):
        found = gain(job.run.weights)
        if found is None:
            return None
        return 0.5 + (found + _wiggle(job.variant, job.run.seed)) * iteration / last

    made = context(accuracy, seeds=seeds, profile=profile)
    return rho.EXPERIMENT.result(made), rho.EXPERIMENT.settings_in(made)


def _helped_by_rho(weights):
    return 0.05 * rho.rho(weights)


def _helped_by_both(weights):
    return 0.3 + 0.05 * rho.rho(weights) - 0.1 * rho.noise(weights)


@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_verdicts(profile):
    def found(gain, **options):
        return verdicts(rho.EXPERIMENT, _run(gain, profile=profile, **options)[0])

    assert found(_helped_by_both) == {"ablation-noise": SUPPORTED, "ablation-rho": SUPPORTED}
    assert found(lambda w: 0.5 - _helped_by_both(w)) == {
        "ablation-noise": REFUTED,
        "ablation-rho": REFUTED,
    }
    assert set(found(_helped_by_both, seeds=4).values()) == {UNDECIDED}


def test_a_cause_that_only_one_claim_names_supports_only_that():
    found = verdicts(rho.EXPERIMENT, _run(_helped_by_rho)[0])
    assert found["ablation-rho"] == SUPPORTED
    assert found["ablation-noise"] != SUPPORTED


def test_a_weight_that_matters_more_than_rho_and_noise_spoils_both():
    """A weight that matters more than rho and noise spoils both claims.

    Each seed draws how far the second and third gradient stand out, which is neither rho nor noise.
    """
    found = judged(rho.EXPERIMENT, _run(lambda w: 0.02 * rho.rho(w) + 0.2 * (w[1] + w[2]) ** 2)[0])
    assert SUPPORTED not in {verdict.decision for verdict in found.values()}
    assert found["ablation-rho"].why == "the control does not fail"


def test_a_run_that_diverged_counts_as_chance():
    result, _ = _run(lambda w: None if rho.rho(w) > 2 else _helped_by_rho(w), seeds=2)
    values = result.tables["rho"].set_index(["variant", "iteration"]).value
    assert (values["large rho"] == 0.2).all()


def test_tables_and_figure_have_the_numbers():
    result, settings = _run(_helped_by_both)
    json.dumps(settings)
    table, pairs = result.tables["rho"], result.tables["rho_pairs"].set_index("differ")
    mean = table.pivot_table(index="seed", columns="variant", values="value")
    larger = mean["large rho"] - mean["small rho"]
    assert pairs["mean"]["rho"] == pytest.approx(larger.mean())
    assert pairs.spread["rho"] == pytest.approx(larger.std())
    with style():
        figure = draw(result.tables, settings)["rho"]
    left, right = figure.axes
    lines = {
        str(line.get_label()): line.get_ydata()
        for line in left.get_lines()
        if line.get_marker() == "o"
    }
    assert len(lines) == 5  # one for each pair of rho and noise
    of_axes = table[table.variant.str.contains("axis")].groupby("iteration").value.mean()
    assert lines["ρ = 1.50, noise 0.70 (mean of 4 sums)"] == pytest.approx(100 * of_axes.to_numpy())
    heights = [float(line.get_ydata()[0]) for line in right.get_lines() if line.get_marker() == "o"]
    assert heights == pytest.approx(list(100 * result.tables["rho_pairs"]["mean"]))
    points = 100 * pairs["mean"]
    assert f"gains +{points['noise']:.1f} points" in figure.get_suptitle()
    assert f"equal noise +{points['rho']:.1f}" in figure.get_suptitle()
