"""Evaluations of runs, in chunks of tasks: each chunk is computed once and kept as a file.

As with runs, a file is keyed by everything that decides its content. How tasks are cut into chunks
changes no task's number.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from analysis.runs.advance import use_precision
from analysis.runs.job import Job, record_digest
from analysis.runs.store import state_at
from analysis.runs.workers import Progress
from reptile_core import training
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.tasks import Sampling
from reptile_core.training import Outer

CHUNK = 250  # tasks of one piece of work
LANES = 25  # tasks adapted at once on a GPU: 5 GB for the copies of 20-way support sets

Accuracies = dict[str, Float[np.ndarray, " tasks"]]  # one per task, by quantity


@dataclass(frozen=True)
class Evaluation:
    """What is measured of a run.

    sampling: how tasks are sampled.
    tasks: how many of them.
    queries: test examples a class.
    look: the stream that tasks come from. Tasks of different looks are independent.
    """

    sampling: Sampling
    tasks: int
    queries: int = 1
    look: int = 0

    def __post_init__(self) -> None:
        for name in ("tasks", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class EvaluationChunk:
    """Some of the tasks of an evaluation, of a job at an iteration that it has reached."""

    job: Job
    iteration: int
    evaluation: Evaluation
    tasks: range

    @property
    def key(self) -> str:
        """Digest of everything that decides the outcome.

        At iteration 0, settings that only training uses do not count.
        """
        record = asdict(self.evaluation) | {"tasks": [self.tasks.start, self.tasks.stop]}
        job = self.job
        if not self.iteration:
            job = replace(job, run=_untrained(job), until=None, keep=())
        return record_digest({"run": job.key, "iteration": self.iteration, "evaluation": record})

    @property
    def path(self) -> Path:
        return self.job.folder / "evaluations" / f"{self.key}.safetensors"

    @property
    def images(self) -> int:
        """Images in the gradients of the inner steps: the unit of progress.

        Three images that are only classified count as one. Each test example is classified together
        with its support.
        """
        sampling = self.evaluation.sampling
        queries = self.evaluation.queries * sampling.n_way
        classified = queries * (1 + sampling.n_way * sampling.shots)
        return round(len(self.tasks) * (sampling.steps * sampling.batch + classified / 3))


def chunks(job: Job, iteration: int, evaluation: Evaluation) -> list[EvaluationChunk]:
    """Return an evaluation as pieces of work."""
    found = []
    for first in range(0, evaluation.tasks, CHUNK):
        tasks = range(first, min(first + CHUNK, evaluation.tasks))
        found.append(EvaluationChunk(job, iteration, evaluation, tasks))
    return found


def joined(parts: Sequence[Accuracies]) -> Accuracies:
    """Return the accuracies of all chunks of one evaluation."""
    found = {}
    for quantity in parts[0]:
        found[quantity] = np.concatenate([part[quantity] for part in parts])
    return found


def evaluate_chunk(chunk: EvaluationChunk, progress: Progress) -> Accuracies:
    """Return the accuracy of each task, by quantity.

    It is read from the chunk's file where that exists, unless the job is marked fresh.
    """
    there = chunk.path.exists() and not chunk.job.fresh
    if there:
        found, record = load_checkpoint(chunk.path)
        if record.get("key") != chunk.key:
            raise CheckpointError(
                f"{chunk.path}: expected the evaluation {chunk.key}, found the evaluation "
                f"{record.get('key')}"
            )
    else:
        job, what = chunk.job, chunk.evaluation
        use_precision(job)
        found = training.evaluate(
            job.run, job.pool("test"), state_at(job, chunk.iteration), what.sampling, chunk.tasks,
            queries=what.queries, look=what.look, lanes=1 if job.device == "cpu" else LANES,
        )  # fmt: skip
        save_checkpoint(chunk.path, found, {"key": chunk.key})
    progress(chunk.images, there=there)
    return {quantity: values.cpu().numpy() for quantity, values in found.items()}


def _untrained(job: Job) -> training.Run:
    """Return a run that is the same for all runs that begin alike."""
    sampling = Sampling(job.run.sampling.n_way, shots=1, batch=1, steps=1)
    return replace(
        job.run, sampling=sampling, weights=(1.0,), outer=Outer(0.0), iterations=1, meta_batch=1
    )
