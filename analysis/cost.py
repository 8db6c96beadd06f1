"""Cost of training runs and evaluations, in flops that are counted, and the time that they take.

A meta-iteration and an evaluation are traced without data, to count the flops of their matrix
products. Nothing is guessed. Each core does one run at a time, the longest first, at the rate of
one core with all of them at work, which is measured now.
"""

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from analysis.runs.evaluation_chunks import LANES
from analysis.runs.workers import available_cores, local_executor
from reptile_core import training
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Outer, Run, TrainingState

CLASSES, DRAWINGS = 40, 30  # of the pools to trace or time with: enough for any task


def iteration(run: Run) -> float:
    """Return the flops of one meta-iteration."""
    return _iteration(_as_to_cost(run))


@cache
def _iteration(run: Run) -> float:
    pool, state = _pool(run, "meta"), _start(run)
    return traced(lambda: next(training.train(run, pool, state)))


def evaluation(run: Run, sampling: Sampling, tasks: int, queries: int = 1) -> float:
    """Return the flops of an evaluation on `tasks` tasks side by side.

    queries: test examples a class.
    Two lengths of the inner loop are traced. Each further step adds their difference.
    """
    # An evaluation depends on nothing of training but the classes and the inner optimizer.
    n_way = run.sampling.n_way
    sampling_there = Sampling(n_way, 1, n_way, 1)
    trained = replace(
        _as_to_cost(run), sampling=sampling_there, weights=(1.0,), outer=Outer(1.0), meta_batch=1
    )
    return _evaluation(trained, sampling, tasks, queries)


@cache
def _evaluation(run: Run, sampling: Sampling, tasks: int, queries: int) -> float:
    pool, state = _pool(run, "meta"), _start(run)

    def after(steps: int) -> float:
        cut = replace(sampling, steps=steps)
        evaluate = partial(training.evaluate, run, pool, state, cut, range(tasks))
        return traced(partial(evaluate, queries=queries, lanes=tasks))

    one, two = after(1), after(2)
    return one + (sampling.steps - 1) * (two - one)


def look(run: Run, sampling: Sampling, tasks: int, queries: int = 1) -> float:
    """Return the flops of an evaluation on `tasks` tasks, LANES of them side by side."""
    return tasks / LANES * evaluation(run, sampling, LANES, queries)


def traced(call: Callable[[], Any]) -> float:
    """Return the flops of `call` on the meta device, where torch computes shapes alone."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return the seconds until all pieces are done.

    Each piece is done whole by one of the workers, the longest first.
    """
    busy = [0.0] * workers
    for piece in sorted(seconds, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + piece)
    return max(busy)


def measured_rate(run: Run, seconds: float) -> float:
    """Return the measured flops a second of this run's meta-iterations on one core.

    All cores of this machine work during the measurement.
    """
    cores = available_cores()
    with local_executor(cores) as executor:
        done = [executor.submit(iterations_in, run, seconds) for _ in range(cores)]
        return sum(one.result() for one in done) / cores / seconds * iteration(run)


def iterations_in(run: Run, seconds: float) -> float:
    """Return how many meta-iterations this process does in so many seconds, on blank images."""
    stream = training.train(run, _pool(run, "cpu"), training.start(run))
    next(stream)  # compiles and allocates what is needed once
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        next(stream)
        done += 1
    return done * seconds / elapsed


def _as_to_cost(run: Run) -> Run:
    """Return a run of the same cost that is equal for all runs of that cost.

    Step sizes, lengths and seeds are set to 1 or 0.
    """
    if not isinstance(run.weights, str):
        run = replace(run, weights=tuple(float(weight != 0) for weight in run.weights))
    inner, outer = replace(run.inner, learning_rate=1.0), Outer(1.0, optimizer=run.outer.optimizer)
    return replace(run, inner=inner, outer=outer, iterations=1, seed=0)


def _start(run: Run) -> TrainingState:
    size = training.build_network(run).n_parameters
    return TrainingState(0, torch.empty(size, dtype=run.torch_dtype, device="meta"))


def _pool(run: Run, device: str) -> ImagePool:
    takes = training.build_network(run).takes or ()
    shape = CLASSES, DRAWINGS, *takes
    return ImagePool(torch.zeros(shape, dtype=torch.uint8, device=device), run.torch_dtype)
