"""How many more seeds would decide a claim that is undecided."""

from collections.abc import Sequence
from math import inf, isfinite

from analysis.results import statistics
from analysis.results.claims import Claim
from analysis.results.error_rates import (
    CONTROL_ERROR,
    LEAST_SEEDS,
    REFUTE_ERROR,
    SUPPORT_ERROR,
    spent,
)
from analysis.results.samples import Sample, paired, rivals
from analysis.results.statistics import Mean
from analysis.results.verdict import ControlOutcome, SeedPlan, Why

POWER = 0.8  # with which the planned seeds decide
MAX_SEEDS = 200  # beyond, a claim is too near its band's end to be decided here


def plan_seeds(
    claim: Claim,
    checks: Sequence[Sample],
    controls: Sequence[Sample],
    *,
    look: int,
    why: Why,
    control: ControlOutcome,
    seconds: float,
) -> SeedPlan | None:
    """Return how many more seeds would decide with probability POWER.

    The mean and the spread of every case are taken to stay as they are, and cases to be
    independent. None where the claim is decided, or a run diverged, which more seeds do not undo.

    look: the number of the next look.
    why: why the claim is undecided.
    control: what the control did.
    seconds: what one more seed takes.
    """
    if why in ("", "runs diverged"):
        return None
    of_control = why == "the control does not fail"
    have = min(len(sample.values) for sample in (*checks, *(controls if of_control else ())))
    if have < 2:
        return SeedPlan(LEAST_SEEDS - have, seconds * (LEAST_SEEDS - have), of_control)
    inside = [sample.mean.depth(claim.tested) for sample in checks]
    ends = max(1, sum(map(isfinite, claim.tested)))
    open_controls = () if control == "failed" else controls
    fails = [_depth_of_control(claim, checks, sample) for sample in open_controls]
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
