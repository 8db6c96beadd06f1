"""The judge: its rules one by one, and its simulated error rates against the stated limits."""

from math import inf, isnan, log, nan

import numpy as np
import pandas as pd
import pytest

from analysis.results import wording
from analysis.results.claims import Claim, Control, seeds
from analysis.results.error_rates import (
    LATER_ERROR,
    LEAST_SEEDS,
    REFUTE_ERROR,
    SUPPORT_ERROR,
    spent,
)
from analysis.results.evidence import rows
from analysis.results.judge import decide, judge
from analysis.results.samples import Sample
from analysis.results.verdict import SeedPlan

FOIL = Control(kind="foil", words="another treatment")
SIMULATIONS = 2_000
# Added to the limit: four standard errors of a rate of 0.03 over the simulations. One test in
# 30,000 fails by chance.
MARGIN = 4 * (0.03 * 0.97 / SIMULATIONS) ** 0.5


def claim(band=(0.0, inf), control=FOIL, kind="experiment", **more):
    return Claim(
        id="c",
        kind=kind,
        sources=("N",),
        statement="s",
        quantity="q",
        band=band,
        reason="r",
        control=control,
        **more,
    )


def table(checks, controls=None, **columns):
    """Return evidence from lists of values by case; the seeds of a case are 0, 1, …"""
    found, far = [], {"foil": [-9.0 + 0.1 * i for i in range(9)]}
    for role, cases in (("check", checks), ("control", far if controls is None else controls)):
        for case, values in cases.items():
            found += rows("c", case, role, dict(enumerate(values)))
    return pd.DataFrame(found).assign(**columns)


def verdict(checks, controls=None, of=None, **columns):
    (found,) = judge([of or claim()], table(checks, controls, **columns))
    return found


CLEAR = [1.0, 1.2, 0.9, 1.1, 1.0]


# --- rules


def test_a_clear_effect_with_a_foil_that_fails_is_supported():
    found = verdict({"a": CLEAR})
    assert (found.decision, found.control, found.why, found.plan) == (
        "supported",
        "failed",
        "",
        None,
    )
    case = found.cases[0]
    assert case.mean == pytest.approx(np.mean(CLEAR)) and case.low < case.mean < case.high
    assert case.seeds == (0, 1, 2, 3, 4)


def test_the_interval_is_students():
    from scipy import stats

    low, high = stats.t.interval(0.95, 4, np.mean(CLEAR), stats.sem(CLEAR))
    assert (
        verdict({"a": CLEAR}).cases[0].low,
        verdict({"a": CLEAR}).cases[0].high,
    ) == pytest.approx((low, high))


def test_an_interval_ends_where_the_quantity_does():
    case = verdict({"a": [0.9, 1.0, 0.8, 1.0, 0.2]}, of=claim(limits=(-1.0, 1.0))).cases[0]
    assert case.high == 1.0 and case.low > -1.0


def test_a_refutation_stands_whatever_the_control_does():
    away = [-value for value in CLEAR]
    for controls in ({}, {"foil": away}, {"foil": [5.0, 6.0, 5.5, 5.0, 6.0]}):
        assert verdict({"a": away}, controls).decision == "refuted"


def test_a_foil_that_does_as_well_gates_support_alone():
    found = verdict({"a": CLEAR}, {"foil": CLEAR})
    assert (found.decision, found.why, found.control) == (
        "undecided",
        "the control does not fail",
        "passed",
    )
    assert verdict({"a": CLEAR}, {"foil": [9.0, -9.0, 9.0, -9.0, 0.0]}).control == "uninformative"
    assert verdict({"a": CLEAR}, {}).control == "uninformative"


def test_a_foil_is_paired_by_seed():
    """A foil is paired by seed: seeds differ so much that only the paired difference shows it."""
    base = np.array([10.0, 40.0, 20.0, 30.0, 50.0])
    check = dict(zip(range(5), base + np.array([1.0, 1.1, 0.9, 1.0, 1.0]), strict=True))
    foil = {seed: base[seed] for seed in reversed(range(5))}
    found = judge(
        [claim()], pd.DataFrame([*rows("c", "a", "check", check), *rows("c", "f", "control", foil)])
    )
    assert found[0].control == "failed"


def test_a_foil_of_a_cases_name_is_compared_with_that_case():
    low, high = [0.5, 0.6, 0.5, 0.6, 0.5], [5.0, 5.2, 5.1, 5.0, 5.1]
    between = [2.0, 2.1, 2.0, 2.2, 2.0]
    assert verdict({"a": low, "b": high}, {"b": between}).control == "failed"
    assert verdict({"a": low, "b": high}, {"other": between}).control == "passed"


def test_where_only_the_high_end_can_be_missed_the_foil_must_lie_above():
    of = claim(band=(0.0, 0.1), limits=(0.0, inf))
    small, large = [0.05, 0.06, 0.05, 0.05, 0.06], [0.5, 0.6, 0.5, 0.6, 0.5]
    assert verdict({"a": small}, {"foil": large}, of).decision == "supported"
    assert (
        verdict({"a": small}, {"foil": [0.01, 0.011, 0.01, 0.011, 0.01]}, of).decision
        == "undecided"
    )
    assert verdict({"a": large}, {}, of).decision == "refuted"


def test_equivalence_needs_both_ends_and_a_foil_outside():
    of = claim(band=(-0.25, 0.25))
    near = [0.01, -0.02, 0.0, 0.02, 0.01]
    assert verdict({"a": near}, {"foil": CLEAR}, of).decision == "supported"
    assert verdict({"a": near}, {"foil": near}, of).control == "passed"
    assert verdict({"a": [0.2, 0.3, 0.1, 0.25, 0.2]}, {"foil": CLEAR}, of).decision == "undecided"


def test_a_sham_must_lie_within_its_own_band():
    of = claim(control=Control(kind="sham", words="nothing", band=(-0.5, 0.5)))
    assert verdict({"a": CLEAR}, {"sham": [0.0, 0.1, -0.1, 0.0, 0.05]}, of).decision == "supported"
    assert verdict({"a": CLEAR}, {"sham": CLEAR}, of).control == "passed"
    assert (
        verdict({"a": CLEAR}, {"sham": [2.0, -2.0, 1.0, -1.0, 0.0]}, of).control == "uninformative"
    )


def test_every_case_must_be_inside_and_any_may_refute():
    off = [-value for value in CLEAR]
    assert verdict({"a": CLEAR, "b": CLEAR}).decision == "supported"
    assert verdict({"a": CLEAR, "b": [1.0, -1.0, 0.5, -0.5, 0.1]}).decision == "undecided"
    found = verdict({"a": CLEAR, "b": off})
    assert found.decision == "refuted" and [case.decision for case in found.cases] == [
        "supported",
        "refuted",
    ]


def test_holm_divides_the_error_among_cases():
    """Holm's method divides the error among cases.

    A p of about 0.008 refutes alone, but not as one of four.
    """
    values = [-1.0, -2.6, -0.5, -2.2, -1.7]
    assert verdict({"a": values}).decision == "refuted"
    wide = [1.0, -1.0, 2.0, -2.0, 0.1]
    assert verdict({"a": values, "b": wide, "c": wide, "d": wide}).decision == "undecided"


def test_fewer_than_five_seeds_are_a_pilot_that_plans():
    found = verdict({"a": CLEAR[:3]})
    assert (found.decision, found.why) == ("undecided", "pilot")
    assert found.plan == SeedPlan(LEAST_SEEDS - 3, pytest.approx(nan, nan_ok=True))
    assert verdict({"a": [-100.0, -100.1, -100.2]}).decision == "undecided"


def test_a_plan_says_how_many_seeds_and_how_long():
    found = verdict({"a": [1.0, -0.6, 1.6, 0.2, 0.9]}, seconds=30.0)
    assert found.plan is not None and found.plan.seeds is not None and 1 <= found.plan.seeds <= 40
    assert found.plan.seconds == pytest.approx(30.0 * found.plan.seeds)
    hopeless = verdict({"a": [1.0, -1.0, 1.0, -1.0, 0.001]}).plan
    assert hopeless is not None and hopeless.seeds is None


def test_a_seed_that_is_not_finite_decides_nothing():
    found = verdict({"a": [*CLEAR[:4], nan]})
    assert (found.decision, found.why) == ("undecided", "runs diverged")


def test_a_lucky_spread_counts_as_the_error_over_tasks():
    close = [0.0300, 0.0301, 0.0299, 0.0300, 0.0302]
    assert verdict({"a": close}).decision == "supported"
    assert verdict({"a": close}, task_error=0.04).decision == "undecided"


def test_equal_values_are_judged_by_where_they_lie():
    assert verdict({"a": [1.0] * 5}).decision == "supported"
    assert verdict({"a": [0.0] * 5}).decision == "undecided"
    assert verdict({"a": [-1.0] * 5}).decision == "refuted"
    assert verdict({"a": [1.0] * 5}, {"foil": [1.0] * 5}).control == "passed"


def test_a_claim_without_evidence_is_not_measured_and_what_is_shown_is_not_judged():
    (nothing,) = judge([claim()], table({"a": CLEAR}).assign(claim="other"))
    assert (nothing.decision, nothing.why) == ("undecided", "not measured")
    (shown,) = judge([claim()], table({"a": CLEAR}).assign(role="shown"))
    assert (shown.decision, shown.why, len(shown.shown)) == ("undecided", "shown only", 2)


def test_seeds_of_an_earlier_epoch_are_only_shown():
    of = claim(epoch=1)
    assert verdict({"a": CLEAR}, of=of, epoch=0).why == "earlier epoch"
    assert verdict({"a": CLEAR}, of=of, epoch=2).decision == "supported"
    assert seeds(2, 3) == [2000, 2001, 2002]


def test_a_profile_below_the_claims_least_is_only_shown():
    evidence = table({"a": CLEAR})
    for least, profile, why in [
        ("paper", "quick", "shown only"),
        ("quick", "smoke", "shown only"),
        ("quick", "quick", ""),
        ("quick", "paper", ""),
        ("paper", None, ""),
    ]:
        (found,) = judge([claim(least=least)], evidence.assign(profile=profile))
        assert (found.decision, found.why) == ("undecided" if why else "supported", why)
        assert (found.plan is None, len(found.shown)) == (True, 2 if why else 0)
        cases, others = wording.foremost(found)
        assert [case.name for case in cases] == ["a"] and not others, "without the control"


def test_theorems_stand_on_every_value():
    of = claim(band=(-0.05, 0.05), control=Control(kind="wrong formula", words="w"), kind="theorem")

    def found(checks, controls):
        parts = [{"claim": "c", "case": str(v), "role": "check", "value": v} for v in checks]
        parts += [{"claim": "c", "case": str(v), "role": "control", "value": v} for v in controls]
        return judge([of], pd.DataFrame(parts))[0]

    assert found([0.01, 0.05], [-1.0, 1.0]).decision == "supported"
    assert found([0.01, 0.06], [-1.0]).decision == "refuted"
    assert found([0.01], [0.01, -1.0]).why == "the control does not fail"
    assert found([0.01], []).decision == "undecided"
    assert found([nan], [-1.0]).decision == "undecided"


# --- looks


def test_errors_of_all_looks_together():
    for first in (SUPPORT_ERROR, REFUTE_ERROR):
        assert sum(spent(first, look) for look in range(1, 60)) <= 0.025
    assert [spent(SUPPORT_ERROR, look) for look in (1, 2, 3)] == [
        SUPPORT_ERROR,
        LATER_ERROR,
        LATER_ERROR / 2,
    ]


def test_what_an_early_look_decided_stays_decided():
    looks = [1] * 5 + [2] * 3
    evidence = pd.DataFrame(rows("c", "a", "check", dict(enumerate([*CLEAR, -9.0, 9.0, -5.0]))))
    foil = pd.DataFrame(
        rows("c", "f", "control", dict(enumerate([-9.0 + 0.1 * i for i in range(8)])))
    )
    (found,) = judge([claim()], pd.concat([evidence.assign(look=looks), foil.assign(look=looks)]))
    assert (found.decision, found.look) == ("supported", 1)


def test_two_rows_of_one_seed_are_refused():
    with pytest.raises(ValueError, match="one row of a seed"):
        judge([claim()], pd.concat([table({"a": CLEAR})] * 2))


def test_a_table_without_a_column_is_named():
    with pytest.raises(ValueError, match="'role'"):
        judge([claim()], table({"a": CLEAR}).drop(columns="role"))


@pytest.mark.parametrize("band", [(1.0, 0.0), (nan, 1.0)])
def test_a_band_must_have_its_ends_in_order(band):
    with pytest.raises(ValueError, match="low <= high"):
        claim(band=band)


def test_a_control_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="wrong formula"):
        claim(kind="theorem")
    with pytest.raises(ValueError, match="band"):
        Control(kind="sham", words="w")


# --- error rates, by simulation

DRAWS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    # A gamma distribution of shape 16 has skewness 1/2. For more skewness see the bound in judge's
    # docstring.
    "skewed to the right": lambda rng, shape: (rng.gamma(16.0, size=shape) - 16.0) / 4.0,
    "skewed to the left": lambda rng, shape: (16.0 - rng.gamma(16.0, size=shape)) / 4.0,
}


def sample(name, role, values, looks=None):
    n = len(values)
    return Sample(
        name,
        role,
        np.arange(n),
        values,
        np.full(n, nan),
        np.ones(n, int) if looks is None else looks,
    )


def rates(draw, *, cases, n, mean=0.0, looks=None, foil=-20.0, seed=0, band=(0.0, inf)):
    """Return how often each decision is taken."""
    rng = np.random.default_rng(seed)
    of, found = claim(band=band), {"supported": 0.0, "refuted": 0.0, "undecided": 0.0}
    for _ in range(SIMULATIONS):
        values = draw(rng, (cases + 1, n)) + mean
        checks = [sample(str(i), "check", values[i], looks) for i in range(cases)]
        decision, _ = decide(of, checks, [sample("foil", "control", values[-1] + foil, looks)])
        found[decision] += 1 / SIMULATIONS
    return found


@pytest.mark.parametrize("n", [5, 10])
@pytest.mark.parametrize("cases", [1, 4, 9])
@pytest.mark.parametrize("name", DRAWS)
def test_a_mean_at_the_bands_end_is_rarely_decided(name, cases, n):
    found = rates(DRAWS[name], cases=cases, n=n)
    assert found["supported"] <= 0.03 + MARGIN and found["refuted"] <= 0.03 + MARGIN, found


@pytest.mark.parametrize("cases", [1, 4])
def test_errors_stay_rare_with_several_looks(cases):
    """Errors stay as rare with several looks.

    There are five seeds, then one more at each of five looks, and judging stops at a decision.
    """
    found = rates(
        DRAWS["normal"], cases=cases, n=10, looks=np.array([1] * 5 + [2, 3, 4, 5, 6]), seed=1
    )
    assert found["supported"] <= 0.03 + MARGIN and found["refuted"] <= 0.03 + MARGIN, found


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_errors_stay_rare_with_a_band_of_two_ends(end):
    found = rates(DRAWS["normal"], cases=1, n=5, mean=end, foil=20.0, band=(-1.0, 1.0), seed=2)
    assert found["supported"] <= 0.03 + MARGIN and found["refuted"] <= 0.03 + MARGIN, found


def test_power_two_standard_deviations_inside():
    assert rates(DRAWS["normal"], cases=1, n=5, mean=2.0, seed=3)["supported"] >= 0.85 - MARGIN


def test_a_check_that_is_its_control_is_rarely_supported():
    """A claim whose treatment is its foil is rarely supported.

    However far inside the band both are, the foil does as well.
    """
    assert (
        rates(DRAWS["normal"], cases=1, n=5, mean=3.0, foil=0.0, seed=4)["supported"]
        <= 0.03 + MARGIN
    )


def test_a_check_that_is_its_sham_is_rarely_supported():
    rng = np.random.default_rng(5)
    of = claim(band=(0.5, inf), control=Control(kind="sham", words="w", band=(-0.5, 0.5)))
    supported = 0
    for _ in range(SIMULATIONS):
        check, sham = 0.2 * rng.standard_normal((2, 5))
        supported += (
            decide(of, [sample("a", "check", check)], [sample("a", "control", sham)])[0]
            == "supported"
        )
    assert supported / SIMULATIONS <= 0.03


@pytest.mark.parametrize("cases", [1, 4])
def test_plans_hold(cases):
    """A claim planned at its true effect is decided with the power that its plan promises.

    With several cases all have to be decided.
    """
    pilot = np.array([0.2, 1.8, 1.0, 0.4, 1.6])
    pilot = (pilot - pilot.mean()) / pilot.std(ddof=1)
    plan = verdict({str(case): pilot + 1.0 for case in range(cases)}).plan
    assert plan is not None and plan.seeds is not None
    looks = np.array([1] * 5 + [2] * plan.seeds)
    n = 5 + plan.seeds
    found = rates(DRAWS["normal"], cases=cases, n=n, mean=1.0, looks=looks, seed=6)
    assert 0.8 - MARGIN <= found["supported"] <= 0.92


def test_a_pilot_spends_no_look():
    """Fewer than five seeds decide nothing, so the first look after them is the first."""
    values = [1.0, 0.2, 0.9, 0.1, 1.0, 0.6]
    at_once = verdict({"a": values})
    looks = [1, 1, 1, 1, 2, 2]
    evidence = table({"a": values}, {"foil": [-9.0 + 0.1 * i for i in range(6)]})
    (in_two,) = judge([claim()], evidence.assign(look=looks * 2))
    assert (at_once.decision, at_once.look) == ("supported", 1)
    assert (in_two.decision, in_two.look) == ("supported", 1)
    (pilot,) = judge([claim()], evidence[evidence.seed < 4])
    assert (pilot.why, pilot.look, pilot.decided_on) == ("pilot", 0, 0)


def test_a_verdict_says_on_how_many_seeds_it_was_decided():
    """Seeds that came after the decision are in the mean and not in the verdict."""
    late = [-5.0, -6.0, -5.5, -5.0, -6.0, -5.5]
    evidence = table({"a": CLEAR + late}, {"foil": [-9.0 + 0.1 * i for i in range(11)]})
    (found,) = judge([claim()], evidence.assign(look=([1] * 5 + [2] * 6) * 2))
    assert (found.decision, found.look, found.decided_on) == ("supported", 1, 5)
    assert len(found.cases[0].seeds) == 11 and found.cases[0].mean < 0


def test_an_end_that_the_quantity_cannot_pass_is_not_tested():
    of = claim(band=(0.9, 1.0), limits=(0.0, 1.0))
    foil = {"foil": [0.5, 0.51, 0.49, 0.5, 0.5]}
    for values in ([1.0] * 5, [1.0, 1.0, 1.0, 0.99, 1.0]):
        assert verdict({"a": values}, foil, of=of).decision == "supported"
    assert of.tested == (0.9, inf) and of.direction == 1


def test_a_control_that_needs_seeds_is_what_the_plan_is_for():
    """Where the control has fewer seeds than the check, its own number counts."""
    check = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.1]
    found = verdict({"a": check}, {"foil": [1.6, -1.2, 1.5, -1.4, 0.3]})
    assert (found.why, found.control) == ("the control does not fail", "uninformative")
    assert found.plan is not None and found.plan.of_control
    assert found.planned == 5 + found.plan.seeds
    as_good = verdict({"a": check}, {"foil": check}).plan
    assert as_good == SeedPlan(None, pytest.approx(nan, nan_ok=True), of_control=True)


def test_a_run_that_diverged_is_not_mended_by_more_seeds():
    found = verdict({"a": [*CLEAR, nan]})
    assert (found.decision, found.why, found.plan) == ("undecided", "runs diverged", None)


def test_both_ends_of_a_band_share_the_error_of_a_refutation():
    """A band that is narrow next to the spread is not refuted twice as often as one end alone."""
    band = (-0.02, 0.02)
    found = rates(DRAWS["normal"], cases=1, n=5, foil=20.0, band=band, seed=8)
    assert found["refuted"] <= 0.0155  # 0.01, and three standard errors


def test_log_ratios_are_what_ratios_with_heavy_tails_should_be():
    """Log-normal ratios at the end of their band, judged by their logs, have the stated error."""
    found = rates(
        lambda rng, shape: rng.normal(log(1.5), 1.0, shape),
        cases=1,
        n=5,
        band=(log(1.5), inf),
        seed=7,
    )
    assert found["supported"] <= 0.03 + MARGIN and found["refuted"] <= 0.03 + MARGIN
    assert not isnan(found["supported"])
