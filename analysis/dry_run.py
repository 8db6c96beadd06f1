"""Preview of a command: its training runs and evaluations, which are done, and hours for the rest.

Each experiment is given made-up accuracies to find out what it asks for. Where it chooses by
accuracy, as `outer` chooses Adam's step, the run that it would choose is not known, and another may
be counted. Nothing is trained, and no result is written. The rest is costed as in `cost`, at the
rate that one core of this machine has now.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

import numpy as np

from analysis import cost
from analysis.experiments.shared.experiment import Context, Experiment, Measured
from analysis.plan import Plan
from analysis.results.wording import duration
from analysis.runs.advance import RunInProgress
from analysis.runs.evaluation_chunks import Accuracies, EvaluationChunk, chunks
from analysis.runs.job import Job
from analysis.runs.store import Outcome
from analysis.runs.workers import Workers, silent
from reptile_core.training import Run

RATE_SECONDS = 2.0  # how long the rate is measured
MADE_UP = 0.5  # the accuracy that all tasks are given


class _OwnWork(Exception):
    """Signal that an experiment has come to work of its own, which needs trained parameters."""


class _NoWorkers(Workers):
    def map(self, *_: Any, **__: Any) -> list[Any]:
        raise _OwnWork


@dataclass(frozen=True)
class _Asking(Context):
    """A context that notes what an experiment asks for, and does nothing."""

    jobs: dict[tuple[str, int], Job] = field(default_factory=dict)  # by key and end
    pieces: dict[str, EvaluationChunk] = field(default_factory=dict)  # of evaluations, by key

    def train(self, name: str, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        self.jobs.update({(job.key, job.end): job for job in jobs})
        return {job: Outcome("finished", float(job.end), job.end) for job in jobs}

    def evaluate(self, name: str, wanted: Sequence[Measured]) -> dict[Measured, Accuracies]:
        for item in wanted:
            self.pieces.update({chunk.key: chunk for chunk in chunks(*item)})
        return {item: _made_up(item[2].tasks) for item in wanted}


@dataclass(frozen=True)
class Left:
    """Work that an experiment has left to do.

    runs, evaluations: how many it wants, and how many of these are there. Chunks of tasks count as
        evaluations.
    iterations: meta-iterations left to train.
    work: each run to train or evaluate, with the flops that it takes.
    own: whether it also does work of its own, which is not counted.
    """

    experiment: Experiment
    runs: tuple[int, int]
    evaluations: tuple[int, int]
    iterations: int
    work: tuple[tuple[Run, float], ...]
    own: bool


def left(experiment: Experiment, context: Context, known: dict[str, int]) -> Left:
    """Return what an experiment has left to do, and add its runs and evaluations to `known`.

    known: the end of each run and evaluation of earlier experiments, by key. These are not counted
        again.
    """
    values = {one.name: getattr(context, one.name) for one in fields(Context)}
    asking = _Asking(**values | {"workers": _NoWorkers(context.workers.count, quiet=True)})
    try:
        experiment.result(asking)
        own = not asking.jobs
    except _OwnWork:
        own = True
    furthest = {job.key: job for job in sorted(asking.jobs.values(), key=lambda job: job.end)}
    iterations: dict[str, int] = {}
    todo: dict[str, int] = {}
    for key, job in furthest.items():
        iterations[key] = job.end if context.fresh else _iterations_left(job)
        beyond_known = max(0, job.end - known.get(key, 0))
        if n := min(iterations[key], beyond_known):
            todo[key] = n
    pieces = asking.pieces
    if not context.fresh:
        pieces = {key: chunk for key, chunk in pieces.items() if not chunk.path.exists()}
    work: list[tuple[Run, float]] = []
    for key, n in todo.items():
        run = furthest[key].run
        work.append((run, n * cost.iteration(run)))
    work += [(chunk.job.run, _flops(chunk)) for key, chunk in pieces.items() if key not in known]
    known |= dict.fromkeys(asking.pieces, 0)
    known |= {key: max(job.end, known.get(key, 0)) for key, job in furthest.items()}
    there = sum(not n for n in iterations.values())
    runs = len(furthest), there
    evaluations = len(asking.pieces), len(asking.pieces) - len(pieces)
    return Left(experiment, runs, evaluations, sum(todo.values()), tuple(work), own)


def describe(plans: Iterable[Plan], rate_of: Callable[[Run], float] | None = None) -> list[str]:
    """Return lines that say what the plans would do, what is done and how long the rest takes.

    rate_of: flops a second of one core at a run's iterations. None measures it, in a few seconds.
    """
    measure = rate_of or (lambda run: cost.measured_rate(run, RATE_SECONDS))
    lines: list[str] = []
    known: dict[str, int] = {}
    for plan in plans:
        found = [left(one, plan.context_of(one), known) for one in plan.experiments]
        work = list(chain.from_iterable(one.work for one in found))
        flops: dict[Run, float] = {}
        for run, amount in work:
            flops[run] = flops.get(run, 0.0) + amount
        rate = measure(max(flops, key=lambda run: flops[run])) if flops else 1.0
        workers, profile = plan.context.workers.count, plan.context.profile
        lines += [_line(one, rate, workers, profile) for one in found]
        if flops:
            whole = cost.makespan([amount / rate for _, amount in work], workers)
            lines.append(
                f"what is left: {duration(whole, digits=1)} on {workers} workers, at "
                f"{rate / 1e9:.0f} GFLOP/s a core; results in {plan.out}/"
            )
    return lines


def _line(one: Left, rate: float, workers: int, profile: str) -> str:
    name = one.experiment.name
    if not one.runs[0]:
        return (
            f"{name}: no runs that are kept; all of it takes "
            f"{one.experiment.takes.get(profile, 'a time not known')}"
        )
    seconds = cost.makespan([flops / rate for _, flops in one.work], workers)
    own = ", and measurements of its own, which are not counted" if one.own else ""
    return (
        f"{name}: {one.runs[0]} runs, {one.runs[1]} there; {one.iterations:,} iterations left; "
        f"{one.evaluations[0]} evaluations, {one.evaluations[1]} there; "
        f"{duration(seconds, digits=1)}{own}"
    )


def _iterations_left(job: Job) -> int:
    """Return the iterations from where training would begin to the job's end."""
    run = RunInProgress(job, silent)
    return 0 if run.done else job.end - run.state.iteration


def _flops(chunk: EvaluationChunk) -> float:
    evaluation = chunk.evaluation
    return cost.look(chunk.job.run, evaluation.sampling, len(chunk.tasks), evaluation.queries)


def _made_up(tasks: int) -> Accuracies:
    return {quantity: np.full(tasks, MADE_UP) for quantity in ("accuracy", "accuracy_transductive")}
