"""All benchmarks.

    python -m tests.benchmarks [--rounds N] [--seconds S] [--iterations N] [--run DIR]
                               [--only PART …]

The default run is not made here: its times are read from the folder where it is finished.
"""

import argparse
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

from analysis.runs.arithmetic import processor
from analysis.runs.workers import available_cores, local_executor
from tests.benchmarks import default_run, derivatives, growth, one_thread, start_up, throughput
from tests.benchmarks.measuring import HEADER

PARTS = ("throughput", "one_thread", "derivatives", "start_up", "growth", "default_run")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn (default: 1)")
    parser.add_argument(
        "--iterations", type=int, default=500, help="of the shortest run whose growth is measured"
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("results/quick"),
        metavar="DIR",
        help="a finished default run (default: %(default)s)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    options = parser.parse_args()
    cores = available_cores()
    print(
        f"{processor()}, {cores} of {os.cpu_count()} cores, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}; medians (and ranges) of "
        f"{options.rounds} rounds."
    )
    if "throughput" in options.only:
        print(f"\n**All {cores} cores**\n")
        print(
            "\n".join([*HEADER, *throughput.rows(options.rounds, options.seconds, cores)]),
            flush=True,
        )
    if "one_thread" in options.only:
        with local_executor(1) as worker:
            rows = worker.submit(one_thread.rows, options.rounds, options.seconds).result()
        print("\n".join(["\n**One thread**\n", *HEADER, *rows]), flush=True)
    if "derivatives" in options.only:
        with local_executor(1) as worker:
            rows = worker.submit(derivatives.rows, options.rounds).result()
        title = (
            "\n"
            "**Derivatives, one thread, in gradients of our network (float32 where it says no "
            "other, batch 25)**\n"
        )
        print("\n".join([title, *derivatives.HEADER, *rows]), flush=True)
    if "start_up" in options.only:
        print("\n".join(["\n**Start-up**\n", *start_up.rows(options.rounds)]), flush=True)
    if "growth" in options.only:
        print("\n".join(["\n**Growth**\n", *growth.rows(options.iterations)]), flush=True)
    if "default_run" in options.only:
        print(
            "\n".join(
                ["\n**Where the default run's time goes**\n", *default_run.rows(options.run)]
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
