"""Experiments on runs that nobody trained.

A test makes up the accuracies, and the experiment does the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.experiments.shared.experiment import EPOCH, Context, Experiment, Measured, Result
from analysis.results.claims import SEEDS_OF_AN_EPOCH, seeds
from analysis.results.judge import judge
from analysis.results.verdict import Verdict
from analysis.runs.evaluation_chunks import Accuracies, Evaluation
from analysis.runs.job import Job, Source
from analysis.runs.store import Outcome
from analysis.runs.workers import Workers

SECONDS = 2.0  # of an iteration
FIRST_SEED = seeds(EPOCH, 1)[0]  # of those that judge


@dataclass(frozen=True)
class MadeUp(Context):
    """A context in which `accuracy(job, iteration)` stands for training.

    It is None from where a run diverged. Every task of an evaluation has the same accuracy.
    """

    accuracy: Callable[[Job, int], float | None] = lambda job, iteration: 0.5

    def train(self, name: str, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        return {job: self._outcome(job) for job in jobs}

    def evaluate(self, name: str, wanted: Sequence[Measured]) -> dict[Measured, Accuracies]:
        return {item: self._accuracies(*item) for item in wanted}

    def _outcome(self, job: Job) -> Outcome:
        ended = next((n for n in job.wanted if self.accuracy(job, n) is None), None)
        end = job.end if ended is None else ended
        status = "finished" if ended is None else f"diverged at iteration {ended}"
        return Outcome(status, SECONDS * end, end)

    def _accuracies(self, job: Job, iteration: int, evaluation: Evaluation) -> Accuracies:
        value = self.accuracy(job, iteration)
        if value is None:
            raise ValueError(
                f"{job.variant}: expected an accuracy at iteration {iteration}, found a run that "
                "diverged"
            )
        return {"accuracy": np.full(evaluation.tasks, value)}


def context(
    accuracy: Callable[[Job, int], float | None],
    *,
    seeds: int | None = None,
    profile: str = "smoke",
) -> MadeUp:
    source = Source("glyphs", None, "0" * 64)
    return MadeUp(profile, source, Workers(1, quiet=True), Path("runs"), seeds, accuracy=accuracy)


def judged(experiment: Experiment, result: Result) -> dict[str, Verdict]:
    """Return verdicts by claim, where a seed's number says the epoch that it belongs to."""
    evidence = result.evidence.assign(epoch=result.evidence.seed // SEEDS_OF_AN_EPOCH)
    return {verdict.claim.id: verdict for verdict in judge(experiment.claims, evidence)}


def verdicts(experiment: Experiment, result: Result) -> dict[str, str]:
    """Return the decisions of the verdicts, by claim."""
    return {claim: str(verdict.decision) for claim, verdict in judged(experiment, result).items()}
