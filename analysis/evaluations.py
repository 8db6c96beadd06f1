"""Evaluation of a finished run on many tasks, in pieces that are files: each is done once and kept.

As with runs, a file is keyed by all that decides its content; how tasks are cut into pieces changes no task's number.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from analysis.courses import use_precision
from analysis.runs import Job, final_state
from analysis.workers import Progress
from reptile_core import training
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.tasks import Sampling

PIECE = 250  # tasks of one piece of work
LANES = 25  # tasks adapted at once on a GPU: 5 GB for the copies of 20-way support sets


@dataclass(frozen=True)
class Piece:
    """Some of the evaluation tasks of a cell, and where what they gave is kept. job: the finished run, or one that only
    names network, seed and data where phi is the initialization."""

    job: Job
    sampling: Sampling
    tasks: range
    trained: bool

    @property
    def key(self) -> str:
        """Digest of everything that decides the outcome."""
        decisive = {
            "run": self.job.key,
            "evaluation": asdict(self.sampling),
            "tasks": [self.tasks.start, self.tasks.stop],
            "trained": self.trained,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def path(self) -> Path:
        return self.job.folder / "evaluations" / f"{self.key}.safetensors"


Accuracies = dict[str, list[float]]  # of each task, by quantity


def evaluate(piece: Piece, progress: Progress) -> Accuracies:
    """Accuracy of each task: read if it is known, unless it is to be found anew."""
    if piece.path.exists() and not piece.job.fresh:
        found, record = load_checkpoint(piece.path)
        if record.get("key") != piece.key:
            raise CheckpointError(
                f"{piece.path}: expected the evaluation {piece.key}, found the evaluation {record.get('key')}"
            )
    else:
        job = piece.job
        use_precision(job)
        state = final_state(job) if piece.trained else training.start(job.run, job.device)
        lanes = 1 if job.device == "cpu" else LANES
        found = training.accuracies(job.run, job.pool("test"), state, piece.sampling, piece.tasks, lanes=lanes)
        save_checkpoint(piece.path, found, {"key": piece.key})
    progress(len(piece.tasks))
    return {quantity: values.tolist() for quantity, values in found.items()}
