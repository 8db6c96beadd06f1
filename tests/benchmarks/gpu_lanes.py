"""Meta-iterations on a GPU: lanes in one captured graph, next to the plain loop.

Both sides take turns on the same device. Milliseconds are those of one run's meta-iteration, so
that ours are the time of a step divided by the lanes. The share is that of the device's own matrix
product, measured in the same round and precision. Launches are the operations that the device is
given for one meta-iteration of all lanes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.profiler import ProfilerActivity, profile

from analysis import cost
from reptile_core.lanes import train_lanes
from reptile_core.tasks import ImagePool
from reptile_core.training import Run, TrainingState, start
from tests.benchmarks import plain
from tests.benchmarks.measuring import SETTINGS, Round, images

LANES = 1, 4, 16, 64, 256
ITERATIONS = 30  # of a turn
MATRIX = 8192
PRECISIONS = {"float32": False, "TF32": True}


@dataclass(frozen=True)
class Turns:
    """What was measured of one number of lanes.

    rounds: of (plain, ours, matrix product). launches: in an iteration.
    """

    name: str
    precision: str
    lanes: int
    rounds: list[Round]
    launches: int
    flops: float


def measure(device: str, *, scale: float, rounds: int = 3) -> Iterator[Turns]:
    """Yield the settings in turn, fewest lanes first.

    scale: of the most lanes, of a turn and of the matrix.
    """
    counts = [lanes for lanes in LANES if lanes <= max(1, scale * LANES[-1])]
    iterations, size = max(2, round(scale * ITERATIONS)), max(256, round(scale * MATRIX))
    for lanes in counts:
        for name, run in SETTINGS.items():
            for precision, allowed in PRECISIONS.items():
                if device == "cpu" and allowed:
                    continue  # only GPUs have TF32
                torch.backends.cuda.matmul.allow_tf32 = allowed
                times = rounds if scale == 1 else 1
                measured = [_round(run, lanes, device, iterations, size) for _ in range(times)]
                launches = _launches(run, lanes, device)
                yield Turns(name, precision, lanes, measured, launches, cost.iteration(run))


def _round(run: Run, lanes: int, device: str, iterations: int, size: int) -> Round:
    loop = plain.iterate(run, iterations, 1, device=device) / iterations
    return Round(loop, _our_seconds(run, lanes, device, iterations), _matrix_peak(size, device))


def _stream(run: Run, lanes: int, device: str) -> Iterator[TrainingState]:
    runs = [replace(run, seed=seed) for seed in range(lanes)]
    return train_lanes(
        runs, [ImagePool(images().to(device))] * lanes, [start(one, device) for one in runs]
    )


def _our_seconds(run: Run, lanes: int, device: str, iterations: int) -> float:
    """Return the seconds of an iteration and lane after the capture, the least of three turns."""
    stream = _stream(run, lanes, device)
    next(stream)
    turns = [_timed(lambda: [next(stream) for _ in range(iterations)], device) for _ in range(3)]
    return min(turns) / iterations / lanes


def _launches(run: Run, lanes: int, device: str) -> int:
    """Return how many operations the device is given for one meta-iteration.

    On a CPU this is how many operations it is called for.
    """
    stream = _stream(run, lanes, device)
    next(stream)
    on_gpu = device != "cpu"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        next(stream)
        _wait(device)
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    return sum(event.device_type == kind for event in found.events())


def _matrix_peak(size: int, device: str) -> float:
    """Return the floating-point operations a second of a float32 matrix product.

    The precision is the one that is set.
    """
    a = torch.randn(size, size, device=device)
    a @ a
    return 10 * 2 * size**3 / _timed(lambda: [a @ a for _ in range(10)], device)


def _timed(work: Callable[[], object], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
