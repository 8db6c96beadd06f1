"""Where the time of a finished run of the script goes, by experiment.

    python -m tests.benchmarks.default_run [DIR]

The times are from the manifest in the run's output folder. Workers are busy for their processor
time, libraries loaded included. The rest of the time is the script's own work (judging, drawing,
the report), and a core that waits while another ends the last run of an experiment.
"""

import argparse
from datetime import datetime
from pathlib import Path

from analysis.results import manifest

GOAL = 0.93  # of the time, all workers at work
HEADER = ["| experiment | minutes | of the run | workers at work |", "|---|---|---|---|"]


def rows(folder: Path) -> list[str]:
    """Return the table, or a line that says what is missing in the folder."""
    try:
        record = manifest.read(folder / "manifest.json")
    except manifest.ManifestError as error:
        return [f"not measured: {error}"]
    if record["status"] != "finished" or "worker_seconds" not in record:
        return [
            f"not measured: expected a finished run with the times of its workers, found {folder}"
        ]
    started, finished = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
    whole, workers = (finished - started).total_seconds(), record["machine"]["workers"]
    wall, busy = record["wall_seconds"], record["worker_seconds"]
    table = [
        (
            f"| {name} | {seconds / 60:.2f} | {seconds / whole:.0%} | "
            f"{_share(busy.get(name, 0.0), workers, seconds)} |"
        )
        for name, seconds in wall.items()
    ]
    total = (
        f"| all, from its start to its report | {whole / 60:.2f} | | "
        f"{_share(sum(busy.values()), workers, whole)}"
    )
    return [*HEADER, *table, f"{total} (goal {GOAL:.0%}) |", "", _machine(record)]


def _share(busy: float, workers: int, seconds: float) -> str:
    return f"{busy / (workers * seconds):.1%}"


def _machine(record: dict) -> str:
    machine, commit = record["machine"], (record["commit"] or {}).get("sha", "none")
    return (
        f"{machine['processor']}, {machine['workers']} workers, profile {record['profile']}, "
        f"commit {commit[:7]}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("results/quick"), metavar="DIR"
    )
    print("\n".join(rows(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
