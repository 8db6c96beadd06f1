"""Points of meta-training to analyse: phi of figure 3's runs, at iterations where it was kept.

The runs are those of `ablation`. The first experiment that asks trains them; the others read their
files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch

from analysis.experiments.shared.curves import kept
from analysis.experiments.shared.experiment import Context
from analysis.paper import figure_3
from analysis.runs.job import Job
from analysis.runs.store import state_at
from analysis.theory.derivatives import Loss
from analysis.theory.losses import on_minibatch
from reptile_core.inner_loop import Phi
from reptile_core.losses import CrossEntropy
from reptile_core.meta_gradients import Variant
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import build_network


@dataclass(frozen=True)
class TrainedPoint:
    """Parameters phi of one run at one iteration."""

    job: Job
    iteration: int

    @property
    def phi(self) -> Phi:
        return state_at(self.job, self.iteration).phi

    @property
    def is_last(self) -> bool:
        return self.iteration == self.job.end

    def pool(self, part: Literal["train", "test"], dtype: torch.dtype | None = None) -> ImagePool:
        """Return the images of one part of the job's split."""
        return self.job.pool(part, dtype)

    def losses(
        self,
        sampling: Sampling,
        task: int,
        *,
        dtype: torch.dtype | None = None,
        activation: str | None = None,
    ) -> list[Loss]:
        """Return the losses of a task's minibatches as functions of phi, reduced as in the run.

        The tasks are of training characters, and are not among those that the run has met.

        dtype, activation: replace the run's own.
        """
        pool, run = self.pool("train", dtype), self.job.run
        drawn = pool.sample(
            sampling, seed=run.seed, purpose=Purpose.ANALYSIS, iteration=self.iteration, task=task
        )
        network = build_network(replace(run, activation=activation or run.activation))
        loss = CrossEntropy(network, reduction=run.inner.reduction)
        return [on_minibatch(loss, pool.minibatch(examples)) for examples in drawn.minibatches]

    def row(self, quantity: str, value: float) -> dict[str, Any]:
        """Return a row of a tidy table."""
        return {
            "variant": self.job.variant,
            "seed": self.job.run.seed,
            "iteration": self.iteration,
            "quantity": quantity,
            "value": value,
        }


def points(
    context: Context,
    variants: Iterable[Variant],
    seeds: Sequence[int],
    iterations: Sequence[int],
    *,
    schedule: int,
) -> list[TrainedPoint]:
    """Return the points of the variants' runs at these iterations, seed by seed.

    A run that diverged has none.

    schedule: the length over which the outer step is annealed.
    """
    until = max(iterations)
    jobs = []
    # Seed by seed: a worker keeps the split of the last seed it met.
    for seed, variant in product(seeds, variants):
        run = figure_3.configure(variant, seed, iterations=schedule)
        jobs.append(context.job(run, variant.name, until=until, keep=kept(iterations)))
    outcomes = context.train("figure 3's runs", jobs)
    finished = [job for job in jobs if outcomes[job].finished]
    in_order = sorted({*iterations})
    return [TrainedPoint(job, iteration) for job, iteration in product(finished, in_order)]
