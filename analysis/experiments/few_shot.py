"""Section 6.1: few-shot accuracy of Reptile, FOMAML and MAML, with and without transduction.

Adam with beta1 = 0 inside, its second moments kept from task to task; meta-batch 5; outer step 1
annealed linearly to 0; evaluation after 50 steps on 10,000 tasks. CIFAR-FS, which is not in the
paper, is run as Mini-ImageNet is, with 64 filters.

The claims are in `few_shot_claims`; `few_shot_cells` trains and evaluates, and `few_shot_tables`
makes the tables.
"""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from math import log, nan
from typing import Any

import numpy as np
import pandas as pd

from analysis.experiments.few_shot_cells import (
    MEASURED,
    STATUSES,
    UNTRAINED,
    Unmeasured,
    asked_cells,
    cells,
    measure,
    plan,
    scale_of,
    seconds_of,
    seeds_of,
)
from analysis.experiments.few_shot_claims import CLAIMS, TABLE_OF
from analysis.experiments.few_shot_tables import CELL, NAME, in_words, summary, table
from analysis.experiments.shared.experiment import Context, Experiment, Result
from analysis.paper.benchmarks import BENCHMARKS, EVALUATION_STEPS, META_BATCH, METHODS, PUBLISHED
from analysis.results.evidence import CHECK, CONTROL, NO_EVIDENCE, SHOWN, rows
from reptile_core.evaluation import TEST_SHOTS

# Data other than the script's own.
OTHER_DATA = {"mini-imagenet": "Mini-ImageNet", "cifar-fs": "CIFAR-FS"}


def evidence(
    table: pd.DataFrame,
    unjudged: Mapping[str, str | None],
    seconds: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Return rows for the ledger: logs of ratios of error rates.

    unjudged: for each benchmark, why its numbers say nothing about the paper's. They are then only
        shown.
    seconds: what one more seed of each training takes, by "benchmark-method".
    """
    logs = {key: _log_error(part) for key, part in table.groupby(CELL)}
    found: list[dict[str, Any]] = []
    for (benchmark, shots, method, transductive), mine in logs.items():
        if method not in ("reptile", UNTRAINED):
            continue
        role = SHOWN if unjudged[benchmark] else CHECK if method == "reptile" else CONTROL
        case = f"{benchmark} {shots}-shot, {in_words(method, transductive)}"
        paper = PUBLISHED.get(("reptile", transductive, benchmark, shots))
        maml = logs.get((benchmark, shots, "maml", True))
        common = {"data": OTHER_DATA.get(benchmark)}
        claim = TABLE_OF[benchmark]
        if paper is not None:
            ratio = mine.assign(value=mine.value - log(1 - paper[0] / 100))
            found += [row | common for row in rows(claim, case, role, ratio)]
        if transductive and maml is not None:
            similar = rows(f"{claim}-similar", case, role, _ratio(mine, maml))
            found += [row | common for row in similar]
    if not found:
        return NO_EVIDENCE.copy()
    costs = {claim.id: _cost(claim.id, seconds or {}) for claim in CLAIMS}
    result = pd.DataFrame(found)
    return result.assign(seconds=result.claim.map(costs))


def _log_error(part: pd.DataFrame) -> pd.DataFrame:
    """Return the log of a cell's error rate by seed, with its standard error over tasks.

    The standard error is to first order. Where no answer was wrong, half a wrong one is counted, so
    that there is a log.
    """
    n_way = {benchmark.name: benchmark.n_way for benchmark in BENCHMARKS}[part.benchmark.iloc[0]]
    error = np.maximum(1 - part.value, 0.5 / (part["count"] * n_way))
    found = {
        "value": np.log(error),
        "task_error": part.standard_error / error,
        "tasks": part["count"],
    }
    return pd.DataFrame(found).assign(queries=TEST_SHOTS).set_index(part.seed)


def _ratio(mine: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the log of the ratio of two error rates, of the seeds that both have.

    The error over tasks is written down as if the tasks were different ones. Both meet the same
    tasks, so that the true error is no larger.
    """
    both = mine.index.intersection(other.index)
    mine, other = mine.loc[both], other.loc[both]
    return mine.assign(
        value=mine.value - other.value, task_error=np.hypot(mine.task_error, other.task_error)
    )


def _cost(claim: str, seconds: Mapping[str, float]) -> float:
    """Return the seconds of one more seed of a claim: of all the trainings that it compares."""
    methods = ("reptile", "maml") if claim.endswith("-similar") else ("reptile",)
    mine = claim.removesuffix("-similar")
    benchmarks = [name for name, table in TABLE_OF.items() if table == mine]
    names = [f"{benchmark}-{method}" for benchmark, method in product(benchmarks, methods)]
    taken = [seconds[name] for name in names if name in seconds]
    return sum(taken) if taken else nan


def report(summary: pd.DataFrame, unjudged: Mapping[str, str | None]) -> list[str]:
    """Return lines for the end of the run: every measured cell with the published one.

    They also say what was not measured.
    """
    lines = ["few-shot accuracy in %, 95 % interval (published)"]
    for benchmark, part in summary.groupby("benchmark", sort=False):
        measured = part[part.status == MEASURED]
        if measured.empty:
            first = min(part.itertuples(), key=lambda row: STATUSES.index(row.status))
            lines.append(f"  {benchmark}: {Unmeasured(first.status, first.reason).words}")
        for shots, cell in measured.groupby("shots"):
            note = f" ({unjudged[benchmark]}: not judged)" if unjudged[benchmark] else ""
            lines.append(f"  {benchmark} {shots}-shot{note}")
            for r in cell.itertuples():
                found = f"{r.mean:6.2f} ± {(r.high - r.low) / 2:5.2f}"
                lines.append(
                    f"    {r.row:<25}{found}{_published_cell(r.published, r.published_half)}"
                )
    return lines


def _published_cell(mean: float, half: float) -> str:
    return f"  ({mean:.2f} ± {half:.2f})" if pd.notna(mean) else ""


def run(context: Context) -> Result:
    """Train what the profile has, evaluate every cell, and compare it with what was published."""
    trainings, others = plan(context)
    jobs = [training.job(seed, context) for seed, training in product(seeds_of(context), trainings)]
    outcomes = context.train(NAME, jobs)
    measured = measure(NAME, cells(trainings, context), outcomes, context)
    accuracies = table(measured)
    every = summary(accuracies, others)
    unjudged = {t.benchmark.name: t.unjudged(context) for t in trainings}
    tables = {NAME: accuracies, f"{NAME}_summary": every}
    found = evidence(accuracies, unjudged, seconds_of(measured, outcomes))
    data = [OTHER_DATA.get(t.benchmark.name, context.source.name) for t in trainings]
    return Result(tables, found, report(every, unjudged), list(dict.fromkeys(data)))


def settings(context: Context) -> dict[str, Any]:
    """Return the settings that decide the outcome."""
    return {
        "seeds": len(seeds_of(context)),
        "benchmarks": {
            benchmark.name: asdict(benchmark) | {"scale": asdict(scale)}
            for benchmark in BENCHMARKS
            if (scale := scale_of(benchmark, context))
        },
        "outer": {method.name: asdict(method.outer) for method in METHODS},
        "meta_batch": META_BATCH,
        "evaluation_steps": EVALUATION_STEPS,
        "inner": "Adam, beta1 = 0, moments kept from task to task",
        "cells": asked_cells(context),
        "tail_shots": context.options.get("tail_shots"),
        "main_data": context.source.name,
        "split": context.source.split,
    }


EXPERIMENT = Experiment(
    name=NAME,
    shows="section 6.1: few-shot accuracy of Reptile, FOMAML and MAML, with the published tables",
    takes={
        "smoke": "half a minute",
        "quick": "about a minute",
        "paper": (
            "1 to 2 hours for omniglot-5way-reptile on one core; days for all (an estimate); "
            "--cells chooses"
        ),
    },
    claims=CLAIMS,
    settings=settings,
    run=run,
    options=("cells", "iterations", "tail_shots"),
    profiles=("smoke", "paper"),
)
