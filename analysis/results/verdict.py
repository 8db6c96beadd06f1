"""A claim's verdict with everything that led to it: what the judge gives and the ledger keeps."""

from dataclasses import dataclass
from math import nan
from typing import Literal

from analysis.results.claims import Claim

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
