"""One part of the GPU benchmark, in a process of its own.

    python -m tests.benchmarks.gpu_part PART --device D --scale S --seconds N --out DIR [--data DIR]

What fails or hangs in it ends nothing else. Tables go to DIR as they grow, and lines for people to
standard output.
"""

import argparse
import csv
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks import gpu_checks, gpu_lanes, gpu_runs
from tests.benchmarks.measuring import HEADER, row

PARTS = "checks", "lanes", "figure_3", "omniglot-5way", "omniglot-20way"


def main() -> int:
    """Do one part; return 1 where a check found more than its limit allows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    common = ["--device", options.device, *(["--data", str(options.data)] if options.data else [])]
    if options.part == "checks":
        return _checks(options.device, options.out)
    if options.part == "lanes":
        lines = _lanes(options.device, options.scale, options.out)
    elif options.part == "figure_3":
        lines = gpu_runs.figure_3(options.out / options.part, common, scale=options.scale)
    else:
        lines = gpu_runs.omniglot(
            options.part,
            options.out / options.part,
            common,
            scale=options.scale,
            device=options.device,
            end=end,
        )
    for line in lines:
        print(line, flush=True)
    return 0


def _checks(device: str, out: Path) -> int:
    """Print a row for each check, and write every number to checks.csv.

    Matrix products are of full precision. Returns 1 where a check failed, else 0.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    print("| check | numbers | largest | limit | |\n|---|---|---|---|---|", flush=True)
    failed = 0
    for name, check in gpu_checks.CHECKS.items():
        found = []
        for one in _written(check(device), out / "checks.csv", _of_check):
            found.append(one)
        limits = sorted({one.limit for one in found})
        bad = [one for one in found if not one.passed]
        failed += len(bad)
        largest = f"{max(one.value for one in found):.2g}" if found else ""
        verdict = "not measured" if not found else f"FAILED: {bad[0].what}" if bad else "passed"
        limit = " or ".join(f"{x:g}" for x in limits)
        print(f"| {name} | {len(found)} | {largest} | {limit} | {verdict} |", flush=True)
    return min(failed, 1)


def _of_check(one: gpu_checks.Found) -> dict[str, Any]:
    limits = {"least": one.least, "limit": one.limit, "passed": one.passed}
    return {"check": one.check, "what": one.what, "value": one.value} | limits


def _lanes(device: str, scale: float, out: Path) -> Iterator[str]:
    yield f"{HEADER[0]} launches |"
    yield f"{HEADER[1]}---|"
    for turns in _written(gpu_lanes.measure(device, scale=scale), out / "lanes.csv", _of_turns):
        name = f"{turns.name}, {turns.precision}, {turns.lanes} lanes"
        yield f"{row(name, turns.rounds, turns.flops)} {turns.launches:,} |"


def _of_turns(turns: gpu_lanes.Turns) -> dict[str, Any]:
    share = median(turns.flops / one.ours / one.peak for one in turns.rounds)
    seconds = {
        name: median(getattr(one, name) for one in turns.rounds)
        for name in ("plain", "ours", "peak")
    }
    about = {
        "setting": turns.name,
        "precision": turns.precision,
        "lanes": turns.lanes,
        "launches": turns.launches,
    }
    return about | seconds | {"share": share, "rounds": len(turns.rounds)}


def _written(found: Iterable[Any], path: Path, record: Any) -> Iterator[Any]:
    """Yield what is found, each item once it is a line of a CSV file."""
    for one in found:
        _append(path, record(one))
        yield one


def _append(path: Path, record: Mapping[str, Any]) -> None:
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(record), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(record)


if __name__ == "__main__":
    raise SystemExit(main())
