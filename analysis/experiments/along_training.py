"""Points of meta-training to analyse: phi of figure 3's runs, at the iterations where it was kept.

The runs are those of `ablation`: whoever comes first trains them, the others read their files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.experiment import Context
from analysis.experiments import ablation
from analysis.runs import Job, snapshot_iterations, snapshots, split_of
from reptile_core.inner_loop import Phi
from reptile_core.meta_gradients import Variant
from reptile_core.tasks import ImagePool


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

    @property
    def test_pool(self) -> ImagePool:
        """Images of the characters that the run has not trained on."""
        return ImagePool(
            split_of(self.job.source, self.job.run.seed).test.to(self.job.device), self.job.run.torch_dtype
        )

    def row(self, quantity: str, value: float) -> dict:
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
