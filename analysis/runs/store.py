"""Files of training runs: the furthest state of each, and its states at requested iterations.

A file is whole or absent, and named by the run's key. In earlier versions the key included an
evaluation. Such files are found by their content.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from analysis.runs.arithmetic import NOT_RECORDED
from analysis.runs.job import DEVICES, KEY_PARTS_IN_WORDS, Job, record_digest
from reptile_core import training
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.inner_loop import Phi
from reptile_core.training import TrainingState

# Names of tensors: those of the furthest state, and at.N, at.N.inner.0 … of a snapshot.
NAME = re.compile(r"phi|at\.\d+|(at\.\d+\.)?(inner\.\d+|outer\..+)")
PHI_AT = re.compile(r"at\.(\d+)")
DIVERGED = "diverged at iteration "


@dataclass(frozen=True)
class Stored:
    """Content of a run's file.

    state: the furthest state.
    snapshots: the kept states, by iteration.
    seconds: of training up to the furthest state.
    status: "finished", "running" or "diverged at iteration N".
    kinds: the kinds of arithmetic on which it was trained.
    """

    state: TrainingState
    snapshots: dict[int, TrainingState]
    seconds: float
    status: str
    kinds: tuple[str, ...] = ()

    @property
    def diverged(self) -> bool:
        return self.status.startswith(DIVERGED)

    def at(self, iteration: int) -> TrainingState | None:
        """Return the state at an iteration, if it was kept or is the furthest; None otherwise."""
        if iteration == self.state.iteration and not self.diverged:
            return self.state
        return self.snapshots.get(iteration)

    def missing(self, job: Job) -> list[int]:
        """Return the iterations that the job wants and that are not here, in order.

        From a divergence on, none is missing.
        """
        limit = self.state.iteration if self.diverged else job.end + 1
        return [n for n in job.wanted if 0 < n < limit and self.at(n) is None]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    status: "finished", or "diverged at iteration N", where phi was first seen not to be finite.
        What was kept before that iteration is there.
    seconds: what training takes up to that point.
    iteration: where it ended.
    phi: SHA-256 (hex) of phi, by iteration, where it was asked for and at the end.
    kinds: the kinds of arithmetic on which it was trained.
    """

    status: str
    seconds: float
    iteration: int
    phi: Mapping[int, str] = field(default_factory=dict, compare=False)
    kinds: tuple[str, ...] = field(default=(), compare=False)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def up_to(self, end: int) -> "Outcome":
        """Return the outcome of the same run stopped at `end`, if that is earlier than its end."""
        if end >= self.iteration:
            return self
        return replace(
            self, status="finished", seconds=self.seconds * end / self.iteration, iteration=end
        )


def load(job: Job) -> Stored | None:
    """Return what the job's file holds; None where there is no file.

    Raises CheckpointError where it cannot be used.
    """
    path = _existing(job)
    if path is None:
        return None
    tensors, record = load_checkpoint(path)
    if path == job.path and record.get("key") != job.key:
        raise CheckpointError(
            f"{path}: expected the run {job.key}, found {_described(job, record)}"
        )
    if not _is_state(job, tensors, record):
        raise CheckpointError(
            f"{path}: expected the state of a run as this version writes it, found another "
            "version's"
        )
    tensors = {name: tensor.to(job.device) for name, tensor in tensors.items()}
    furthest = _state(tensors, record["iteration"], record["inner"])
    iterations = sorted(int(found[1]) for name in tensors if (found := PHI_AT.fullmatch(name)))
    snapshots = {n: _state(tensors, n, record["inner"], f"at.{n}") for n in iterations if n}
    # Earlier versions kept phi alone. That is not enough where the optimizers have states too.
    whole = _parts(furthest).keys()
    complete = {n: state for n, state in snapshots.items() if _parts(state).keys() == whole}
    kinds = tuple(record.get("kinds", (NOT_RECORDED,)))
    return Stored(furthest, complete, record["seconds"], record["status"], kinds)


def save(job: Job, stored: Stored) -> None:
    """Write the job's file."""
    state = stored.state
    tensors = _parts(state)
    for iteration, snapshot in stored.snapshots.items():
        tensors |= _parts(snapshot, f"at.{iteration}")
    record = {
        "key": job.key,
        **job.decisive,
        "variant": job.variant,
        "iteration": state.iteration,
        "inner": None if state.inner is None else len(state.inner),
        "seconds": stored.seconds,
        "status": stored.status,
        "kinds": stored.kinds,
    }
    save_checkpoint(job.path, tensors, record)


def or_of_another_device(job: Job) -> Job:
    """Return the job itself, or the same run as trained on another device.

    The other one is returned where the folder holds it complete, and this device's not. So the runs
    of CPUs and GPUs can be different seeds of one table.
    """
    devices = [device for device in DEVICES if device != job.decisive["device"]]
    elsewhere = [replace(job, trained_on=device) for device in devices]
    there = [other for other in elsewhere if other.path.exists()]
    if not there:
        return job
    return next((one for one in (job, *there) if _is_whole(one)), job)


def _is_whole(job: Job) -> bool:
    stored = load(job)
    return stored is not None and not stored.missing(job)


def state_at(job: Job, iteration: int) -> TrainingState:
    """Return the state at an iteration that the job has reached and kept, or at its start.

    Raises CheckpointError where it has not.
    """
    if iteration == 0:
        return training.start(job.run, job.device)
    stored = load(job)
    state = None if stored is None else stored.at(iteration)
    if state is None:
        raise CheckpointError(
            f"{job.path}: expected the state at iteration {iteration}, found none"
        )
    return state


def digest_of(phi: Phi) -> str:
    """Return the SHA-256 (hex) of the numbers of phi, as they are in memory."""
    return hashlib.sha256(phi.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def is_finite(phi: Phi) -> bool:
    """Return whether all entries are finite; a finite sum shows it in a tenth of the time."""
    return bool(torch.isfinite(phi.sum()) or torch.isfinite(phi).all())


def ended_early(outcomes: Mapping[Job, Outcome]) -> list[str]:
    """Return lines that name the runs that diverged, and their settings."""
    lines = []
    for job, outcome in outcomes.items():
        if outcome.finished:
            continue
        inner, outer = job.run.inner, job.run.outer
        lines.append(
            f"{job.variant}, seed {job.run.seed}: {outcome.status} "
            f"(inner {inner.optimizer} at {inner.learning_rate:g}, "
            f"outer {outer.optimizer} at {outer.step:g})"
        )
    return lines


def _described(job: Job, record: Mapping[str, Any]) -> str:
    """Return which run a file holds, and in which decisive parts it differs from the job's."""
    decisive = json.loads(json.dumps(job.decisive))  # tuples are lists in a record
    others = []
    for name, words in KEY_PARTS_IN_WORDS.items():
        if record.get(name) != decisive[name]:
            others.append(words)
    return f"the run {record.get('key')}, of {' and '.join(others) or 'no known kind'}"


def _existing(job: Job) -> Path | None:
    """Return the job's file, or one whose key included an evaluation; None where neither exists."""
    return job.path if job.path.exists() else _of_before(job.folder).get(job.key)


@cache
def _of_before(folder: Path) -> dict[str, Path]:
    """Return the files whose runs hold an evaluation, by the key that they have without it.

    Of several files with one key, this is the furthest.
    """
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads(file.metadata()["record"])
            if "evaluation" not in record["run"]:
                continue
            run = {name: value for name, value in record["run"].items() if name != "evaluation"}
            key = record_digest({name: record[name] for name in KEY_PARTS_IN_WORDS} | {"run": run})
            found[key] = max(found.get(key, (-1, path)), (record["iteration"], path))
        # No run's file, or a damaged one. `load` reports it to those who ask for its own key.
        except Exception:
            continue
    return {key: path for key, (_, path) in found.items()}


def _is_state(job: Job, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> bool:
    """Return whether this has the names, shapes and types that `save` writes for this job."""
    start = training.start(job.run)
    inner = {f"inner.{i}": part for i, part in enumerate(job.run.inner.build().start(start.phi))}
    count = record.get("inner", -1)
    wanted = {"phi": start.phi} | (inner if count is not None else {})
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    return (
        all(shapes.get(name) == (part.shape, part.dtype) for name, part in wanted.items())
        and all(shape in (start.phi.shape, ()) for shape, _ in shapes.values())
        and (count is None or (type(count) is int and count == len(inner)))
        and type(record.get("iteration")) is int
        and 0 <= record["iteration"] <= job.run.iterations
        and type(record.get("seconds")) in (int, float)
        and isinstance(record.get("status"), str)
        and all(NAME.fullmatch(name) for name in tensors)
    )


def _parts(state: TrainingState, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a state by their names in a file.

    prefix: "at.N" for a snapshot, which is also the name of its phi.
    """
    inside = f"{prefix}." if prefix else ""
    parts = {prefix or "phi": state.phi}
    parts |= {f"{inside}inner.{i}": tensor for i, tensor in enumerate(state.inner or ())}
    return parts | {f"{inside}outer.{name}": tensor for name, tensor in (state.outer or {}).items()}


def _state(
    tensors: Mapping[str, Tensor], iteration: int, count: int | None, prefix: str = ""
) -> TrainingState:
    """Return the state whose tensors have these names.

    count: how many tensors the inner optimizer's state has; None for no state.
    """
    inside = f"{prefix}." if prefix else ""
    inner = [tensors[name] for i in range(count or 0) if (name := f"{inside}inner.{i}") in tensors]
    mark = f"{inside}outer."
    outer = {
        name.removeprefix(mark): tensor for name, tensor in tensors.items() if name.startswith(mark)
    }
    inner_state = None if count is None else tuple(inner)
    return TrainingState(iteration, tensors[prefix or "phi"], inner_state, outer or None)
