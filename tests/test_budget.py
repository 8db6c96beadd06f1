"""What a budget buys: the seeds that decide most per second, with shared runs paid for once.

Also how seeds are added.
"""

from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis import budget
from analysis.ending import UsageError
from analysis.experiments.registry import EXPERIMENTS
from analysis.results import folder, ledger, manifest
from analysis.results.claims import Claim, Control
from analysis.results.error_rates import CONTROL_ERROR
from analysis.results.statistics import power
from analysis.results.verdict import Case, SeedPlan, Verdict

FOIL = Control(kind="foil", words="w")
NAMES = [
    name
    for name, one in EXPERIMENTS.items()
    if any(claim.kind == "experiment" for claim in one.claims)
][:3]


def verdict(
    id: str,
    mean: float,
    sd: float = 1.0,
    decision="undecided",
    control="failed",
    plan=None,
    seeds=5,
):
    claim = Claim(
        id=id,
        kind="experiment",
        sources=("N",),
        statement="s",
        quantity="q",
        band=(0.0, inf),
        reason="r",
        control=FOIL,
    )
    case = Case("a", "check", "undecided", mean, mean - 1, mean + 1, sd, seeds=tuple(range(seeds)))
    return Verdict(claim, decision, "", (case,), control=control, plan=plan)


@pytest.fixture
def pilot(tmp_path: Path):
    """Return a function that writes a pilot with the given effects and costs.

    The pilot's claims are the first ones of three experiments.
    """

    def make(effects, costs):
        first = [EXPERIMENTS[name].claims[0].id for name in NAMES]
        ledger.write(
            [verdict(id, effect) for id, effect in zip(first, effects, strict=True)], tmp_path
        )
        rows = [
            f"{NAMES[i]},{what},{seconds}"
            for i, part in enumerate(costs)
            for what, seconds in part.items()
        ]
        (tmp_path / "costs.csv").write_text("\n".join(["experiment,what,seconds", *rows]) + "\n")
        return tmp_path

    return make


def test_power_grows_with_seeds_and_needs_a_control() -> None:
    near, far = verdict("c", 0.3), verdict("c", 2.0)
    assert budget.power(far, 5) == pytest.approx(0.86, abs=0.01)
    assert budget.power(near, 5) < budget.power(near, 20) < budget.power(near, 48)
    assert budget.power(far, 4) == 0.0
    assert budget.power(verdict("c", 2.0, control="passed"), 20) == 0.0
    assert budget.power(verdict("c", -3.0, control="passed"), 10) > 0.9  # a refutation needs none


def test_a_control_that_said_nothing_in_the_pilot_may_fail_with_more_seeds() -> None:
    pilot = verdict("c", 2.0, control="uninformative")
    near, far = (
        Case("a", "control", "undecided", mean, mean - 1, mean + 1, sd=1.0) for mean in (1.0, 5.0)
    )
    assert budget.power(pilot, 20) == 0.0  # the pilot's verdict has no control values
    # The difference is 1 with standard deviation sqrt(2), an effect size of 0.71.
    assert 0.1 < budget.power(replace(pilot, controls=(near,)), 5) < 0.3
    assert budget.power(replace(pilot, controls=(near,)), 20) == pytest.approx(
        power(0.5**0.5, CONTROL_ERROR, 20)
    )
    assert budget.power(replace(pilot, controls=(far,)), 20) == 0.0  # it does better than the check
    sham = replace(pilot.claim, control=Control(kind="sham", words="w", band=(-3.0, 3.0)))
    assert budget.power(replace(pilot, claim=sham, controls=(near,)), 10) > 0.95


def test_a_pilot_counts_seeds_that_shaped_a_criterion(monkeypatch, tmp_path: Path) -> None:
    claim = verdict("c", 1.0).claim
    monkeypatch.setitem(EXPERIMENTS, "mine", SimpleNamespace(claims=(replace(claim, epoch=7),)))
    monkeypatch.setattr(manifest, "read", lambda path: {"experiments": {"mine": {}}})
    table = pd.DataFrame(
        [
            {"claim": "c", "case": "a", "role": "check", "seed": 6000 + i, "value": 1 + 0.1 * i}
            for i in range(5)
        ]
    )
    folder.write_evidence(
        tmp_path,
        "mine",
        folder.complete(table, data="d", profile="quick", diverged=(), seconds=1.0, workers=1),
    )
    (found,) = budget.measure_effects(tmp_path)
    assert [len(case.seeds) for case in found.cases] == [5]
    assert found.decision == "undecided"  # without a control


def test_what_decides_most_per_second_comes_first(pilot) -> None:
    folder = pilot([3.0, 3.0, 3.0], [{"seed": 100.0}, {"seed": 1.0}, {"seed": 10.0}])
    assert set(budget.choose(NAMES, 20.0, workers=1, pilot=folder)) == {NAMES[1]}
    assert set(budget.choose(NAMES, 40.0, workers=2, pilot=folder)) == {NAMES[1], NAMES[2]}
    assert set(budget.choose(NAMES, 2_000.0, workers=1, pilot=folder)) == set(NAMES)
    assert set(budget.choose(NAMES[:1], 2_000.0, workers=1, pilot=folder)) == {NAMES[0]}


def test_shared_runs_are_paid_once(pilot) -> None:
    folder = pilot(
        [3.0, 3.0, 3.0], [{"seed": 1.0, "g1": 10.0}, {"seed": 1.0, "g1": 10.0}, {"seed": 40.0}]
    )
    assert set(budget.choose(NAMES, 61.0, workers=1, pilot=folder)) == {NAMES[0], NAMES[1]}


def test_what_cannot_be_decided_is_not_paid_for(pilot) -> None:
    folder = pilot([3.0, 0.0, 0.0], [{"seed": 1.0}, {"seed": 1.0}, {"fixed": 5.0, "seed": 1.0}])
    assert set(budget.choose(NAMES, 10_000.0, workers=1, pilot=folder)) == {NAMES[0]}


def test_too_little_time_is_an_error(pilot) -> None:
    folder = pilot([3.0, 3.0, 3.0], [{"seed": 100.0}, {"seed": 100.0}, {"seed": 100.0}])
    with pytest.raises(
        UsageError, match="--budget: expected time for at least one experiment, found 1 seconds"
    ):
        budget.choose(NAMES, 1.0, workers=1, pilot=folder)


def test_seeds_are_added_where_a_plan_says_so() -> None:
    first, second = (EXPERIMENTS[name].claims[0].id for name in NAMES[:2])
    together = [replace(EXPERIMENTS[name], compares={}) for name in NAMES]
    alone = [replace(one, compares={first: ("g1",)}) for one in together]
    found = [
        verdict(first, 1.0, plan=SeedPlan(3)),
        verdict(second, 1.0, decision="supported"),
    ]
    assert budget.more_seeds(found, together) == {NAMES[0]: 8}
    assert budget.more_seeds(found, alone) == {first: 8}
    assert budget.more_seeds([verdict(first, 0.0, plan=SeedPlan(None))], alone) == {}
    assert budget.more_seeds([verdict(first, 0.1, plan=SeedPlan(100))], together) == {
        NAMES[0]: 5 + budget.MAX_AT_ONCE
    }
