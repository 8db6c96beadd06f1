"""What only a GPU can show, as numbers with limits.

The checks are of the captured graph, lanes, memory, resuming and too little memory.

Without a GPU the same checks run on the CPU, where nothing is captured, so that only the card is
new there. Networks have no kinks (softplus), which round-off could move. No check needs pytest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from torch import Tensor

from analysis.runs import advance
from analysis.runs.advance import execute_together
from analysis.runs.job import Job, Source
from reptile_core import datasets, lanes, training
from reptile_core.lanes import lane, lane_bytes, train_lanes
from reptile_core.tasks import ImagePool
from reptile_core.training import Run, TrainingState
from tests.helpers.data import LANE_RUNS, image_pool

# Largest distance from the run on the CPU, as a share of how far phi has moved. In float64 the
# sums' order is all that differs. In float32 three iterations enlarge 1e-7 by up to 1e4.
CLOSE = {"float64": 1e-9, "float32": 1e-3}
LANES = 4


@dataclass(frozen=True)
class Found:
    """A number with its limits, and what it measures.

    It must not exceed `limit`, and not fall below `least`.
    """

    check: str
    value: float
    limit: float
    what: str
    least: float = 0.0

    @property
    def passed(self) -> bool:
        return self.least <= self.value <= self.limit


def against_single_runs(device: str) -> Iterator[Found]:
    """Yield how far lanes are from their runs on the CPU, step by step, for every kind of run."""
    for name, run in LANE_RUNS.items():
        for dtype, limit in CLOSE.items():
            runs = [replace(run, dtype=dtype, seed=seed) for seed in (0, 1)]
            together = _train(runs, device)
            for index, one in enumerate(runs):
                alone = training.train(one, _pool(one, "cpu"), training.start(one))
                for found, expected in zip(together, alone, strict=True):
                    step = f"{name}, {dtype}, seed {one.seed}, iteration {expected.iteration}"
                    value = _distance(lane(found, index).phi, expected.phi, one)
                    yield Found("lanes against single runs", value, limit, step)


def graph_against_eager(device: str) -> Iterator[Found]:
    """Yield how far a captured graph is from the same operations queued one by one."""
    for name, run in LANE_RUNS.items():
        runs = [replace(run, seed=seed) for seed in range(LANES)]
        captured = _train(runs, device)[-1]
        with mock.patch.object(lanes, "Graph", lambda function, *inputs: function):
            eager = _train(runs, device)[-1]
        value = max(_distance(captured.phi[i], eager.phi[i], one) for i, one in enumerate(runs))
        yield Found("graph against eager", value, CLOSE["float64"], name)


def resumed(device: str) -> Iterator[Found]:
    """Yield how far lanes that go on from half-way states are from those that ran through.

    The limit is no distance at all.
    """
    for name in ("sgd", "adam", "outer adam"):
        runs = [replace(LANE_RUNS[name], seed=seed) for seed in range(LANES)]
        whole = _train(runs, device)
        half = [lane(whole[0], index) for index in range(LANES)]
        pool = _pool(runs[0], device)
        again = list(train_lanes(runs, [pool] * LANES, half))[-1]
        yield Found(
            "resumed",
            float((again.phi - whole[-1].phi).abs().max()),
            0.0,
            f"{name}: largest difference",
        )


def memory(device: str) -> Iterator[Found]:
    """Yield the memory that lanes take, as a share of its estimate.

    The number of lanes is chosen by that estimate.
    """
    if device == "cpu":
        return
    for name in ("sgd", "adam", "maml"):
        runs = [replace(LANE_RUNS[name], dtype="float32", seed=seed) for seed in range(8 * LANES)]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _train(runs, device)
        taken = torch.cuda.max_memory_allocated() - before
        # The estimate fills half of the free memory, so memory runs out at twice the estimate. Phi
        # alone is 0.03 of MAML's estimate and 0.05 of the others', so less than 0.02 means that
        # the training was not measured.
        yield Found(
            "memory",
            taken / (lane_bytes(runs[0]) * len(runs)),
            2.0,
            f"{name}: measured / estimated",
            0.02,
        )


def too_little_memory(device: str) -> Iterator[Found]:
    """Yield how many lanes are not finished where they do not all fit in memory at once.

    The limit is none: smaller groups finish them.
    """
    source = Source("glyphs", None, datasets.load("glyphs").content, real=False)
    run = replace(LANE_RUNS["sgd"], dtype="float32")
    with TemporaryDirectory() as folder:
        jobs = [
            Job(replace(run, seed=seed), source, Path(folder), "lanes", device)
            for seed in range(2 * LANES)
        ]
        with _room_for(LANES, run, device):
            outcomes = execute_together(jobs)
        yield Found(
            "too little memory",
            sum(not one.finished for one in outcomes),
            0.0,
            "lanes that did not finish",
        )


CHECKS: dict[str, Callable[[str], Iterator[Found]]] = {
    "lanes against single runs": against_single_runs,
    "graph against eager": graph_against_eager,
    "resumed": resumed,
    "memory": memory,
    "too little memory": too_little_memory,
}


@contextmanager
def _room_for(count: int, run: Run, device: str) -> Iterator[None]:
    """Limit the device's memory so that only about `count` lanes of a run fit."""
    if device == "cpu":
        with mock.patch.object(advance, "train_lanes", _narrow(count)):
            yield
        return
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + count * lane_bytes(run)) / torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _narrow(count: int) -> Callable[..., Iterator[TrainingState]]:
    def narrow(runs: list[Run], *rest: object) -> Iterator[TrainingState]:
        if len(runs) > count:
            raise torch.OutOfMemoryError(f"expected at most {count} lanes, found {len(runs)}")
        return train_lanes(runs, *rest)  # type: ignore[arg-type]

    return narrow


def _pool(run: Run, device: str) -> ImagePool:
    pool = ImagePool(image_pool(classes=6).images, run.torch_dtype)
    return replace(pool, images=pool.images.to(device))


def _train(runs: list[Run], device: str) -> list[TrainingState]:
    """Train lanes to their end and return a copy of every state: a graph overwrites its own."""
    pool = _pool(runs[0], device)
    stream = train_lanes(runs, [pool] * len(runs), [training.start(run, device) for run in runs])
    return [_copied(state) for state in stream]


def _copied(state: TrainingState) -> TrainingState:
    inner = None if state.inner is None else tuple(part.clone() for part in state.inner)
    return replace(state, phi=state.phi.clone(), inner=inner)


def _distance(found: Tensor, expected: Tensor, run: Run) -> float:
    """Return |found - expected| as a share of how far the run has moved from its start."""
    moved = (expected.cpu() - training.start(run).phi).norm()
    return float((found.cpu() - expected.cpu()).norm() / moved)
