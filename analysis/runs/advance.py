"""Training of runs from where their files stand to their ends, alone or as lanes of one device."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from analysis.runs.arithmetic import kind
from analysis.runs.job import Job
from analysis.runs.store import DIVERGED, Outcome, Stored, digest_of, is_finite, load, save
from analysis.runs.workers import Progress, silent
from reptile_core import training
from reptile_core.checkpoints import CheckpointError
from reptile_core.lanes import lane, lane_bytes, shared, train_lanes
from reptile_core.training import TrainingState

# Share of a device's free memory that lanes may take: the estimate of what they take is rough.
SHARE_OF_MEMORY = 0.5
# Seconds of training after which a run is saved, besides the iterations that are kept.
SAVE_SECONDS = 30.0


class RunInProgress:
    """A run in progress: its state, what is kept of it, and its file."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job, self.progress = job, progress
        begin = training.start(job.run, job.device)
        before = _readable(job) if job.fresh else load(job)
        # What a fresh run replaces, once it has come as far or to its end.
        self.replaced = before if job.fresh else None
        # The furthest known state. The file keeps it while an earlier stretch is trained again.
        self.stored = (None if job.fresh else before) or Stored(begin, {}, 0.0, "running")
        missing = self.stored.missing(job)
        self.done = not missing
        self.state = begin
        if missing:
            self.state = max(self._starts(begin, missing[0]), key=lambda state: state.iteration)
        self.seconds = self._seconds_to(self.state.iteration)
        self.began = self.saved = time.perf_counter()
        self.reported = self.state.iteration
        there = job.images if self.done else self.reported * job.images_an_iteration
        progress(there, there=True)

    def _starts(self, begin: TrainingState, iteration: int) -> list[TrainingState]:
        """Return the states from which training can reach an iteration."""
        kept = list(self.stored.snapshots.values())
        if not self.stored.diverged:
            kept.append(self.stored.state)
        return [begin, *(state for state in kept if state.iteration < iteration)]

    def begin(self) -> None:
        self.began = self.saved = time.perf_counter()

    def follow(self, iteration: int, get_state: Callable[[], TrainingState]) -> None:
        """Record one iteration.

        get_state: returns the state. It is called only when needed. On a CPU that is always: there
            it costs nothing to see at once that phi is no longer finite.
        """
        if self.done:
            return
        due = iteration in self.job.wanted
        late = time.perf_counter() - self.saved > SAVE_SECONDS
        if due or late or self.job.device == "cpu":
            self.state = get_state()
            finite = is_finite(self.state.phi)
            if due or late or not finite:
                self._record(finite, due)
        if iteration - self.reported >= 10 or self.done:
            note = f"{self.job.variant}, seed {self.job.run.seed}"
            done = (iteration - self.reported) * self.job.images_an_iteration
            self.progress(done, note)
            self.reported = iteration

    def _record(self, finite: bool, due: bool) -> None:
        """Save the state: as the furthest if it is, and as a snapshot where one is due."""
        state, stored = self.state, self.stored
        if due and finite:
            stored.snapshots[state.iteration] = _copy(state)
        if not finite or state.iteration >= stored.state.iteration:
            finished = "finished" if state.iteration == self.job.run.iterations else "running"
            status = finished if finite else f"{DIVERGED}{state.iteration}"
            self.stored = Stored(state, stored.snapshots, self._elapsed(), status, stored.kinds)
        here = kind(torch.device(self.job.device).type)
        self.stored = replace(self.stored, kinds=tuple(dict.fromkeys([*self.stored.kinds, here])))
        self.done = not self.stored.missing(self.job)
        self.saved = time.perf_counter()
        self._save()

    def _save(self) -> None:
        """Write the run's file; a fresh run that is behind it replaces only what it has done."""
        stored, before = self.stored, self.replaced
        behind = before is not None and stored.state.iteration < before.state.iteration
        if before is not None and behind and not stored.diverged:
            if not self.done:
                return
            stored = replace(before, snapshots=before.snapshots | stored.snapshots)
        save(self.job, stored)

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    def _seconds_to(self, iteration: int) -> float:
        """Return the seconds of training up to an iteration, as a share of the furthest state's."""
        return self.stored.seconds * iteration / max(self.stored.state.iteration, 1)

    def outcome(self) -> Outcome:
        stored = self.stored
        status = stored.status if stored.diverged else "finished"
        phi = {}
        for n in self.job.wanted:
            if (state := stored.at(n)) is not None:
                phi[n] = digest_of(state.phi)
        phi[stored.state.iteration] = digest_of(stored.state.phi)
        outcome = Outcome(status, stored.seconds, stored.state.iteration, phi, stored.kinds)
        return outcome.up_to(self.job.end)


def _readable(job: Job) -> Stored | None:
    """Return what the job's file holds; None where there is none that can be used."""
    try:
        return load(job)
    except CheckpointError:
        return None


def execute(job: Job, progress: Progress = silent) -> Outcome:
    """Bring a run to its end from wherever its file stands, and return how it ended."""
    (outcome,) = execute_together((job,), progress)
    return outcome


def execute_together(jobs: Sequence[Job], progress: Progress = silent) -> list[Outcome]:
    """Bring several runs to their ends at once, and return how each ended.

    Each run is a lane (see `lanes.shared`), except for a single run on a CPU. Runs at the same
    iteration go on together. A lane that has diverged or ended is carried along, for nothing. Where
    the device's memory does not suffice, each half of the runs goes on from its files by itself.
    """
    use_precision(jobs[0])
    try:
        return _execute(jobs, progress)
    except torch.OutOfMemoryError:
        if len(jobs) == 1:
            raise
    # Outside the `except` block the exception is gone, and the frames that held device memory too.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(jobs) // 2
    return execute_together(jobs[:middle], progress) + execute_together(jobs[middle:], progress)


def _execute(jobs: Sequence[Job], progress: Progress) -> list[Outcome]:
    runs = [RunInProgress(job, progress) for job in jobs]
    going = [run for run in runs if not run.done]
    for at in sorted({run.state.iteration for run in going}):
        _advance([run for run in going if run.state.iteration == at])
    return [run.outcome() for run in runs]


def united(jobs: Sequence[Job]) -> list[Job]:
    """Return one job for each key, which goes as far and keeps as much as all jobs of that key.

    A file must have one writer.
    """
    found: dict[str, Job] = {}
    for job in jobs:
        before = found.setdefault(job.key, job)
        wanted = sorted({*before.wanted, *job.wanted})
        found[job.key] = replace(before, until=wanted[-1], keep=tuple(wanted[:-1]))
    return list(found.values())


def in_lanes(jobs: Sequence[Job], *, free: int | None = None) -> list[tuple[Job, ...]]:
    """Return which jobs to execute together, as many as fit the memory.

    On a CPU each job runs by itself. On a GPU jobs that can share lanes run together.
    free: bytes of memory for them; None asks the device.
    """
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        alone = job.device == "cpu"
        together = (shared(job.run), job.source, job.fresh, job.tf32, job.wanted)
        groups.setdefault(job.key if alone else together, []).append(job)
    cut: list[tuple[Job, ...]] = []
    for group in groups.values():
        if free is None and group[0].device != "cpu":
            free = int(torch.cuda.mem_get_info()[0] * SHARE_OF_MEMORY)
        width = max(1, (free or 0) // lane_bytes(group[0].run))
        cut += [tuple(group[first : first + width]) for first in range(0, len(group), width)]
    return cut


def use_precision(job: Job) -> None:
    """Set how this process multiplies float32 matrices on a GPU; nothing else is affected."""
    torch.backends.cuda.matmul.allow_tf32 = job.tf32


def _advance(runs: Sequence[RunInProgress]) -> None:
    """Train from where the runs are until all are done."""
    configurations, pools = [one.job.run for one in runs], [one.job.pool("train") for one in runs]
    states = [one.state for one in runs]
    for one in runs:
        one.begin()
    alone = len(runs) == 1 and runs[0].job.device == "cpu"  # on a GPU one run is a graph too
    if alone:
        stream = training.train(configurations[0], pools[0], states[0])
    else:
        stream = train_lanes(configurations, pools, states)
    for state in stream:
        for index, one in enumerate(runs):
            one.follow(state.iteration, partial(_part, state, None if alone else index))
        if all(one.done for one in runs):
            break


def _part(state: TrainingState, index: int | None) -> TrainingState:
    """Return one lane of a state, or all of it where `index` is None."""
    return state if index is None else lane(state, index)


def _copy(state: TrainingState) -> TrainingState:
    """Copy a state into memory of its own.

    A file holds no tensor twice, and lanes overwrite their tensors.
    """
    inner, outer = state.inner, state.outer
    if inner is not None:
        inner = tuple(part.clone() for part in inner)
    if outer is not None:
        outer = {name: part.clone() for name, part in outer.items()}
    return TrainingState(state.iteration, state.phi.clone(), inner, outer)
