"""Reptile, MAML and an outer Adam: settings, contrasts, the chosen step, verdicts.

Verdicts are tested on made-up curves.
"""

import json

import matplotlib
import pytest

from analysis.experiments import outer
from analysis.paper import figure_3
from analysis.results.claims import PROFILES, SEEDS_OF_AN_EPOCH
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from figures.outer import STYLES, draw
from figures.style import style
from reptile_core import meta_gradients
from tests.helpers.runs import SECONDS, context, judged, verdicts

matplotlib.use("Agg")


def test_plain_runs_are_figure_3s():
    figure = [figure_3.configure(variant, seed=0) for variant in meta_gradients.figure_3()]
    for method in outer.PLAIN:
        assert outer.configure(method, 0, adam_step=1e-3) in figure


def test_maml_and_adam_change_one_thing_each():
    reptile, maml, adam = (
        outer.configure(m, 0, adam_step=1e-3) for m in ("Reptile", outer.MAML, outer.ADAM)
    )
    assert (maml.weights, maml.outer, maml.inner, maml.sampling) == (
        "maml",
        reptile.outer,
        reptile.inner,
        reptile.sampling,
    )
    assert (adam.outer.optimizer, adam.outer.step, adam.outer.final) == ("adam", 1e-3, 0.0)
    assert (adam.weights, adam.inner, adam.sampling) == (
        reptile.weights,
        reptile.inner,
        reptile.sampling,
    )


def test_the_average_takes_mamls_step_along_avg_grad():
    average, maml = (outer.configure(m, 0, adam_step=1e-3) for m in (outer.AVERAGE, outer.MAML))
    assert sum(average.weights) * average.outer.step == pytest.approx(maml.outer.step)


def test_the_seed_that_chooses_is_not_judged():
    assert all(claim.epoch * SEEDS_OF_AN_EPOCH > outer.VALIDATION_SEED for claim in outer.CLAIMS)


def _run(curve, *, seeds=5, profile="smoke"):
    """Return the results of made-up curves(method, share of what is trained, outer step).

    Accuracy grows a little from seed to seed, by another amount in each method.
    """
    until = outer.SCALES[profile].until

    def accuracy(job, iteration):
        method = outer.ADAM if job.run.outer.optimizer == "adam" else job.variant
        found = curve(method, iteration / until, job.run.outer.step)
        return None if found is None else found + 0.0005 * (job.run.seed * len(method) % 5)

    made = context(accuracy, seeds=seeds, profile=profile)
    return outer.EXPERIMENT.result(made), outer.EXPERIMENT.settings_in(made)


def _as_claimed(method, share, step):
    """Return curves as the paper claims them.

    Reptile reaches its final accuracy half way, MAML at the end, and joint training falls.
    Adam is as good, and best at step 1e-3.
    """
    if method == "joint training":
        return 0.6 - 0.2 * share
    rate = 2.0 if method.startswith("Reptile") else 1.0
    return (
        0.6 + 0.3 * min(1.0, rate * share) - (0.1 if method == outer.ADAM and step != 1e-3 else 0.0)
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_verdicts(profile):
    def found(curve, **options):
        return verdicts(outer.EXPERIMENT, _run(curve, profile=profile, **options)[0])

    assert set(found(_as_claimed).values()) == {SUPPORTED}
    swap = {outer.AVERAGE: outer.MAML, outer.MAML: outer.AVERAGE}
    assert (
        found(lambda m, x, s: _as_claimed(swap.get(m, m), x, s))["faster-than-maml-equal-step"]
        == REFUTED
    )
    slow = found(lambda m, x, s: _as_claimed(outer.MAML, x, s) - 0.1 * x * (m == outer.SUM))
    assert slow["faster-than-maml"] == REFUTED
    worse = found(lambda m, x, s: _as_claimed(m, x, s) - (0.1 * x if m == outer.ADAM else 0.0))
    assert worse["meta-adam"] == REFUTED
    assert set(found(_as_claimed, seeds=4).values()) == {UNDECIDED}


def test_the_average_and_the_sum_are_said_apart():
    result, _ = _run(lambda m, x, s: _as_claimed(m if m != outer.AVERAGE else outer.MAML, x, s))
    found = judged(outer.EXPERIMENT, result)
    (published,), (average,) = (
        found["faster-than-maml"].cases,
        found["faster-than-maml-equal-step"].cases,
    )
    assert average.mean == pytest.approx(0.0, abs=0.002)
    assert (published.decision, published.mean) == (SUPPORTED, pytest.approx(0.15 / 2, abs=0.002))


def test_controls_can_pass():
    def best_jointly(method, share, step):
        return 0.95 if method == "joint training" else _as_claimed(method, share, step)

    found = judged(outer.EXPERIMENT, _run(best_jointly)[0])
    assert {verdict.why for verdict in found.values()} == {"the control does not fail"}


def test_adam_and_the_plain_step_are_compared_at_the_end():
    found = judged(outer.EXPERIMENT, _run(_as_claimed, profile="quick")[0])
    (adam,), (average,) = found["meta-adam"].cases, found["faster-than-maml"].cases
    assert (adam.tasks, adam.queries) == (outer.SCALES["quick"].tasks, 5)
    assert average.tasks == 2 * outer.SCALES["quick"].tasks


def test_costs_and_the_chosen_step():
    result, _ = _run(_as_claimed, seeds=1)
    cost = result.tables["outer_costs"].set_index("variant")
    assert (cost.gradients["Reptile"], cost["products"]["Reptile"]) == (4, 0)
    assert cost.gradients["joint training"] == 1
    assert (cost.gradients["MAML"], cost["products"]["MAML"], cost.seconds["MAML"]) == (
        4,
        3,
        SECONDS,
    )
    assert result.lines[0].startswith("Adam outside: step 0.001 chosen")
    assert len(result.lines) == 1 + len(outer.METHODS)


def test_a_step_at_which_adam_diverged_is_not_chosen():
    result, _ = _run(lambda m, x, s: None if s == 1e-3 and x > 0 else _as_claimed(m, x, s), seeds=1)
    assert result.lines[0].startswith("Adam outside: step 0.0003 chosen")


def test_what_no_claim_asks_for_is_left_out_at_quick():
    result, settings = _run(_as_claimed, profile="quick")
    assert (
        set(result.tables["outer"].variant)
        == set(settings["methods"])
        == set(outer.METHODS) - {"FOMAML"}
    )
    with style():
        assert "FOMAML" not in draw(result.tables, settings)["outer"].texts[-1].get_text()


def test_figure_draws_the_numbers():
    result, settings = _run(_as_claimed)
    json.dumps(settings)
    assert set(STYLES) == set(outer.METHODS)
    with style():
        figure = draw(result.tables, settings)["outer"]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert lines["MAML"] == pytest.approx([75, 90], abs=0.2)
    title = figure.get_suptitle()
    assert title == (
        "After 4 iterations Reptile is at 90 % (average: 90 %), MAML at 90 %, Adam outside at 90 %"
    )
    caption = figure.texts[-1].get_text().replace("\n", " ")
    assert "0.001, the best of" in caption
    assert "over 40,000 iterations, of which the first 4 are trained" in caption
