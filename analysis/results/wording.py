"""Verdicts in words, the same in the report, its tables and the terminal."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf, isinf, isnan

from analysis.results.claims import SEEDS_OF_AN_EPOCH, Claim
from analysis.results.evidence import CONTROL
from analysis.results.seed_plan import MAX_SEEDS
from analysis.results.verdict import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Case,
    Decision,
    SeedPlan,
    Verdict,
)

MEASURED = "mean over seeds with its 95 % Student-t interval"
# Where a case is, seen from its claim's band.
PLACES: dict[Decision, str] = {SUPPORTED: "inside", REFUTED: "outside", UNDECIDED: "undecided"}


def number(value: float) -> str:
    """Return a number in four digits; ∞ where it is infinite."""
    if isnan(value):
        return "–"
    if isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value + 0.0:.4g}"  # no -0


def interval(case: Case) -> str:
    """Return a case's mean with its interval, in words, or the mean alone where it has none."""
    if isnan(case.low) or case.low == case.high:
        return number(case.mean)
    return f"{number(case.mean)} [{number(case.low)}, {number(case.high)}]"


def band(ends: tuple[float, float]) -> str:
    """Return a band, in words."""
    low, high = ends
    if isinf(low) and isinf(high):
        return "any value"
    if isinf(high):
        return f"≥ {number(low)}"
    return f"≤ {number(high)}" if isinf(low) else f"[{number(low)}, {number(high)}]"


def foremost(verdict: Verdict, count: int | None = None) -> tuple[tuple[Case, ...], str]:
    """Return the cases to name where there is no room for all, and words on the others.

    The cases are those furthest outside the band or nearest to an end of it. Where nothing was
    judged, they are what is shown, without controls. The words are like "and 12 more inside".

    count: how many cases. By default one for a theorem, whose values are many and exact, and all
        for an experiment.
    """
    checks = tuple(case for case in verdict.shown if CONTROL not in case.role)
    cases = verdict.cases or checks or verdict.shown
    most = (1 if verdict.claim.kind == "theorem" else len(cases)) if count is None else count
    chosen = sorted(range(len(cases)), key=lambda i: margin(cases[i], verdict.claim))[:most]
    places = [PLACES[case.decision] if verdict.cases else "shown" for case in cases]
    others = [place for i, place in enumerate(places) if i not in chosen]
    return tuple(cases[i] for i in sorted(chosen)), _others(others)


def _others(places: Sequence[str]) -> str:
    counts = {place: places.count(place) for place in dict.fromkeys(places)}
    if len(counts) > 1:
        how_many = [f"{number} {place}" for place, number in counts.items()]
        return f"and {len(places)} more: {', '.join(how_many)}"
    return f"and {len(places)} more {places[0]}" if places else ""


def margin(case: Case, claim: Claim) -> float:
    """Return how far inside the band a case's mean is; negative outside.

    It is the distance from the nearer of the ends that can be missed.
    """
    low, high = claim.tested
    return -inf if isnan(case.mean) else min(case.mean - low, high - case.mean)


def control(claim: Claim) -> str:
    """Return in words what kind of control a claim has, and what it must do."""
    if claim.control.kind == "sham":
        assert claim.control.band is not None
        return (
            "a sham, which must show nothing: its interval must lie within "
            f"{band(claim.control.band)}"
        )
    if claim.control.kind == "foil" and claim.direction:
        return "a foil, which must fall short of the check, seed by seed"
    return f"a {claim.control.kind}, which must lie outside the band"


def outcome(verdict: Verdict) -> str:
    """Return in words what the control did."""
    if not verdict.controls:
        return "not measured"
    beaten = verdict.claim.control.kind == "foil" and verdict.claim.direction
    return {
        "failed": "fell short of the check, as it must" if beaten else "failed, as it must",
        "passed": "passed, so this check can support nothing",
        "uninformative": "neither failed nor passed",
    }[verdict.control]


def seeds(cases: Iterable[Case], *, which: bool = True) -> str:
    """Return the seeds of some cases in words: "5 seeds of epoch 1 (1000–1004)".

    which: whether to give the part in parentheses. Empty where the cases have no seeds.
    """
    met: set[int] = set()
    for case in cases:
        met.update(case.seeds)
    every = sorted(seed for seed in met if seed >= 0)
    if not every:
        return ""
    epochs = sorted({seed // SEEDS_OF_AN_EPOCH for seed in every})
    words = f"{len(every)} seed{'s' * (len(every) > 1)} of epoch{'s' * (len(epochs) > 1)} "
    return words + ", ".join(map(str, epochs)) + (f" ({_ranges(every)})" if which else "")


def _ranges(numbers: Sequence[int]) -> str:
    """Return whole numbers in words, consecutive ones as a range."""
    breaks = [i for i, (a, b) in enumerate(pairwise(numbers), start=1) if b != a + 1]
    parts = [numbers[i:j] for i, j in pairwise([0, *breaks, len(numbers)])]
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def reason(verdict: Verdict) -> str:
    """Return why an undecided claim is undecided, and what would decide it; empty for others."""
    if verdict.decision != "undecided":
        return ""
    words = {
        "not measured": "not measured",
        "shown only": f"judged from the {verdict.claim.least} profile on",
        "earlier epoch": (
            f"judged from epoch {verdict.claim.epoch} on: earlier seeds shaped the criterion"
        ),
        "pilot": "fewer than five seeds are a pilot",
        "too wide": "the intervals are too wide",
        "the control does not fail": "the control does not fail",
        "runs diverged": "runs diverged",
    }[verdict.why]
    return f"{words}; {plan(verdict.plan)}" if verdict.plan else words


def whole(verdict: Verdict) -> str:
    """Return the verdict in words, with its reason where it is undecided."""
    return ": ".join(filter(None, (verdict.decision, reason(verdict))))


def plan(found: SeedPlan) -> str:
    """Return in words what would decide: "4 more seeds, about 3 minutes"."""
    if found.seeds is None:
        near = "its control is too near to the check"
        if not found.of_control:
            near = "it is too near to an end of its band"
        return f"more than {MAX_SEEDS} seeds would be needed at this scale: {near}"
    words = f"{found.seeds} more seed{'s' * (found.seeds != 1)}"
    return words if isnan(found.seconds) else f"{words}, about {duration(found.seconds)}"


def judged_by(verdict: Verdict) -> str:
    """Return in words which seeds judged: "5 seeds of epoch 1 (1000–1004), at look 1".

    Seeds that were added after the decision are told apart. Empty where there are no seeds.
    """
    words = seeds(verdict.cases)
    if not words or not verdict.look:
        return words
    if 0 < verdict.decided_on < max(len(case.seeds) for case in verdict.cases):
        words = f"the first {verdict.decided_on} of {words}"
    return f"{words}, at look {verdict.look}"


def duration(seconds: float, *, digits: int = 0) -> str:
    """Return seconds in words, in the largest unit of which there are at least two.

    digits: after the point, of minutes, hours and days.
    """
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    whole = max(round(seconds), 1) if seconds else 0
    return f"{whole} second{'s' * (whole != 1)}"
