"""Runs of meta-training as files: each is keyed by all that decides its outcome, resumed where it stands, done once.

A run's file holds its state and the rows measured so far. Runs go through a `concurrent.futures.Executor`, one process
and one thread each, so that how many there are changes no bit.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from reptile_core import datasets, native, training
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.datasets.split import Split, split_characters
from reptile_core.tasks import ImagePool
from reptile_core.training import Run, TrainingState

# Raised whenever the same configuration would give other bits than before, so that old files are not taken for new.
NUMERICS_VERSION = 2

# Large pages, and freed memory kept: each step takes and frees the same few megabytes, and page faults and misses of
# the address translation would each cost a sixth of it. (Settings of glibc; ignored elsewhere.)
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

Progress = Callable[[int], None]  # told the number of inner steps done since it was last called


@dataclass(frozen=True)
class Source:
    """How a worker finds the data again, and the content it must then find."""

    name: str
    directory: Path | None
    content: str


@dataclass(frozen=True)
class Job:
    """One run, the data it is on, where its file lies and what it is called in tables."""

    run: Run
    source: Source
    folder: Path
    variant: str
    device: str = "cpu"
    fresh: bool = False

    @property
    def key(self) -> str:
        """Digest of everything that decides the outcome: configuration, data, device type, how sums are rounded."""
        decisive = {
            "run": asdict(self.run),
            "data": self.source.content,
            "device": torch.device(self.device).type,
            "numerics": NUMERICS_VERSION,
            "native": native.library() is not None,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.safetensors"

    @property
    def training_steps(self) -> int:
        """Inner steps of the whole run: the unit of progress, and what it costs but for evaluation."""
        return self.run.iterations * self.run.meta_batch * self.run.sampling.steps


@dataclass(frozen=True)
class Outcome:
    """What a run measured: rows of (iteration, quantity, value, standard_error, count), and how it ended."""

    rows: list[dict[str, Any]]
    status: str
    seconds: float
    iteration: int


def execute(job: Job, progress: Progress = lambda steps: None) -> Outcome:
    """Bring a run to its end from wherever its file says it stands, and return what it measured."""
    state, rows, seconds, status = _resume(job)
    if status != "running":
        progress(job.training_steps)
        return Outcome(rows, status, seconds, state.iteration)
    split = split_of(job.source, job.run.seed)
    train_pool, test_pool = (
        ImagePool(images.to(job.device), job.run.torch_dtype) for images in (split.train, split.test)
    )
    began = time.perf_counter()

    def measure(state: TrainingState) -> str:
        status = "finished" if state.iteration == job.run.iterations else "running"
        if not torch.isfinite(state.phi).all():
            status = f"diverged before iteration {state.iteration}"
        else:
            lanes = job.run.evaluation.tasks if job.device != "cpu" else 1
            for quantity, estimate in training.evaluate(job.run, test_pool, state, lanes=lanes).items():
                rows.append(
                    {
                        "iteration": state.iteration,
                        "quantity": quantity,
                        "value": estimate.mean,
                        "standard_error": estimate.standard_error,
                        "count": estimate.count,
                    }
                )
        _save(job, state, rows, seconds + time.perf_counter() - began, status)
        return status

    steps = job.run.meta_batch * job.run.sampling.steps  # of the inner loop in one iteration: what progress counts
    progress(state.iteration * steps)
    reported = state.iteration
    if not rows:  # not "at iteration 0": a run may have been stopped between there and its next measurement
        status = measure(state)
    for now in training.train(job.run, train_pool, state):
        state = now
        if state.iteration % job.run.evaluation.every == 0 or state.iteration == job.run.iterations:
            status = measure(state)
        if state.iteration - reported >= 10 or status != "running":
            progress((state.iteration - reported) * steps)
            reported = state.iteration
        if status.startswith("diverged"):
            break
    return Outcome(rows, status, seconds + time.perf_counter() - began, state.iteration)


def execute_all(jobs: Iterable[Job], executor: Executor) -> dict[Job, Outcome]:
    """Run all jobs, longest first so that none is left to run alone at the end. An exception of a job is raised only
    once the others have ended: what they did is kept in their files."""
    ordered = sorted(jobs, key=lambda job: -job.training_steps)
    futures = {job: executor.submit(_in_worker, job) for job in ordered}
    wait(futures.values())
    return {job: future.result() for job, future in futures.items()}


def local_executor(workers: int, progress_queue: Any = None) -> ProcessPoolExecutor:
    """Processes of one thread each. They inherit the environment, which is set here before the first of them starts."""
    os.environ.update({name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()})
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(progress_queue,)
    )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_progress_queue: Any = None


def _start_worker(progress_queue: Any) -> None:
    global _progress_queue
    _progress_queue = progress_queue
    torch.set_num_threads(1)


def _in_worker(job: Job) -> Outcome:
    queue = _progress_queue
    return execute(job, queue.put if queue is not None else lambda steps: None)


@lru_cache(maxsize=1)
def _characters(source: Source) -> datasets.Characters:
    characters = datasets.load(source.name, data=source.directory, quiet=True)  # type: ignore[arg-type]
    if characters.content != source.content:
        raise datasets.DataError(
            f"data: expected the content {source.content[:12]} that this run began with, found another"
        )
    return characters


@lru_cache(maxsize=1)
def split_of(source: Source, seed: int) -> Split:
    """The split of a source's characters by seed, kept for the next run that asks for it in this process."""
    return split_characters(_characters(source).images, seed=seed)


def _resume(job: Job) -> tuple[TrainingState, list[dict[str, Any]], float, str]:
    if job.fresh or not job.path.exists():
        return training.start(job.run, job.device), [], 0.0, "running"
    tensors, record = load_checkpoint(job.path)
    if record.get("key") != job.key:
        raise CheckpointError(f"{job.path}: expected the run {job.key}, found the run {record.get('key')}")
    parts = {name: tensor.to(job.device) for name, tensor in tensors.items()}
    inner = tuple(parts[f"inner.{i}"] for i in range(record["inner"])) if record["inner"] is not None else None
    outer = {n.removeprefix("outer."): t for n, t in parts.items() if n.startswith("outer.")} or None
    state = TrainingState(record["iteration"], parts["phi"], inner, outer)
    return state, record["rows"], record["seconds"], record["status"]


def _save(job: Job, state: TrainingState, rows: list[dict[str, Any]], seconds: float, status: str) -> None:
    tensors = {"phi": state.phi}
    tensors |= {f"inner.{i}": tensor for i, tensor in enumerate(state.inner or ())}
    tensors |= {f"outer.{name}": tensor for name, tensor in (state.outer or {}).items()}
    record = {
        "key": job.key,
        "run": asdict(job.run),
        "variant": job.variant,
        "data": job.source.content,
        "iteration": state.iteration,
        "inner": None if state.inner is None else len(state.inner),
        "rows": rows,
        "seconds": seconds,
        "status": status,
    }
    save_checkpoint(job.path, tensors, record)
