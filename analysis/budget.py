"""How many seeds, and of which experiments, decide most claims in a given time.

Means and spreads are those of an earlier run's ledger, of other seeds, and costs those that it measured. From nothing,
the step (an experiment's next number of seeds) with the largest gain in the expected number of decided claims per
second is taken, until the time is spent. Runs that experiments share are paid once. Then everything is run, and judged
once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import pandas as pd

from analysis.ending import UsageError
from analysis.results import ledger, statistics
from analysis.results.claims import Claim
from analysis.results.judge import LEAST_SEEDS, MOST_SEEDS, REFUTE_ERROR, SUPPORT_ERROR, UNDECIDED, Case, Verdict

PILOT = Path(__file__).parent / "pilot"  # claims.json and costs.csv of an earlier run, see its README
STEPS = (5, 6, 8, 10, 12, 16, 20, 24, 32, 48)  # numbers of seeds that are considered
MOST_AT_ONCE = 20  # seeds that are added in one round of --until-decided


@dataclass(frozen=True)
class Cost:
    """What an experiment takes on one core: fixed seconds, seconds a seed of its own, and seconds a seed of each of the
    runs that it shares with others, by their names."""

    fixed: float
    seed: float
    runs: Mapping[str, float]


def choose(names: Sequence[str], seconds: float, *, workers: int, pilot: Path = PILOT) -> dict[str, int]:
    """Return the number of seeds of each experiment worth running, of those named. Experiments of theorems alone,
    whose seeds decide nothing, come first. UsageError where the time does not suffice for anything."""
    verdicts, costs = ledger.read(pilot), read_costs(pilot / "costs.csv")
    by_experiment = _claims_of(verdicts, costs)
    chosen: dict[str, int] = {}
    left = seconds * workers
    known = [name for name in names if name in costs]
    while (step := _best_step(chosen, known, costs, by_experiment, left)) is not None:
        name, count, price = step
        chosen[name] = count
        left -= price
    if not chosen:
        raise UsageError(f"--budget: expected time for at least one experiment, found {seconds:g} seconds")
    return chosen


def more_seeds(verdicts: Iterable[Verdict], claims: Mapping[str, Sequence[Claim]]) -> dict[str, int]:
    """Return how many seeds each experiment needs in all for what is still undecided and can be decided; empty if
    there is nothing left to do."""
    owner = {claim.id: name for name, group in claims.items() for claim in group}
    wanted: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.decision != UNDECIDED or verdict.plan is None or not verdict.plan.seeds:
            continue
        have = min(len(case.seeds) for case in verdict.cases)
        if have >= MOST_SEEDS:
            continue
        name = owner[verdict.claim.id]
        wanted[name] = max(wanted.get(name, 0), have + min(verdict.plan.seeds, MOST_AT_ONCE))
    return wanted


def power(verdict: Verdict, seeds: int) -> float:
    """Return the probability that so many fresh seeds decide a claim, were mean and spread of its cases as in a
    verdict."""
    if seeds < LEAST_SEEDS or not verdict.cases:
        return 0.0
    depths = [_depth(verdict.claim, case) for case in verdict.cases]
    support = 1.0
    for depth in depths:
        support *= statistics.power(depth, SUPPORT_ERROR, seeds)
    refute = max(statistics.power(-depth, REFUTE_ERROR / len(depths), seeds) for depth in depths)
    return max(support if verdict.control == "failed" else 0.0, refute)


def read_costs(path: Path) -> dict[str, Cost]:
    """Read costs: a table with the columns experiment, what ("fixed", "seed", or the name of a shared run) and
    seconds."""
    table = pd.read_csv(path)
    costs = {}
    for name, part in table.groupby("experiment", sort=False):
        by = dict(zip(part.what, part.seconds.astype(float), strict=True))
        costs[str(name)] = Cost(by.pop("fixed", 0.0), by.pop("seed", 0.0), by)
    return costs


def _claims_of(verdicts: Sequence[Verdict], costs: Mapping[str, Cost]) -> dict[str, list[Verdict]]:
    from analysis.experiments.registry import EXPERIMENTS

    by_id = {verdict.claim.id: verdict for verdict in verdicts}
    return {name: [by_id[c.id] for c in EXPERIMENTS[name].claims if c.id in by_id] for name in costs}


def _best_step(
    chosen: Mapping[str, int],
    names: Sequence[str],
    costs: Mapping[str, Cost],
    verdicts: Mapping[str, Sequence[Verdict]],
    left: float,
) -> tuple[str, int, float] | None:
    """The experiment, its number of seeds and the price of the step that decides most per second; None where no step
    is worth taking or can be paid."""
    best: tuple[float, tuple[str, int, float]] | None = None
    for name in names:
        has = chosen.get(name, 0)
        for count in STEPS:
            if count <= has:
                continue
            price = _price(chosen, name, count, costs)
            gain = sum(_gain(verdict, has, count) for verdict in verdicts[name])
            rate = gain / max(price, 1e-9)
            if price <= left and gain > 1e-3 and (best is None or rate > best[0]):
                best = rate, (name, count, price)
    return None if best is None else best[1]


def _gain(verdict: Verdict, has: int, count: int) -> float:
    """What more seeds add to the expected number of decided claims. A theorem is decided as soon as it is run."""
    if verdict.claim.kind == "theorem":
        return float(not has)
    return power(verdict, count) - power(verdict, has)


def _price(chosen: Mapping[str, int], name: str, count: int, costs: Mapping[str, Cost]) -> float:
    """Seconds of one core for a step, less what other experiments have paid of the runs that they share."""
    cost, has = costs[name], chosen.get(name, 0)
    price = (cost.fixed if not has else 0.0) + cost.seed * (count - has)
    for run, seconds in cost.runs.items():
        paid = max((n for other, n in chosen.items() if run in costs[other].runs), default=0)
        price += seconds * max(0, count - paid)
    return price


def _depth(claim: Claim, case: Case) -> float:
    """How far a case's mean lies inside the band, in standard deviations over seeds; 0 where that is not known."""
    floor = case.task_error if isfinite(case.task_error) else 0.0
    deviation = max(case.sd if isfinite(case.sd) else 0.0, floor)
    depth = min(case.mean - claim.band[0], claim.band[1] - case.mean)
    return depth / deviation if deviation > 0 else 0.0
