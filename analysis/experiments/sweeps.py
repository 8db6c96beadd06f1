"""Learning curves over seeds as one tidy table: what the experiments on training runs share."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.experiment import Context
from analysis.runs import Job, Outcome
from analysis.tables import tidy
from reptile_core.training import Run


@dataclass(frozen=True)
class Scale:
    """How much of an experiment a profile runs; every other setting is the paper's."""

    iterations: int
    every: int
    tasks: int
    seeds: int


def scale_of(scales: Mapping[str, Scale], context: Context) -> Scale:
    """The profile's scale, with the user's number of seeds where there is one."""
    scale = scales[context.profile]
    return scale if context.seeds is None else replace(scale, seeds=context.seeds)


def train(context: Context, name: str, runs: Iterable[tuple[str, Run]]) -> dict[Job, Outcome]:
    """All runs, each with what tables call it; a run that is asked for twice under one name is trained once."""
    return context.train(name, list(dict.fromkeys(context.job(run, variant) for variant, run in runs)))


def curves(name: str, outcomes: Mapping[Job, Outcome]) -> pd.DataFrame:
    """The tidy table of the experiment `name`, in the order of the outcomes and of iterations."""
    return tidy(_rows(name, outcomes))


def by_seed(curves: pd.DataFrame) -> pd.DataFrame:
    """Accuracy without transduction: a row for each seed, columns (variant, iteration); NaN where a run had ended."""
    return curves[curves.quantity == "accuracy"].pivot_table(
        index="seed", columns=["variant", "iteration"], values="value"
    )


def ended_early(outcomes: Mapping[Job, Outcome]) -> list[str]:
    """Lines that name the runs that diverged."""
    return [f"{job.variant}, seed {job.run.seed}: {o.status}" for job, o in outcomes.items() if o.status != "finished"]


def _rows(name: str, outcomes: Mapping[Job, Outcome]) -> Iterator[dict[str, Any]]:
    for job, outcome in outcomes.items():
        for row in outcome.rows:
            yield {"experiment": name, "variant": job.variant, "seed": job.run.seed, **row}
