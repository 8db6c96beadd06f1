"""How time and memory grow: linearly in iterations, k and runs, and memory not at all.

Slopes are of log time over log size: 1 is linear. What is done once, whatever the size, makes them
smaller.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from analysis.runs.advance import execute
from analysis.runs.job import Job, Source
from analysis.runs.workers import local_executor
from reptile_core import datasets
from reptile_core.meta_gradients import sum_of
from reptile_core.tasks import Sampling
from reptile_core.training import Run
from tests.benchmarks.measuring import ABLATION

FACTORS = 1, 2, 4


def rows(iterations: int) -> list[str]:
    """Time runs as the script does them, files included, in a worker of their own for each row."""
    run = replace(ABLATION, iterations=iterations)
    cases: dict[str, Callable[[int], list[Run]]] = {
        "iterations": lambda n: [replace(run, iterations=n * iterations)],
        "k": lambda n: [
            replace(run, weights=sum_of(n).weights, sampling=Sampling(5, 5 * n, 25, n))
        ],
        "runs": lambda n: [replace(run, seed=seed) for seed in range(n)],
    }
    found = [
        "| growing | seconds at ×1, ×2, ×4 | slope | resident MB at ×1, ×2, ×4 |",
        "|---|---|---|---|",
    ]
    for name, runs in cases.items():
        measured = []
        for factor in FACTORS:
            with local_executor(1) as worker:
                # What is loaded or compiled once.
                worker.submit(work, [replace(run, iterations=2)]).result()
                measured.append(worker.submit(work, runs(factor)).result())
        seconds, resident = zip(*measured, strict=True)
        slope = math.log(seconds[-1] / seconds[0]) / math.log(FACTORS[-1])
        times, sizes = (", ".join(f"{x:.1f}" for x in column) for column in (seconds, resident))
        found.append(f"| {name} | {times} | {slope:.2f} | {sizes} |")
    return found


def work(runs: list[Run]) -> tuple[float, float]:
    """Return the seconds for these runs, and the megabytes that this process holds after them."""
    source = Source("glyphs", None, datasets.load("glyphs").content)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for run in runs:
            execute(Job(run, source, Path(folder), ""))
        seconds = time.perf_counter() - began
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return seconds, pages * os.sysconf("SC_PAGE_SIZE") / 2**20
