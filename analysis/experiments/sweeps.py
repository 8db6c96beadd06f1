"""Learning curves over seeds as one tidy table: what the experiments on training runs share."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import nan
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


def by_seed(curves: pd.DataFrame, *, diverged: float = nan) -> pd.DataFrame:
    """Accuracy without transduction: a row for each seed, columns (variant, iteration), every one of each.

    diverged: what stands where a run had ended early; chance is fair, where a variant is to be judged by such runs too.
    """
    measured = curves[curves.quantity == "accuracy"]
    levels = [measured.variant.unique(), sorted(measured.iteration.unique())]
    columns = pd.MultiIndex.from_product(levels, names=["variant", "iteration"])
    return measured.pivot(index="seed", columns=columns.names, values="value").reindex(columns=columns).fillna(diverged)


def _rows(name: str, outcomes: Mapping[Job, Outcome]) -> Iterator[dict[str, Any]]:
    for job, outcome in outcomes.items():
        for row in outcome.rows:
            yield {"experiment": name, "variant": job.variant, "seed": job.run.seed, **row}
