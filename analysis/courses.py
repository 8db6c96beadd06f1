"""Runs on their way: from where their files say that they stand to their ends, alone or as lanes of one device."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from analysis.runs import Job, Outcome, is_finite, resume, save, snapshot_iterations
from analysis.workers import Progress, silent
from reptile_core import training
from reptile_core.evaluation import Estimate
from reptile_core.lanes import lane, lane_bytes, shared, train_lanes
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Outer, TrainingState

SHARE_OF_MEMORY = 0.5  # of a device's free memory, for lanes: the estimate of what they take is a rough one


class Course:
    """A run on its way: its state, what it has measured, and its file."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.progress = job, progress
        self.state, self.rows, self.kept, self.seconds, self.status = resume(job)
        self.began: float | None = None
        self.steps = job.run.meta_batch * job.run.sampling.steps  # of the inner loop in an iteration: progress counts
        self.reported = self.state.iteration
        progress(job.training_steps if self.status != "running" else self.reported * self.steps)

    def begin(self) -> None:
        self.began, self.test_pool = time.perf_counter(), self.job.pool("test")
        if not self.rows:  # not "at iteration 0": it may have been stopped between there and its next measurement
            self.measure()

    def follow(self, iteration: int, stand: Callable[[], TrainingState]) -> None:
        """One iteration on, to `stand`, which is asked for where it is due; on a CPU always, as it costs nothing there
        to see at once that phi is no longer finite."""
        if self.status != "running":
            return
        run, on_cpu = self.job.run, self.job.device == "cpu"
        due = iteration % run.evaluation.every == 0 or iteration == run.iterations
        if due or on_cpu:
            self.state = stand()
        if due or (on_cpu and not is_finite(self.state.phi)):
            self.measure()
        if iteration - self.reported >= 10 or self.status != "running":
            self.progress((iteration - self.reported) * self.steps)
            self.reported = iteration

    def measure(self) -> None:
        job, state = self.job, self.state
        self.status = "finished" if state.iteration == job.run.iterations else "running"
        if not is_finite(state.phi):
            self.status = f"diverged at iteration {state.iteration}"
        else:
            at_start = not state.iteration
            found = _at_start(_before_training(job)) if at_start else _evaluate(job, self.test_pool, state)
            for quantity, estimate in found.items():
                self.rows.append(
                    {
                        "iteration": state.iteration,
                        "quantity": quantity,
                        "value": estimate.mean,
                        "standard_error": estimate.standard_error,
                        "count": estimate.count,
                    }
                )
                note = f"{job.variant}, seed {job.run.seed}, at {state.iteration}: {100 * estimate.mean:.1f} %"
                self.progress(0, note)
        if state.iteration in snapshot_iterations(job.run):
            self.kept[f"at.{state.iteration}"] = state.phi.clone()  # a file holds no tensor twice
        save(job, state, self.rows, self.kept, self.elapsed(), self.status)

    def elapsed(self) -> float:
        return self.seconds + (0.0 if self.began is None else time.perf_counter() - self.began)

    def outcome(self) -> Outcome:
        return Outcome(self.rows, self.status, self.elapsed(), self.state.iteration)


def execute(job: Job, progress: Progress = silent) -> Outcome:
    """Bring a run to its end from wherever its file says it stands, and return what it measured."""
    (outcome,) = execute_together((job,), progress)
    return outcome


def execute_together(jobs: Sequence[Job], progress: Progress = silent) -> list[Outcome]:
    """The same for several runs at once, one lane each but for a single run on a CPU; see `lanes.shared`.

    Those that stand at the same iteration go on together. A lane that has diverged is carried along, for nothing.
    """
    use_precision(jobs[0])
    courses = [Course(job, progress) for job in jobs]
    going = [course for course in courses if course.status == "running"]
    for at in sorted({course.state.iteration for course in going}):
        _advance([course for course in going if course.state.iteration == at])
    return [course.outcome() for course in courses]


def in_lanes(jobs: Sequence[Job], *, free: int | None = None) -> list[tuple[Job, ...]]:
    """Which jobs to execute together: on a CPU each by itself, on a GPU those that are alike, as many as fit.

    free: bytes of memory for them; None asks the device.
    """
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        alone = job.device == "cpu"
        groups.setdefault(job.key if alone else (shared(job.run), job.source, job.fresh, job.tf32), []).append(job)
    cut: list[tuple[Job, ...]] = []
    for group in groups.values():
        if free is None and group[0].device != "cpu":
            free = int(torch.cuda.mem_get_info()[0] * SHARE_OF_MEMORY)
        width = max(1, (free or 0) // lane_bytes(group[0].run))
        cut += [tuple(group[first : first + width]) for first in range(0, len(group), width)]
    return cut


def use_precision(job: Job) -> None:
    """How this process multiplies float32 matrices on a GPU, and nowhere else."""
    torch.backends.cuda.matmul.allow_tf32 = job.tf32


def _advance(courses: Sequence[Course]) -> None:
    """From where they stand to the end, or until all have diverged."""
    runs, pools = [course.job.run for course in courses], [course.job.pool("train") for course in courses]
    states = [course.state for course in courses]
    for course in courses:
        course.begin()
    alone = len(courses) == 1 and courses[0].job.device == "cpu"  # on a GPU one run is a graph too
    stream = training.train(runs[0], pools[0], states[0]) if alone else train_lanes(runs, pools, states)
    for state in stream:
        for index, course in enumerate(courses):
            course.follow(state.iteration, partial(_part, state, None if alone else index))
        if all(course.status != "running" for course in courses):
            break


def _part(state: TrainingState, index: int | None) -> TrainingState:
    """A lane of a state, or all of it."""
    return state if index is None else lane(state, index)


def _evaluate(job: Job, pool: ImagePool, state: TrainingState) -> dict[str, Estimate]:
    lanes = job.run.evaluation.tasks if job.device != "cpu" else 1
    return training.evaluate(job.run, pool, state, lanes=lanes)


@cache
def _at_start(job: Job) -> dict[str, Estimate]:
    """Where a run begins, measured once in this process for all that begin there: a fifth of a quick run's looks."""
    return _evaluate(job, job.pool("test"), training.start(job.run, job.device))


def _before_training(job: Job) -> Job:
    """The same for all runs that begin alike and are evaluated alike: without what training alone asks for."""
    sampling = Sampling(job.run.sampling.n_way, shots=1, batch=1, steps=1)
    run = replace(job.run, sampling=sampling, weights=(1.0,), outer=Outer(0.0), iterations=1, meta_batch=1)
    return replace(job, run=run, folder=Path(), variant="", fresh=False)
