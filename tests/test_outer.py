"""Reptile beside MAML and Adam outside: settings, the race against a naive one, verdicts on made-up curves."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.claims import REFUTED, SUPPORTED
from analysis.experiments import ablation, outer
from figures.outer import LOOKS, draw
from figures.style import style
from reptile_core.meta_gradients import figure_3
from tests.made_up import context, verdicts

matplotlib.use("Agg")

SCALE = outer.SCALES["paper"]


def test_plain_runs_are_figure_3s():
    figure = [ablation.configure(variant, SCALE, seed=0) for variant in figure_3()]
    for method in outer.PLAIN:
        assert outer.configure(method, SCALE, 0, adam_step=1e-3) in figure


def test_maml_and_adam_change_one_thing_each():
    reptile, maml, adam = (outer.configure(m, SCALE, 0, adam_step=1e-3) for m in ("Reptile", outer.MAML, outer.ADAM))
    assert (maml.weights, maml.outer, maml.inner, maml.sampling) == (
        "maml",
        reptile.outer,
        reptile.inner,
        reptile.sampling,
    )
    assert (adam.outer.optimizer, adam.outer.step, adam.outer.final) == ("adam", 1e-3, 0.0)
    assert (adam.weights, adam.inner, adam.sampling) == (reptile.weights, reptile.inner, reptile.sampling)


def test_the_seed_that_chooses_is_not_judged():
    assert all(scale.seeds <= outer.VALIDATION_SEED for scale in outer.SCALES.values())


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.integers(0, 20))
def test_reached_against_a_walk_along_the_curve(values, target):
    curve = pd.Series(values, index=range(0, 10 * len(values), 10), dtype=float)
    fine = np.linspace(0, curve.index[-1], 10 * 400 * (len(values) - 1) // 10 + 1)
    above = fine[np.interp(fine, curve.index, curve) >= target - 1e-9]
    found = outer.reached(curve, target)
    if above.size:
        assert found == pytest.approx(above[0], abs=0.05)
    else:
        assert np.isnan(found)


def _run(curve, *, seeds=3):
    """Made-up curves(method, share of the run), a little better from seed to seed."""

    def accuracy(job, iteration):
        method = outer.ADAM if job.run.seed == outer.VALIDATION_SEED else job.variant
        found = curve(method, iteration / job.run.iterations, job.run.outer.step)
        return None if found is None else found + 0.001 * (job.run.seed % 3)

    made = context(accuracy, seeds=seeds)
    return outer.EXPERIMENT.run(made), outer.EXPERIMENT.settings(made)


def _as_claimed(method, share, step):
    """Reptile arrives half way and stays, MAML at the end; joint training falls; Adam as good, best at 1e-3."""
    if method == "joint training":
        return 0.6 - 0.2 * share
    rate = 2.0 if method.startswith("Reptile") else 1.0
    return 0.6 + 0.3 * min(1.0, rate * share) - (0.1 if method == outer.ADAM and step != 1e-3 else 0.0)


def test_verdicts():
    def judged(curve, **options):
        return verdicts(outer.EXPERIMENT, _run(curve, **options)[0])

    assert set(judged(_as_claimed).values()) == {SUPPORTED}
    swap = {"Reptile": outer.MAML, outer.MAML: "Reptile"}
    assert judged(lambda m, x, s: _as_claimed(swap.get(m, m), x, s))["faster-than-maml"] == REFUTED
    worse = judged(lambda m, x, s: _as_claimed(m, x, s) - (0.1 * x if m == outer.ADAM else 0.0))
    assert worse["meta-adam"] == REFUTED
    assert not {SUPPORTED, REFUTED} & set(judged(_as_claimed, seeds=1).values())


def test_races_costs_and_the_chosen_step():
    result, _ = _run(_as_claimed, seeds=1)
    race = result.tables["outer_races"].set_index("variant")
    assert (race.target["Reptile"], race.iterations["Reptile"], race.maml_iterations["Reptile"]) == pytest.approx(
        (0.9, 15, 30)
    )
    assert (race.iterations["joint training"], race.maml_iterations["joint training"]) == (0, 0)
    cost = result.tables["outer_costs"].set_index("variant")
    assert (cost.gradients["Reptile"], cost["products"]["Reptile"]) == (4, 0)
    assert (cost.gradients["MAML"], cost["products"]["MAML"], cost.seconds["MAML"]) == (4, 3, 2.0)
    assert result.lines[0].startswith("Adam outside: step 0.001 chosen")


def test_a_step_at_which_adam_diverged_is_not_chosen():
    result, _ = _run(lambda m, x, s: None if s == 1e-3 and x > 0 else _as_claimed(m, x, s), seeds=1)
    assert result.lines[0].startswith("Adam outside: step 0.0003 chosen")


def test_figure_draws_the_numbers():
    result, settings = _run(_as_claimed)
    json.dumps(settings)
    assert set(LOOKS) == set(outer.METHODS)
    with style():
        figure = draw(result.tables, settings)["outer"]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert lines["MAML"] == pytest.approx([60.1, 75.1, 90.1])
    assert "Reptile needs 15 iterations where MAML needs 30" in figure.get_suptitle()
    assert "0.001, the best of" in figure.texts[-1].get_text().replace("\n", " ")
