"""Whole-machine throughput of meta-training, sampling included, next to a plain loop.

    python -m tests.benchmarks.throughput [--rounds N] [--seconds S] [--threads N]

Ours has a process of one thread for each core, and runs as the script runs it. The plain loop has
all threads for one task, and a process with settings of its own. Milliseconds are those between two
iterations of the whole machine. The matrix product is that of all processes at once.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from analysis import cost
from analysis.runs.workers import available_cores, local_executor
from reptile_core import training
from reptile_core.tasks import ImagePool
from reptile_core.training import Run
from tests.benchmarks import plain
from tests.benchmarks.measuring import HEADER, SETTINGS, Round, everywhere, images, matrix_peak, row


def our_iterations(run: Run, seconds: float) -> float:
    """Return the meta-iterations a second of this project's core in this process."""
    stream = training.train(run, ImagePool(images()), training.start(run))
    next(stream)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(stream)
        count += 1
    return count / (time.perf_counter() - began)


def rows(rounds: int, seconds: float, threads: int) -> list[str]:
    found = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        # It starts before our environment is set: the plain loop has its own.
        trial = {
            name: alone.submit(plain.iterate, run, 5, threads).result() / 5
            for name, run in SETTINGS.items()
        }
        with local_executor(threads) as ours:
            for name, run in SETTINGS.items():
                everywhere(ours, threads, our_iterations, run, seconds / 4)
                count = max(1, round(seconds / trial[name]))
                measured = [
                    Round(
                        alone.submit(plain.iterate, run, count, threads).result() / count,
                        1 / sum(everywhere(ours, threads, our_iterations, run, seconds)),
                        sum(everywhere(ours, threads, matrix_peak, seconds / 2)),
                    )
                    for _ in range(rounds)
                ]
                found.append(row(f"meta-iteration ({name})", measured, cost.iteration(run)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument(
        "--threads", type=int, default=available_cores(), help="default: one a core"
    )
    options = parser.parse_args()
    print("\n".join([*HEADER, *rows(options.rounds, options.seconds, options.threads)]))


if __name__ == "__main__":
    main()
