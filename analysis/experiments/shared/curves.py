"""Learning curves over seeds, and contrasts between them.

A curve is the accuracy of every test task at some iterations of a run. Within a look, all variants
of a seed meet the same tasks, so that the tasks' difficulty cancels in contrasts. Different looks
have different tasks, so that a mean along a curve is over many tasks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.experiments.shared.experiment import Context
from analysis.paper.figure_3 import CHANCE, EVALUATION, ITERATIONS
from analysis.results.tables import tidy
from analysis.runs.evaluation_chunks import Evaluation, chunks
from analysis.runs.job import Job
from analysis.runs.store import Outcome
from reptile_core.tasks import Sampling
from reptile_core.training import Run

# Iterations at which every run of figure 3 keeps phi, so that no experiment has to train part of a
# run again for its own points.
KEPT = (
    100,
    200,
    300,
    400,
    600,
    800,
    1_000,
    1_500,
    2_000,
    3_000,
    4_000,
    5_000,
    10_000,
    20_000,
    30_000,
)
# Test examples per class. Each is classified alone, so that more of them estimate the same accuracy
# with less noise.
QUERIES = 5


@dataclass(frozen=True)
class Scale:
    """Size of an experiment in one profile; every other setting is the paper's.

    looks: iterations after which accuracy is measured. Runs are trained up to the last.
    tasks: test tasks per look.
    iterations: length of the schedule over which the outer step is annealed.
    """

    looks: tuple[int, ...]
    tasks: int
    seeds: int
    iterations: int = ITERATIONS
    queries: int = QUERIES

    @property
    def until(self) -> int:
        return self.looks[-1]


@dataclass(frozen=True)
class Curves:
    """Accuracies of test tasks along runs, and what they cost.

    accuracy: accuracy of each test task, by variant, seed and iteration. A run that diverged
        classifies at chance.
    seconds: training and the looks on one core, by variant and seed.
    seconds_an_iteration: training alone, by variant and seed.
    """

    accuracy: Mapping[tuple[str, int, int], Float[np.ndarray, " tasks"]]
    seconds: Mapping[tuple[str, int], float]
    queries: int
    seconds_an_iteration: Mapping[tuple[str, int], float] = field(default_factory=dict)

    def seeds_of(self, variants: Iterable[str]) -> list[int]:
        """Return the seeds that all of these variants have, in order."""
        each = [{s for name, s, _ in self.accuracy if name == variant} for variant in variants]
        return sorted(set.intersection(*each))

    def iterations(self, variant: str) -> list[int]:
        """Return the iterations at which a variant was measured, in order; 0 is the start."""
        return sorted({iteration for name, _, iteration in self.accuracy if name == variant})

    def contrast(self, weights: Mapping[tuple[str, int], float]) -> pd.DataFrame:
        """Return the sum of weight · accuracy over (variant, iteration), seed by seed.

        The index holds the seeds that all of these variants have. The columns are:
        - value;
        - task_error, its standard error over tasks, which are paired within an iteration;
        - tasks, over all iterations;
        - queries, test examples per class;
        - seconds, what one more seed takes on one core.
        """
        rows = {}
        for seed in self.seeds_of({variant for variant, _ in weights}):
            by_iteration: dict[int, Float[np.ndarray, " tasks"]] = {}
            for (variant, iteration), weight in weights.items():
                term = weight * self.accuracy[variant, seed, iteration]
                by_iteration[iteration] = by_iteration.get(iteration, np.zeros_like(term)) + term
            parts = by_iteration.values()
            variances = [_variance_of_mean(part) for part in parts]
            names = {name for name, _ in weights}
            rows[seed] = {
                "value": sum(float(part.mean()) for part in parts),
                "task_error": sum(variances) ** 0.5,
                "tasks": sum(len(part) for part in parts),
                "queries": self.queries,
                "seconds": sum(self.seconds.get((name, seed), nan) for name in names),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("seed")

    def mean_contrast(
        self, weights: Mapping[str, float], iterations: Sequence[int]
    ) -> pd.DataFrame:
        """Return the contrast of the variants' mean accuracies over these iterations."""
        share = 1 / len(iterations)
        shares = {name: share * weight for name, weight in weights.items()}
        return self.contrast({(name, n): shares[name] for name, n in product(weights, iterations)})

    def table(self, experiment: str) -> pd.DataFrame:
        """Return the tidy table of means over tasks, one row per variant, seed and iteration."""
        return tidy(self._rows(experiment))

    def _rows(self, experiment: str) -> Iterator[dict[str, Any]]:
        for (variant, seed, iteration), values in self.accuracy.items():
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            yield {
                "experiment": experiment, "variant": variant, "seed": seed, "iteration": iteration,
                "quantity": "accuracy", "value": float(values.mean()),
                "standard_error": float(error), "count": len(values),
            }  # fmt: skip


def measure(
    context: Context,
    name: str,
    runs: Iterable[tuple[str, Run]],
    scale: Scale,
    *,
    looks: Mapping[str, Sequence[int]] | None = None,
    sampling: Sampling = EVALUATION,
    at_start: bool = True,
    also: Sequence[Job] = (),
) -> Curves:
    """Train all runs, and evaluate them at the start and after each look.

    runs: each with its name in tables.
    looks: iterations for some of the variants, by name, where they are not the scale's.
    at_start: False where the start is not to be evaluated.
    also: jobs to train together with these, so that no worker waits for the last of a few.
    """
    looks = looks or {}
    jobs = jobs_of(context, runs, scale, looks)
    outcomes = context.train(name, [*jobs, *also])
    wanted = {}
    for job in jobs:
        for iteration in (*((0,) if at_start else ()), *looks.get(job.variant, scale.looks)):
            evaluation = Evaluation(sampling, scale.tasks, scale.queries, look=iteration)
            wanted[job.variant, job.run.seed, iteration] = (job, iteration, evaluation)
    there = [item for item in wanted.values() if _reached(outcomes[item[0]], item[1])]
    found = context.evaluate(name, there)
    accuracy = {}
    for key, item in wanted.items():
        accuracy[key] = found[item]["accuracy"] if item in found else np.full(scale.tasks, CHANCE)
    seconds, an_iteration = {}, {}
    for job in jobs:
        key_of_run = job.variant, job.run.seed
        seconds[key_of_run] = _seconds(outcomes[job], job, wanted.values())
        an_iteration[key_of_run] = _seconds_an_iteration(outcomes[job])
    return Curves(accuracy, seconds, scale.queries, an_iteration)


def jobs_of(
    context: Context,
    runs: Iterable[tuple[str, Run]],
    scale: Scale,
    looks: Mapping[str, Sequence[int]] | None = None,
) -> list[Job]:
    """Return the jobs that `measure` trains."""
    jobs = []
    for variant, run in dict.fromkeys(runs):
        mine = (looks or {}).get(variant, scale.looks)
        jobs.append(context.job(run, variant, until=mine[-1], keep=kept(mine)))
    return jobs


def _variance_of_mean(values: Float[np.ndarray, " tasks"]) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else nan


def kept(iterations: Sequence[int]) -> tuple[int, ...]:
    """Return these iterations and those of KEPT before their last, in order."""
    return tuple(sorted({*iterations, *(n for n in KEPT if n < max(iterations))}))


def _reached(outcome: Outcome, iteration: int) -> bool:
    return outcome.finished or iteration < outcome.iteration


def _seconds(outcome: Outcome, job: Job, wanted: Iterable[tuple[Job, int, Evaluation]]) -> float:
    """Return the seconds of training and evaluating a job on one core.

    An evaluation is taken to last as long as training on as many images.
    """
    images = job.images
    for owner, iteration, evaluation in wanted:
        if owner == job:
            images += sum(chunk.images for chunk in chunks(owner, iteration, evaluation))
    return _seconds_an_iteration(outcome) * job.end * images / max(job.images, 1)


def _seconds_an_iteration(outcome: Outcome) -> float:
    """Return the seconds of an iteration, of training alone.

    The iterations are the outcome's: a file may hold more of a run than was asked for.
    """
    return outcome.seconds / max(outcome.iteration, 1)
