"""Points of meta-training to analyse: phi of figure 3's runs, at the iterations where it was kept.

The runs are those of `ablation`: whoever comes first trains them, the others read their files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from analysis.experiment import Context
from analysis.experiments import ablation
from analysis.runs import Job, snapshot_iterations, snapshots
from analysis.theory.derivatives import Loss
from analysis.theory.losses import on_minibatch
from reptile_core.inner_loop import Phi
from reptile_core.meta_gradients import Variant
from reptile_core.networks import CrossEntropy
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import build_network


@dataclass(frozen=True)
class Point:
    """phi of one run at one iteration."""

    job: Job
    iteration: int

    @property
    def phi(self) -> Phi:
        return snapshots(self.job)[self.iteration]

    @property
    def is_last(self) -> bool:
        return self.iteration == self.job.run.iterations

    def pool(self, part: Literal["train", "test"], dtype: torch.dtype | None = None) -> ImagePool:
        """As the job has it."""
        return self.job.pool(part, dtype)

    def losses(
        self, sampling: Sampling, task: int, *, dtype: torch.dtype | None = None, activation: str | None = None
    ) -> list[Loss]:
        """The losses of a task's minibatches as functions of phi, reduced as in the run. The tasks are of training
        characters, and others than those that the run has met. dtype, activation: for others than the run's."""
        pool, run = self.pool("train", dtype), self.job.run
        drawn = pool.sample(sampling, seed=run.seed, purpose=Purpose.ANALYSIS, iteration=self.iteration, task=task)
        network = build_network(replace(run, activation=activation or run.activation))
        loss = CrossEntropy(network, reduction=run.inner.reduction)
        return [on_minibatch(loss, pool.minibatch(examples)) for examples in drawn.minibatches]

    def row(self, quantity: str, value: float) -> dict[str, Any]:
        """A row of a tidy table."""
        return {
            "variant": self.job.variant,
            "seed": self.job.run.seed,
            "iteration": self.iteration,
            "quantity": quantity,
            "value": value,
        }


def points(context: Context, variants: Sequence[Variant]) -> list[Point]:
    """All points of the variants' runs, seed by seed; a run that diverged has none."""
    jobs = ablation.jobs(ablation.scale_of(context), context, variants=variants)
    outcomes = context.train(ablation.NAME, jobs)
    return [
        Point(job, iteration)
        for job in sorted(jobs, key=lambda job: job.run.seed)  # a worker keeps the split of the last seed it met
        if outcomes[job].status == "finished"
        for iteration in snapshot_iterations(job.run)
    ]


def spread(every: Sequence[Point], count: int) -> list[Point]:
    """At most `count` (two or more) points of each run, evenly spaced, both ends among them."""
    chosen = []
    for job in dict.fromkeys(point.job for point in every):
        mine = [point for point in every if point.job == job]
        chosen += [mine[j] for j in sorted({round(n * (len(mine) - 1) / (count - 1)) for n in range(count)})]
    return chosen
