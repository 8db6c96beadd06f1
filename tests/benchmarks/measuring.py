"""Two sides that take turns, and their ratio round by round.

Next to it: the share of the machine's own matrix product.
"""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from analysis.paper import figure_3
from analysis.paper.benchmarks import BENCHMARKS, METHODS, SCALES, configure, evaluated
from reptile_core.meta_gradients import sum_of
from reptile_core.tasks import Sampling
from reptile_core.training import Run

# The two settings of the paper that most time goes into.
ABLATION = figure_3.configure(sum_of(4), seed=0)
TABLE = configure(BENCHMARKS[0], METHODS[0], SCALES["paper"][BENCHMARKS[0].name], seed=0)
SETTINGS = {"ablation: 4 steps of 25, SGD": ABLATION, "table: 5 tasks × 5 steps of 10, Adam": TABLE}
# And how runs of each are evaluated.
EVALUATED: list[tuple[Run, Sampling]] = [
    (ABLATION, figure_3.EVALUATION),
    (TABLE, evaluated(BENCHMARKS[0], min(BENCHMARKS[0].shots))),
]
CLASSES, DRAWINGS = 400, 20


@dataclass(frozen=True)
class Round:
    """The seconds of a piece of work, done plainly and by us.

    peak: the flops a second of a matrix product at the time.
    """

    plain: float
    ours: float
    peak: float


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (CLASSES, DRAWINGS, 28, 28), dtype=torch.uint8, generator=generator)


def take_turns(
    plain: Callable[[], object], ours: Callable[[], object], *, rounds: int, seconds: float
) -> list[Round]:
    """Time both sides in turns in this process, on one thread.

    Each side is repeated for about `seconds` a turn.
    """
    torch.set_num_threads(1)
    counts = []
    for side in (plain, ours):
        side()  # what is compiled or allocated once
        counts.append(max(1, round(seconds / timed(side, 1))))
    return [
        Round(timed(plain, counts[0]), timed(ours, counts[1]), matrix_peak(seconds / 2))
        for _ in range(rounds)
    ]


def timed(call: Callable[[], object], count: int) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def matrix_peak(seconds: float) -> float:
    """Return the floating-point operations a second of a float32 matrix product in this process."""
    a = torch.randn(1024, 1024)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        a @ a
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - began)


def everywhere(
    executor: Executor, workers: int, function: Callable[..., float], *arguments: Any
) -> list[float]:
    """Run the same call in every worker at once."""
    futures = [executor.submit(function, *arguments) for _ in range(workers)]
    return [future.result() for future in futures]


HEADER = [
    "| | plain (ms) | ours (ms) | plain / ours | of the matrix product |",
    "|---|---|---|---|---|",
]


def row(name: str, rounds: list[Round], flops: float | None = None) -> str:
    """Return a row of the table: medians, and the range of the ratio.

    flops: of the work's products, if they are counted.
    """
    ratios = [r.plain / r.ours for r in rounds]
    share = f"{median(flops / r.ours / r.peak for r in rounds):.0%}" if flops else ""
    return (
        f"| {name} | {1e3 * median(r.plain for r in rounds):.2f} | "
        f"{1e3 * median(r.ours for r in rounds):.2f} | {median(ratios):.2f} ({min(ratios):.2f} … "
        f"{max(ratios):.2f}) | {share} |"
    )


def of(run: Run) -> str:
    """Describe the inner loop of a run."""
    return f"batch {run.sampling.batch}, {'SGD' if run.inner.optimizer == 'sgd' else 'Adam'}"
