"""Choice of experiments and numbers of seeds that decide most claims in a given time.

Means and spreads come from the ledger of an earlier run (the pilot), which had other seeds. Costs
are those that it measured. The choice is greedy. A step is the next number of seeds of an
experiment. Each time, the step with the largest gain in the expected number of decided claims per
second is taken, until the time is spent. Runs that experiments share are paid once. Then everything
is run and judged once, on seeds of another epoch than the pilot's.

    python -m analysis.budget results/quick    make the pilot from output folders
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import hypot, inf, isfinite
from pathlib import Path

import pandas as pd

from analysis.ending import UsageError
from analysis.experiments.shared.experiment import Experiment
from analysis.paper.figure_3 import ITERATIONS
from analysis.results import ledger, manifest, statistics
from analysis.results.claims import Claim
from analysis.results.error_rates import CONTROL_ERROR, LEAST_SEEDS, REFUTE_ERROR, SUPPORT_ERROR
from analysis.results.folder import judge_all
from analysis.results.samples import rivals
from analysis.results.statistics import Band, Mean
from analysis.results.tables import write_csv
from analysis.results.verdict import UNDECIDED, Case, Verdict
from reptile_core.checkpoints import load_checkpoint
from reptile_core.meta_gradients import average, figure_3, last, sum_of

PILOT = Path(__file__).parent / "pilot"  # claims.json and costs.csv of an earlier run
# The epoch of the seeds that a budget is spent on, unless the user names another. It was fixed
# before anybody looked at epoch 8. Rho is judged on epoch 7 by default.
EPOCH = 8
PILOT_EPOCH = 6  # its seeds chose, so they must not judge
# The runs of figure 3 that each experiment shares with others.
SUM, AVERAGE, JOINT = sum_of(4).name, average(4).name, last(1).name
CURVES = (JOINT, *(make(k).name for k, make in product((2, 4), (sum_of, average, last))))
SHARED = {
    "ablation": CURVES,
    "inner_products": (JOINT, *(make(k).name for k, make in product((2, 4), (sum_of, last)))),
    "outer": (JOINT, SUM, AVERAGE),
    "validity": (SUM,),
    "variance": (SUM,),
    "zero_shot": CURVES,
}
STEPS = (5, 6, 8, 10, 12, 16, 20, 24, 32, 48)  # numbers of seeds that are considered
MAX_AT_ONCE = 20  # seeds that are added in one round of --until-decided


@dataclass(frozen=True)
class Cost:
    """Seconds that an experiment takes on one core.

    fixed: seconds whatever the number of seeds.
    seed: seconds per seed of its own work.
    runs: seconds per seed of each run that it shares with other experiments, by the run's name.
    """

    fixed: float
    seed: float
    runs: Mapping[str, float]


def choose(
    names: Sequence[str], seconds: float, *, workers: int, pilot: Path = PILOT
) -> dict[str, int]:
    """Return the number of seeds for each of the named experiments that is worth running.

    It is 1 where all claims of an experiment are theorems, which more seeds do not decide.

    seconds: the budget in wall-clock time, during which all workers are busy.
    pilot: the folder of the pilot's ledger and costs.
    Raises UsageError where the time suffices for no experiment.
    """
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
        raise UsageError(
            f"--budget: expected time for at least one experiment, found {seconds:g} seconds"
        )
    return chosen


def check_measured(names: Iterable[str]) -> None:
    """Refuse experiments that the pilot has not measured, of which no budget can say anything."""
    costs = read_costs(PILOT / "costs.csv")
    if odd := [name for name in names if name not in costs]:
        raise UsageError(
            f"--budget: expected experiments that the pilot measured ({', '.join(costs)}), found "
            f"{', '.join(odd)}"
        )


def more_seeds(verdicts: Iterable[Verdict], experiments: Iterable[Experiment]) -> dict[str, int]:
    """Return how many seeds in all are needed to decide the undecided claims of experiments.

    They are by name; see `Experiment.named_for_seeds`. Claims that cannot be decided do not count.
    Empty if there is nothing left to do.
    """
    owner = {claim.id: experiment for experiment in experiments for claim in experiment.claims}
    wanted: dict[str, int] = {}
    for verdict in verdicts:
        plan, planned = verdict.plan, verdict.planned
        if verdict.decision != UNDECIDED or plan is None or not plan.seeds or planned is None:
            continue
        seeds = planned - max(0, plan.seeds - MAX_AT_ONCE)
        name = owner[verdict.claim.id].named_for_seeds(verdict)
        wanted[name] = max(wanted.get(name, 0), seeds)
    return wanted


def power(verdict: Verdict, seeds: int) -> float:
    """Return the probability that `seeds` fresh seeds decide a claim.

    The mean and spread of each case are assumed to be those of the verdict. A control that failed
    in it is assumed to fail again.
    """
    if seeds < LEAST_SEEDS or not verdict.cases:
        return 0.0
    claim = verdict.claim
    inside = [_depth(_mean(case), claim.tested) for case in verdict.cases]
    fails = [_depth_of_control(verdict, control) for control in verdict.controls] or [0.0]
    return statistics.power_of_all(
        inside,
        [] if verdict.control == "failed" else fails,
        seeds,
        support=SUPPORT_ERROR,
        refute=REFUTE_ERROR,
        control=CONTROL_ERROR,
    )


def measure_costs(folder: Path) -> pd.DataFrame:
    """Return what each experiment of a finished run took, as a table that `read_costs` reads.

    A shared run is paid by the first experiment that asked for it. The rest of an experiment's
    time is its own, an equal share for each seed.
    """
    record = manifest.read(folder / "manifest.json")
    runs = _seconds_of_runs(folder / "runs")
    paid: set[str] = set()
    found = []
    for name, wall in record["wall_seconds"].items():
        shared = {run: runs[run] for run in SHARED.get(name, ()) if run in runs}
        seeds = record["experiments"][name].get("seeds", 0)
        paid_here = sum(s * seeds for run, s in shared.items() if run not in paid)
        own = max(wall * record["machine"]["workers"] - paid_here, 0.0)
        paid.update(shared)
        parts = {"seed": own / seeds} if seeds else {"fixed": own}
        for what, s in (parts | shared).items():
            found.append({"experiment": name, "what": what, "seconds": s})
    return pd.DataFrame(found).round(2)


def _seconds_of_runs(folder: Path) -> dict[str, float]:
    """Return the mean training seconds of each of figure 3's runs in a folder, by variant."""
    known = {variant.name: variant.weights for variant in figure_3()}
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        _, record = load_checkpoint(path)
        run, name = record["run"], record["variant"]
        if (
            name in known
            and run["iterations"] == ITERATIONS
            and run["outer"]["optimizer"] == "plain"
        ):
            found.setdefault(name, []).append(record["seconds"])
    return {name: sum(seconds) / len(seconds) for name, seconds in found.items()}


def read_costs(path: Path) -> dict[str, Cost]:
    """Read the costs of experiments from a table.

    Its columns are experiment, what ("fixed", "seed" or the name of a shared run) and seconds.
    """
    table = pd.read_csv(path)
    costs = {}
    for name, part in table.groupby("experiment", sort=False):
        by = dict(zip(part.what, part.seconds.astype(float), strict=True))
        costs[str(name)] = Cost(by.pop("fixed", 0.0), by.pop("seed", 0.0), by)
    return costs


def _claims_of(verdicts: Sequence[Verdict], costs: Mapping[str, Cost]) -> dict[str, list[Verdict]]:
    from analysis.experiments.registry import EXPERIMENTS

    by_id = {verdict.claim.id: verdict for verdict in verdicts}
    found: dict[str, list[Verdict]] = {}
    for name in costs:
        ids = [claim.id for claim in EXPERIMENTS[name].claims]
        found[name] = [by_id[i] for i in ids if i in by_id]
    return found


def _best_step(
    chosen: Mapping[str, int],
    names: Sequence[str],
    costs: Mapping[str, Cost],
    verdicts: Mapping[str, Sequence[Verdict]],
    left: float,
) -> tuple[str, int, float] | None:
    """Return the experiment, its number of seeds and the price of the most profitable step.

    That is the step that decides most claims per second. None where no step is worth taking or
    can be paid.
    """
    best: tuple[float, tuple[str, int, float]] | None = None
    for name in names:
        has = chosen.get(name, 0)
        only_theorems = all(verdict.claim.kind == "theorem" for verdict in verdicts[name])
        for count in (1,) if only_theorems else STEPS:
            if count <= has:
                continue
            price = _price(chosen, name, count, costs)
            gain = sum(_gain(verdict, has, count) for verdict in verdicts[name])
            rate = gain / max(price, 1e-9)
            if price <= left and gain > 1e-3 and (best is None or rate > best[0]):
                best = rate, (name, count, price)
    return None if best is None else best[1]


def _gain(verdict: Verdict, has: int, count: int) -> float:
    """Return what more seeds add to the expected number of decided claims.

    A theorem is decided as soon as it is run.
    """
    if verdict.claim.kind == "theorem":
        return float(not has)
    return power(verdict, count) - power(verdict, has)


def _price(chosen: Mapping[str, int], name: str, count: int, costs: Mapping[str, Cost]) -> float:
    """Return the price of a step in seconds of one core.

    What experiments have already paid for shared runs is subtracted.
    """
    cost, has = costs[name], chosen.get(name, 0)
    price = (cost.fixed if not has else 0.0) + cost.seed * (count - has)
    for run, seconds in cost.runs.items():
        paid = max((n for other, n in chosen.items() if run in costs[other].runs), default=0)
        price += seconds * max(0, count - paid)
    return price


def _depth_of_control(verdict: Verdict, control: Case) -> float:
    """Return how clearly a control fails, in standard deviations over seeds.

    A pilot holds no paired differences. So the two values of a foil's difference are taken as
    independent.
    """
    claim = verdict.claim
    if claim.control.band is not None:
        return _depth(_mean(control), claim.control.band)
    if claim.direction == 0:
        return -_depth(_mean(control), claim.tested)
    found = _mean(control)
    depths = []
    for rival in map(_mean, rivals(verdict.cases, control)):
        difference = Mean(
            rival.n,
            claim.direction * (rival.mean - found.mean),
            hypot(rival.deviation, found.deviation),
        )
        depths.append(_depth(difference, (0.0, inf)))
    return min(depths)


def _mean(case: Case) -> Mean:
    """Return the mean of a case over seeds, with its standard deviation.

    The standard deviation counts as no smaller than the error over tasks. It is 0 where neither is
    known.
    """
    known = [value for value in (case.sd, case.task_error) if isfinite(value)]
    return Mean(len(case.seeds), case.mean, max(known, default=0.0))


def _depth(mean: Mean, band: Band) -> float:
    """Return how far a mean is inside a band, in standard deviations over seeds.

    It is 0 where these are not known.
    """
    return mean.depth(band) if mean.deviation > 0 else 0.0


def measure_effects(folder: Path) -> list[Verdict]:
    """Return the verdicts of a finished run on the claims of its experiments, whatever its epoch.

    A pilot judges nothing, so seeds that shaped a criterion count in it.
    """
    from analysis.experiments.registry import EXPERIMENTS

    names = manifest.read(folder / "manifest.json")["experiments"]
    claims: dict[str, list[Claim]] = {}
    for name in names:
        claims[name] = [replace(claim, epoch=0) for claim in EXPERIMENTS[name].claims]
    return judge_all(folder, claims)


def main() -> None:
    """Make the pilot from output folders, each of which holds experiments of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    folders = parser.parse_args().folders
    PILOT.mkdir(exist_ok=True)
    ledger.write(list(chain.from_iterable(map(measure_effects, folders))), PILOT)
    write_csv(pd.concat(map(measure_costs, folders)), PILOT / "costs.csv")


if __name__ == "__main__":
    main()
