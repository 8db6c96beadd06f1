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
from dataclasses import replace
from math import isfinite, nan

import pandas as pd

from analysis.results.claims import PROFILES, Claim, Profile
from analysis.results.error_rates import (
    CONTROL_ERROR,
    LEAST_SEEDS,
    REFUTE_ERROR,
    SUPPORT_ERROR,
    spent,
)
from analysis.results.evidence import CHECK, CONTROL, SHOWN, tabulate, text_of
from analysis.results.samples import Sample, paired, rivals, samples_of
from analysis.results.seed_plan import plan_seeds
from analysis.results.statistics import Mean, holm
from analysis.results.verdict import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Case,
    ControlOutcome,
    Decision,
    Verdict,
    Why,
)


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
            Case(row["case"], role, place, value, value, value, data=text_of(row["data"]))
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
    samples = samples_of(rows)
    checks = [sample for sample in samples if sample.role == CHECK]
    controls = [sample for sample in samples if sample.role == CONTROL]
    shown = tuple(_case(claim, s) for s in samples if s.role not in (CHECK, CONTROL))
    if not checks:
        return Verdict(claim, UNDECIDED, "shown only" if shown else "not measured", shown=shown)
    decision, number, look = _decide(claim, checks, controls)
    seen = _until(look, checks), _until(look, controls)  # as it stood when it was decided
    _, why, places, control = _at_look(claim, *seen, max(number, 1))
    plan = plan_seeds(
        claim, checks, controls, look=number + 1, why=why, control=control, seconds=_seconds(rows)
    )
    return Verdict(
        claim,
        decision,
        why,
        tuple(_case(claim, sample, place) for sample, place in zip(checks, places, strict=True)),
        tuple(_case(claim, sample) for sample in controls),
        control,
        shown,
        number,
        plan=plan,
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
