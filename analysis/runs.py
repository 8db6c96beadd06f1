"""Runs of meta-training as files: each is keyed by all that decides its outcome, resumed where it stands, done once.

A run's file holds its state, the rows measured so far and, for analyses along training, phi at some of the iterations
where it was measured.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from reptile_core import datasets, native, training
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.datasets.split import Kind, Split, split_characters, split_images
from reptile_core.inner_loop import Phi
from reptile_core.tasks import ImagePool
from reptile_core.training import Run, TrainingState

DEVICES = "cpu", "cuda", "cuda-tf32"  # as users call them: the last multiplies matrices in TF32

# Raised whenever the same configuration would give other bits than before, so that old files are not taken for new.
NUMERICS_VERSION = 5

# What decides a run's outcome, in words; and what a row of its measurements has.
OTHER = {
    "run": "another configuration",
    "data": "other data",
    "device": "another device",
    "numerics": "another version",
    "native": "other arithmetic (compiled or not)",
}
ROW = {"iteration", "quantity", "value", "standard_error", "count"}

SNAPSHOTS = 8  # about as many are kept, evenly spaced, besides the first: 0.4 MB each for the Omniglot network


@dataclass(frozen=True)
class Source:
    """How a worker finds the data again, by `datasets.load`, the content it must then find, and how characters are
    split. real: False for what only stands in for the data of that name."""

    name: str
    directory: Path | None
    content: str
    real: bool = True
    split: Kind = "seed"

    @property
    def identity(self) -> str:
        """Of what is trained and tested on."""
        return self.content + f", split: {self.split}" * (self.split != "seed")


@dataclass(frozen=True)
class Job:
    """One run, the data it is on, where its file lies and what it is called in tables."""

    run: Run
    source: Source
    folder: Path
    variant: str
    device: str = "cpu"
    tf32: bool = False
    fresh: bool = False

    @property
    def decisive(self) -> dict[str, Any]:
        """Everything that decides the outcome: configuration, data, device type, how sums are rounded."""
        return {
            "run": asdict(self.run),
            "data": self.source.identity,
            "device": torch.device(self.device).type + "-tf32" * self.tf32,
            "numerics": NUMERICS_VERSION,
            "native": native.library() is not None,
        }

    @property
    def key(self) -> str:
        """Digest of all that is decisive."""
        return hashlib.sha256(json.dumps(self.decisive, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.safetensors"

    @property
    def training_steps(self) -> int:
        """Inner steps of the whole run: the unit of progress, and what it costs but for evaluation."""
        return self.run.iterations * self.run.meta_batch * self.run.sampling.steps

    def pool(self, part: Literal["train", "test"], dtype: torch.dtype | None = None) -> ImagePool:
        """Images of the classes that the run trains or is tested on; `dtype` for another than the run's."""
        split = split_of(self.source, self.run.seed)
        return ImagePool(getattr(split, part).to(self.device), dtype or self.run.torch_dtype, split.white)


@dataclass(frozen=True)
class Outcome:
    """What a run measured: rows of (iteration, quantity, value, standard_error, count), and how it ended."""

    rows: list[dict[str, Any]]
    status: str  # "finished", "running", or "diverged at iteration N": where phi is first seen not to be finite
    seconds: float
    iteration: int


def ended_early(outcomes: Mapping[Job, Outcome]) -> list[str]:
    """Lines that name the runs that diverged, and at which settings."""
    return [
        f"{job.variant}, seed {job.run.seed}: {outcome.status} (inner {job.run.inner.optimizer} at "
        f"{job.run.inner.learning_rate:g}, outer {job.run.outer.optimizer} at {job.run.outer.step:g})"
        for job, outcome in outcomes.items()
        if outcome.status != "finished"
    ]


def snapshots(job: Job) -> dict[int, Phi]:
    """phi by iteration, as kept while the run went on; CheckpointError if the run has not begun."""
    tensors, _ = _load(job)
    return {int(name.removeprefix("at.")): phi for name, phi in tensors.items() if name.startswith("at.")}


def snapshot_iterations(run: Run) -> list[int]:
    """Where phi is kept: at some of the multiples of when it is measured, and at both ends."""
    stride = run.evaluation.every * max(1, round(run.iterations / run.evaluation.every / SNAPSHOTS))
    return [*range(0, run.iterations, stride), run.iterations]


def final_state(job: Job) -> TrainingState:
    """Where a run ended; CheckpointError or FileNotFoundError where it has not."""
    parts, record = _load(job)
    if record["status"] != "finished":
        raise CheckpointError(f"{job.path}: expected a finished run, found one that is {record['status']}")
    return _state(parts, record)


def find(name: str, directory: Path | None, *, quiet: bool) -> Source:
    """The source of the data with this name, from `directory` or wherever `datasets.load` looks; DataError, with the
    reason, where they are not to be had."""
    try:
        images = datasets.load(name, data=directory, quiet=quiet)  # type: ignore[call-overload]
    except datasets.DataError:
        if directory is None:
            raise
        return find(name, None, quiet=quiet)  # the directory may have been named for other data
    return Source(name, directory, images.content, images.real)


@lru_cache(maxsize=1)
def _images(source: Source) -> datasets.Characters | datasets.ColourImages:
    images = datasets.load(source.name, data=source.directory, quiet=True)  # type: ignore[call-overload]
    if images.content != source.content:
        raise datasets.DataError(
            f"data: expected the content {source.content[:12]} that this run began with, found another"
        )
    return images


@lru_cache(maxsize=1)
def split_of(source: Source, seed: int) -> Split:
    """The split of a source's characters by seed, or of its photographs as published, kept for the next run that asks
    for it in this process."""
    images = _images(source)
    if isinstance(images, datasets.ColourImages):
        return split_images(images)
    return split_characters(images.images, seed=seed, kind=source.split)


def _load(job: Job) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, record = load_checkpoint(job.path)
    if record.get("key") != job.key:
        decisive = json.loads(json.dumps(job.decisive))  # tuples are lists there
        others = " and ".join(OTHER[name] for name, value in decisive.items() if record.get(name) != value)
        raise CheckpointError(
            f"{job.path}: expected the run {job.key}, found the run {record.get('key')}, of {others or 'no known kind'}"
        )
    if not _is_state(job, tensors, record):
        raise CheckpointError(f"{job.path}: expected the state of a run as this version writes it, found another")
    return {name: tensor.to(job.device) for name, tensor in tensors.items()}, record


def resume(job: Job) -> tuple[TrainingState, list[dict[str, Any]], dict[str, Tensor], float, str]:
    """State, rows, snapshots, seconds and status: those of the job's file, or of a run that has not begun."""
    if job.fresh or not job.path.exists():
        return training.start(job.run, job.device), [], {}, 0.0, "running"
    parts, record = _load(job)
    kept = {name: tensor for name, tensor in parts.items() if name.startswith("at.")}
    return _state(parts, record), record["rows"], kept, record["seconds"], record["status"]


def _is_state(job: Job, parts: dict[str, Tensor], record: dict[str, Any]) -> bool:
    """Is this what `_save` writes of this job, in kind and shape?"""
    start = training.start(job.run)
    inner = {f"inner.{i}": part for i, part in enumerate(job.run.inner.build().start(start.phi))}
    count = record.get("inner", -1)
    wanted = {"phi": start.phi} | (inner if count is not None else {})
    shapes = {name: (part.shape, part.dtype) for name, part in parts.items()}
    return (
        all(shapes.get(name) == (part.shape, part.dtype) for name, part in wanted.items())
        and all(shape in (start.phi.shape, ()) for shape, _ in shapes.values())
        and (count is None or (type(count) is int and count == len(inner)))
        and type(record.get("iteration")) is int
        and 0 <= record["iteration"] <= job.run.iterations
        and type(record.get("seconds")) in (int, float)
        and isinstance(record.get("status"), str)
        and isinstance(record.get("rows"), list)
        and all(isinstance(row, dict) and row.keys() == ROW for row in record["rows"])
    )


def is_finite(phi: Phi) -> bool:
    """Of all entries; the sum, where it is finite, tells in a tenth of the time, a thousandth of an iteration's."""
    return bool(torch.isfinite(phi.sum()) or torch.isfinite(phi).all())


def _state(parts: dict[str, Tensor], record: dict[str, Any]) -> TrainingState:
    inner = tuple(parts[f"inner.{i}"] for i in range(record["inner"])) if record["inner"] is not None else None
    outer = {n.removeprefix("outer."): t for n, t in parts.items() if n.startswith("outer.")} or None
    return TrainingState(record["iteration"], parts["phi"], inner, outer)


def save(
    job: Job, state: TrainingState, rows: list[dict[str, Any]], kept: dict[str, Tensor], seconds: float, status: str
) -> None:
    tensors = {"phi": state.phi, **kept}
    tensors |= {f"inner.{i}": tensor for i, tensor in enumerate(state.inner or ())}
    tensors |= {f"outer.{name}": tensor for name, tensor in (state.outer or {}).items()}
    record = {
        "key": job.key,
        **job.decisive,
        "variant": job.variant,
        "iteration": state.iteration,
        "inner": None if state.inner is None else len(state.inner),
        "rows": rows,
        "seconds": seconds,
        "status": status,
    }
    save_checkpoint(job.path, tensors, record)
