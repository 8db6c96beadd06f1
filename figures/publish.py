"""Publish an output folder: copy what a reader wants to see of it.

The report becomes the page that GitHub shows.

python reproduce.py publish results/quick          into figures/published/quick
python reproduce.py publish DIR --name NAME        into figures/published/NAME

Nothing is written by hand: README.md is the report, claims.json the ledger, manifest.json what
reruns it, without the paths of the machine that it was made on. The folder's evidence is judged
again, so that all published verdicts are by the same code.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import program
from analysis.ending import FAILURE
from analysis.experiments.registry import EXPERIMENTS
from analysis.results import ledger, manifest
from analysis.results.folder import judge_all
from analysis.results.manifest import ManifestError
from analysis.results.tables import ResultsError
from analysis.results.verdict import Verdict
from figures import report

PUBLISHED = Path(__file__).parent / "published"
COPIED = ("tables/*.csv", "tables/SHA256SUMS", "figures/*.png", "claims.json", "looks.csv")
PATHS = ("--out", "--data")  # options whose values are paths


def main(arguments: Sequence[str]) -> int:
    """Publish what the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"{program.name()} publish",
        description=program.as_called(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="an output folder of a finished run")
    parser.add_argument("--name", help="(default: that of the folder)")
    parser.add_argument(
        "--to", type=Path, default=PUBLISHED, metavar="DIR", help="(default: figures/published)"
    )
    options = parser.parse_args(arguments)
    try:
        where = publish(
            options.folder, options.to / (options.name or options.folder.resolve().name)
        )
    except (ResultsError, ManifestError, OSError) as error:
        print(f"{program.name()}: error: {error}", file=sys.stderr)
        return FAILURE
    print(f"wrote {where}/")
    return 0


def publish(folder: Path, where: Path) -> Path:
    """Copy a finished run's tables, figures, ledger and manifest to `where`, and return it.

    The report goes with them as README.md. What was there before is replaced once all is written.
    Raises ResultsError, ManifestError or OSError where the folder is not that of a finished run.
    """
    record = manifest.read(folder / "manifest.json")
    if record["status"] != "finished":
        raise ResultsError(
            f"{folder}: expected a finished run, found one that is {record['status']}"
        )
    if where.resolve() == folder.resolve():
        raise ResultsError(f"{folder}: expected an output folder, found the published one itself")
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where.parent, prefix=f".{where.name}-") as scratch:
        page = Path(scratch) / where.name
        _write(folder, record, page)
        if where.exists():  # only once all of the new one is there
            where.rename(Path(scratch) / "before")
        page.rename(where)
    return where


def _write(folder: Path, record: dict[str, Any], where: Path) -> None:
    """Write a run's page to a folder; record: its manifest."""
    for pattern in COPIED:
        for path in sorted(folder.glob(pattern)):
            target = where / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for command in (record, *record.get("earlier", {}).values()):
        command["command"] = without_paths(command["command"])
        if images := command["data"]:
            # Names of files, not where they were.
            images["source"] = re.sub(r"\S*/", "", images["source"])
    manifest.write(record, where / "manifest.json")
    ledger.write(judge_again(where), where)
    for path in report.write(where):
        path.rename(where / "README.md") if path.suffix == ".md" else path.unlink()


def judge_again(folder: Path) -> list[Verdict]:
    """Return today's verdicts on a folder's evidence; claims of plugins keep theirs."""
    claims = {name: experiment.claims for name, experiment in EXPERIMENTS.items()}
    verdicts = judge_all(folder, claims)
    mine = {verdict.claim.id for verdict in verdicts}
    return verdicts + [one for one in ledger.read(folder) if one.claim.id not in mine]


def without_paths(command: Sequence[str]) -> list[str]:
    """Return a command line without the options whose values are paths.

    The script's name is kept without its folder.
    """
    kept, words = [Path(command[0]).name], iter(command[1:])
    for word in words:
        name, assigned, _ = word.partition("=")
        if name not in PATHS:
            kept.append(word)
        elif not assigned:
            next(words, None)
    return kept
