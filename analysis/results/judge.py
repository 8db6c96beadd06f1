"""The judge: claims and a table of evidence in, verdicts out.

Its error rates are known by simulation.

A theorem is supported where every check is in the band and every wrong formula outside it. It is
refuted where a check is outside. An experiment is judged over seeds, by Student's t on one value a
seed:

- refuted, by itself, where the mean of some case is outside the band: one-sided, with Holm's
  correction over cases;
- supported where the mean of every case is inside (an intersection-union test; two one-sided tests
  where the band has two ends) and the control fails; a control never hides a refutation;
- undecided otherwise.

Every further look at a claim with more seeds spends a share of its error (Bonferroni). So seeds may
be added until it is decided, by any rule. Fewer than five seeds are a pilot and judge nothing.

No rule of this power avoids one weakness. Take a test on five seeds that supports a normal mean two
standard deviations inside with probability 0.85. It supports a mean at the band's end with
probability 0.029, 0.042 and 0.082 or more where values have skewness 1/2, 1 and 2 towards the
inside (Neyman and Pearson's bound, computed for gamma distributions). So quantities should be
nearly symmetric over seeds, as means over many tasks and logs of ratios are. A refutation needs no
such power, and is held to a smaller error.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from analysis.results import statistics
from analysis.results.claims import PROFILES, Claim, Profile
from analysis.results.evidence import CHECK, CONTROL, SHOWN, tabulate
from analysis.results.statistics import Mean, Values, holm

Decision = Literal["supported", "refuted", "undecided"]
SUPPORTED: Decision = "supported"
REFUTED: Decision = "refuted"
UNDECIDED: Decision = "undecided"
DECISIONS: tuple[Decision, ...] = (SUPPORTED, REFUTED, UNDECIDED)
# What a control did; it must have failed.
ControlOutcome = Literal["failed", "passed", "uninformative"]
Why = Literal[
    "", "not measured", "shown only", "earlier epoch", "pilot", "too wide",
    "the control does not fail", "runs diverged"
]  # fmt: skip

LEAST_SEEDS = 5
# One-sided error of the first look, and of the second; every further look spends half of the one
# before. The sums are 0.0245 and 0.016.
SUPPORT_ERROR, REFUTE_ERROR, LATER_ERROR = 0.0185, 0.01, 0.003
CONTROL_ERROR = 0.025
POWER = 0.8  # of a plan
MAX_SEEDS = 200  # of a plan: beyond, a claim is too near its band's end to be decided here


@dataclass(frozen=True)
class Sample:
    """The values of one case in one role, one value a seed.

    task_errors: the error of each value over tasks; NaN where it has none.
    looks: the look at which each value was first seen.
    """

    name: str
    role: str
    seeds: np.ndarray
    values: Values
    task_errors: Values
    looks: np.ndarray
    tasks: float = nan
    queries: float = nan
    data: str = ""

    @property
    def task_error(self) -> float:
        """The root mean square of the values' errors over tasks; NaN where they have none."""
        known = self.task_errors[np.isfinite(self.task_errors)]
        return float(np.sqrt(np.mean(known**2))) if known.size else nan

    @property
    def mean(self) -> Mean:
        """The mean with its spread over seeds, which is at least the values' error over tasks."""
        return Mean.of(self.values, self.task_error if isfinite(self.task_error) else 0.0)

    def until(self, look: int) -> "Sample":
        """Return the part that was seen up to a look."""
        seen = self.looks <= look
        if seen.all():
            return self
        return replace(
            self,
            seeds=self.seeds[seen],
            values=self.values[seen],
            task_errors=self.task_errors[seen],
            looks=self.looks[seen],
        )


@dataclass(frozen=True)
class Case:
    """One case of a claim: its mean over seeds with an interval, and its decision by itself.

    low, high: the 95 % Student-t interval, cut off at the quantity's limits; NaN for fewer than two
        seeds.
    sd: over seeds.
    task_error: of one seed, over tasks; NaN where there is none.
    """

    name: str
    role: str
    decision: Decision
    mean: float
    low: float
    high: float
    sd: float = nan
    task_error: float = nan
    tasks: float = nan
    queries: float = nan
    seeds: tuple[int, ...] = ()
    data: str = ""


Named = TypeVar("Named", Sample, Case)


@dataclass(frozen=True)
class SeedPlan:
    """What would decide an undecided claim.

    seeds: how many more; None where no number up to MAX_SEEDS would.
    seconds: what they take here, as measured; NaN where that is not known.
    of_control: whether the control is what needs them, so that the check alone must not get them.
    """

    seeds: int | None
    seconds: float = nan
    of_control: bool = False


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict, with everything that led to it.

    cases, controls, shown: of all seeds there are, those after the decision included.
    look: the look at which it was decided, or the last one.
    decided_on: the number of seeds of each case at that look; 0 where it is undecided, and of a
        theorem.
    """

    claim: Claim
    decision: Decision
    why: Why = "not measured"
    cases: tuple[Case, ...] = ()
    controls: tuple[Case, ...] = ()
    control: ControlOutcome = "uninformative"
    shown: tuple[Case, ...] = ()
    look: int = 0
    epochs: tuple[int, ...] = ()
    plan: SeedPlan | None = None
    profile: str = ""
    diverged: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    decided_on: int = 0

    @property
    def planned(self) -> int | None:
        """The number of seeds in all that the plan asks for; None where there is no such number."""
        if self.plan is None or not self.plan.seeds:
            return None
        cases = self.cases + (self.controls if self.plan.of_control else ())
        return min(len(case.seeds) for case in cases) + self.plan.seeds


def judge(claims: Iterable[Claim], evidence: pd.DataFrame) -> list[Verdict]:
    """Return a verdict for each claim, in order.

    evidence: a tidy table with the columns claim, case, role, seed and value, and perhaps
        task_error, tasks, queries, epoch, look, seconds and data (`evidence.COLUMNS`). role is
        "check", "control", or anything else for what is only shown. Rows of an epoch before the
        claim's own are only shown. A diverged seed must be among them, with the value that its
        divergence is worth; a value that is not finite decides nothing. Rows of a smaller profile
        than the claim's `least` are only shown, too.
    """
    table = tabulate(evidence)
    groups = {str(name): part for name, part in table.groupby("claim", sort=False)}
    return [_judge(claim, groups.get(claim.id, table.iloc[:0])) for claim in claims]


def decide(
    claim: Claim, checks: Sequence[Sample], controls: Sequence[Sample]
) -> tuple[Decision, int]:
    """Return the decision of an experiment from its samples alone, and the look at which it fell.

    Looks are counted from 1. A look at fewer than LEAST_SEEDS is a pilot: it can decide nothing, so
    it spends no error and is not counted. The count is 0 where there was no other.
    """
    decision, number, _ = _decide(claim, checks, controls)
    return decision, number


def _decide(
    claim: Claim, checks: Sequence[Sample], controls: Sequence[Sample]
) -> tuple[Decision, int, int]:
    """Return the decision, its look as counted, and that look as the samples number it."""
    number, look = 0, 0
    for look in sorted({int(look) for sample in (*checks, *controls) for look in sample.looks}):
        seen = _until(look, checks)
        if not _are_enough(seen):
            continue
        number += 1
        decision, *_ = _at_look(claim, seen, _until(look, controls), number)
        if decision != UNDECIDED:
            return decision, number, look
    return UNDECIDED, number, look


def _are_enough(samples: Sequence[Sample]) -> bool:
    return all(len(sample.values) >= LEAST_SEEDS for sample in samples)


def _until(look: int, samples: Iterable[Sample]) -> list[Sample]:
    return [sample.until(look) for sample in samples]


def _judge(claim: Claim, rows: pd.DataFrame) -> Verdict:
    stale = rows["epoch"].astype(float) < claim.epoch  # these seeds shaped the criterion
    small = rows["profile"].map(lambda profile: _is_below(profile, claim.least)).astype(bool)
    role = rows.role.where(~stale, rows.role + ", earlier epoch")
    rows = rows.assign(role=role.where(~small, role + ", smaller profile"))
    verdict = _theorem(claim, rows) if claim.kind == "theorem" else _experiment(claim, rows)
    if len(rows) and stale.all():
        verdict = replace(verdict, why="earlier epoch")
    return replace(
        verdict,
        epochs=tuple(sorted({int(epoch) for epoch in rows.epoch.dropna()})),
        data=tuple(dict.fromkeys(map(str, rows["data"].dropna()))),
        profile=next(iter(map(str, rows.profile.dropna())), ""),
        diverged=tuple(dict.fromkeys(map(str, rows.diverged.dropna()))),
    )


def _is_below(profile: object, least: Profile) -> bool:
    """Return whether a profile is smaller than the least; an unknown one is not."""
    return profile in PROFILES and PROFILES.index(profile) < PROFILES.index(least)


def _theorem(claim: Claim, rows: pd.DataFrame) -> Verdict:
    """Return the verdict on a theorem: each of its values is judged by itself."""
    cases: dict[str, list[Case]] = {CHECK: [], CONTROL: [], SHOWN: []}
    for row in rows.to_dict("records"):
        value, role = float(row["value"]), row["role"] if row["role"] in cases else SHOWN
        within = claim.band[0] <= value <= claim.band[1]
        place = SUPPORTED if within else REFUTED if isfinite(value) else UNDECIDED
        cases[role].append(
            Case(row["case"], role, place, value, value, value, data=_text(row["data"]))
        )
    checks, controls = cases[CHECK], cases[CONTROL]
    control: ControlOutcome = "uninformative"
    if controls:
        control = "failed" if all(case.decision == REFUTED for case in controls) else "passed"
    decision, why = _theorem_decision({case.decision for case in checks}, control)
    return Verdict(
        claim, decision, why, tuple(checks), tuple(controls), control, tuple(cases[SHOWN]), look=1
    )


def _theorem_decision(places: set[Decision], control: ControlOutcome) -> tuple[Decision, Why]:
    if not places:
        return UNDECIDED, "not measured"
    if REFUTED in places:
        return REFUTED, ""
    if UNDECIDED in places:
        return UNDECIDED, "runs diverged"
    return (SUPPORTED, "") if control == "failed" else (UNDECIDED, "the control does not fail")


def _experiment(claim: Claim, rows: pd.DataFrame) -> Verdict:
    samples = _samples(rows)
    checks = [sample for sample in samples if sample.role == CHECK]
    controls = [sample for sample in samples if sample.role == CONTROL]
    shown = tuple(_case(claim, s) for s in samples if s.role not in (CHECK, CONTROL))
    if not checks:
        return Verdict(claim, UNDECIDED, "shown only" if shown else "not measured", shown=shown)
    decision, number, look = _decide(claim, checks, controls)
    seen = _until(look, checks), _until(look, controls)  # as it stood when it was decided
    _, why, places, control = _at_look(claim, *seen, max(number, 1))
    return Verdict(
        claim,
        decision,
        why,
        tuple(_case(claim, sample, place) for sample, place in zip(checks, places, strict=True)),
        tuple(_case(claim, sample) for sample in controls),
        control,
        shown,
        number,
        plan=_plan(claim, checks, controls, number + 1, why, _seconds(rows)),
        decided_on=0 if decision == UNDECIDED else max(len(sample.values) for sample in seen[0]),
    )


def _place(is_in: bool, is_out: bool) -> Decision:
    if is_out:
        return REFUTED
    return SUPPORTED if is_in else UNDECIDED


def _at_look(
    claim: Claim, checks: Sequence[Sample], controls: Sequence[Sample], number: int
) -> tuple[Decision, Why, list[Decision], ControlOutcome]:
    """Return the decision from these samples at the look with this number, and its parts.

    The parts are why it is undecided, the decision of each case, and what the control did.
    """
    enough = _are_enough(checks)
    support, refute = spent(SUPPORT_ERROR, number), spent(REFUTE_ERROR, number)
    means = [sample.mean for sample in checks]
    within = [enough and mean.inside(claim.tested) <= support for mean in means]
    beyond = holm([mean.outside(claim.tested) if enough else 1.0 for mean in means], refute)
    places = [_place(is_in, out) for is_in, out in zip(within, beyond, strict=True)]
    control = _control(claim, checks, controls)
    if any(beyond):
        return REFUTED, "", places, control
    if not all(isfinite(mean.mean) for mean in means):
        return UNDECIDED, "runs diverged", places, control
    if not enough:
        return UNDECIDED, "pilot", places, control
    if not all(within):
        return UNDECIDED, "too wide", places, control
    if control != "failed":
        return UNDECIDED, "the control does not fail", places, control
    return SUPPORTED, "", places, control


def spent(first: float, look: int) -> float:
    """Return the error that a look may make.

    It is `first` at the first look, then LATER_ERROR, half of that, a quarter, and so on.
    """
    return first if look == 1 else LATER_ERROR / 2 ** (look - 2)


def _control(claim: Claim, checks: Sequence[Sample], controls: Sequence[Sample]) -> ControlOutcome:
    """Return what the controls did: "failed", as they must, if every one of them failed."""
    outcomes = {_one_control(claim, checks, sample) for sample in controls} or {"uninformative"}
    return next(outcome for outcome in ("passed", "uninformative", "failed") if outcome in outcomes)


def _one_control(claim: Claim, checks: Sequence[Sample], control: Sample) -> ControlOutcome:
    if len(control.values) < LEAST_SEEDS:
        return "uninformative"
    mean = control.mean
    sham = claim.control.band
    if sham is not None:
        if mean.inside(sham) <= CONTROL_ERROR:
            return "failed"
        return "passed" if mean.outside(sham) <= CONTROL_ERROR else "uninformative"
    if claim.direction == 0:
        fails = mean.outside(claim.tested) <= CONTROL_ERROR
    else:
        apart = [claim.direction * paired(rival, control) for rival in rivals(checks, control)]
        fails = all(Mean.of(differences).above(0.0) <= CONTROL_ERROR for differences in apart)
    if fails:
        return "failed"
    return "passed" if mean.inside(claim.tested) <= CONTROL_ERROR else "uninformative"


def rivals(checks: Sequence[Named], control: Named) -> list[Named]:
    """Return what a foil is compared with.

    It is the check of its own case, or every check where none has its name.
    """
    return [sample for sample in checks if sample.name == control.name] or list(checks)


def paired(check: Sample, control: Sample) -> Values:
    """Return check less control, for the seeds that both have."""
    _, mine, others = np.intersect1d(check.seeds, control.seeds, return_indices=True)
    return check.values[mine] - control.values[others]


def _plan(
    claim: Claim,
    checks: Sequence[Sample],
    controls: Sequence[Sample],
    look: int,
    why: Why,
    seconds: float,
) -> SeedPlan | None:
    """Return how many more seeds would decide with probability POWER.

    The mean and the spread of every case are taken to stay as they are, and cases to be
    independent. None where the claim is decided, or a run diverged, which more seeds do not undo.

    look: the number of the next look.
    why: why the claim is undecided.
    """
    if why in ("", "runs diverged"):
        return None
    of_control = why == "the control does not fail"
    have = min(len(sample.values) for sample in (*checks, *(controls if of_control else ())))
    if have < 2:
        return SeedPlan(LEAST_SEEDS - have, seconds * (LEAST_SEEDS - have), of_control)
    inside = [sample.mean.depth(claim.tested) for sample in checks]
    ends = max(1, sum(map(isfinite, claim.tested)))
    failed = not of_control and _control(claim, checks, controls) == "failed"
    fails = [] if failed else [_depth_of_control(claim, checks, sample) for sample in controls]
    for total in range(max(LEAST_SEEDS, have + 1), MAX_SEEDS + 1):
        power = statistics.power_of_all(
            inside,
            fails,
            total,
            support=spent(SUPPORT_ERROR, look),
            refute=spent(REFUTE_ERROR, look) / ends,
            control=CONTROL_ERROR,
        )
        if power >= POWER:
            return SeedPlan(total - have, seconds * (total - have), of_control)
    return SeedPlan(None, of_control=of_control)


def _depth_of_control(claim: Claim, checks: Sequence[Sample], control: Sample) -> float:
    """Return how clearly a control fails, in standard deviations over seeds.

    It is infinite where too few seeds say anything about that.
    """
    if len(control.values) < 2:
        return inf
    if claim.control.band is not None:
        return control.mean.depth(claim.control.band)
    if claim.direction == 0:
        return -control.mean.depth(claim.tested)
    apart = [claim.direction * paired(rival, control) for rival in rivals(checks, control)]
    means = [Mean.of(differences) for differences in apart if len(differences) > 1]
    return min((mean.depth((0.0, inf)) for mean in means), default=inf)


def _samples(rows: pd.DataFrame) -> list[Sample]:
    """Return one sample for each case and role, in the order of their first rows."""
    return [_sample(part) for _, part in rows.groupby(["case", "role"], sort=False)]


def _sample(rows: pd.DataFrame) -> Sample:
    def numbers(name: str, missing: float) -> Any:
        return rows[name].astype(float).fillna(missing).to_numpy()

    name, role, data = rows[["case", "role", "data"]].iloc[0]
    return Sample(
        str(name),
        str(role),
        numbers("seed", -1).astype(int),
        rows["value"].to_numpy(dtype=float),
        rows["task_error"].to_numpy(dtype=float),
        numbers("look", 1).astype(int),
        float(rows["tasks"].astype(float).mean()),
        float(rows["queries"].astype(float).mean()),
        _text(data),
    )


def _case(claim: Claim, sample: Sample, decision: Decision = UNDECIDED) -> Case:
    """Return a sample's mean with its interval."""
    mean = Mean.of(sample.values)
    low, high = mean.interval()
    least, most = claim.limits
    return Case(
        sample.name,
        sample.role,
        decision,
        mean.mean,
        max(low, least) if isfinite(low) else low,
        min(high, most) if isfinite(high) else high,
        mean.deviation if mean.n > 1 else nan,
        sample.task_error,
        sample.tasks,
        sample.queries,
        tuple(int(seed) for seed in sample.seeds),
        sample.data,
    )


def _seconds(rows: pd.DataFrame) -> float:
    """Return what one more seed takes, in seconds."""
    return float(rows["seconds"].astype(float).max())


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)
