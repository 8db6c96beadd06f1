"""Experiments on runs that nobody trained: a test makes up the accuracies, the experiment does the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.claims import ledger
from analysis.experiment import Context, Experiment, Result
from analysis.runs import Job, Outcome, Source
from analysis.workers import Workers


@dataclass(frozen=True)
class MadeUp(Context):
    """A context in which `accuracy(job, iteration)`, or None from where a run diverged, stands for training."""

    accuracy: Callable[[Job, int], float | None] = lambda job, iteration: 0.5

    def train(self, name: str, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        return {job: self._outcome(job) for job in jobs}

    def _outcome(self, job: Job) -> Outcome:
        measured = sorted({*range(0, job.run.iterations, job.run.evaluation.every), job.run.iterations})
        values = {iteration: self.accuracy(job, iteration) for iteration in measured}
        rows = [
            {"iteration": i, "quantity": "accuracy", "value": value, "standard_error": 0.0, "count": 1}
            for i, value in values.items()
            if value is not None
        ]
        ended = next((i for i, value in values.items() if value is None), None)
        status = "finished" if ended is None else f"diverged at iteration {ended}"
        return Outcome(rows, status, 2.0 * job.run.iterations, job.run.iterations)


def context(accuracy: Callable[[Job, int], float | None], *, seeds: int | None = None) -> MadeUp:
    source = Source("glyphs", None, "0" * 64)
    return MadeUp("smoke", source, Workers(1, quiet=True), Path("runs"), seeds, accuracy=accuracy)


def verdicts(experiment: Experiment, result: Result) -> dict[str, str]:
    """By claim."""
    return dict(ledger(experiment.claims, result.measurements)[["id", "verdict"]].to_numpy())
