"""Rerun of one training run of a manifest: `reproduce.py --from MANIFEST --only RUN`."""

import argparse
from pathlib import Path

import pandas as pd
import torch

from analysis.ending import FAILURE, UsageError
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.experiment import OPTIONS, Context
from analysis.option_checks import check_limit, check_other_folder, check_writable
from analysis.results import checksums, folder, manifest, manifest_records
from analysis.results.tables import ResultsError
from analysis.runs import redo
from analysis.runs.job import find
from analysis.runs.redo import OtherRun, Restored
from analysis.runs.workers import Workers, available_cores
from reptile_core.datasets import DataError

NAMED_AT_MOST = 5  # runs that an error names
# Options that decide what is done, by their names in the parsed options: the manifest sets them.
REFUSED = OPTIONS | {
    "profile": "--profile", "seeds": "--seeds", "epoch": "--epoch", "budget": "--budget",
    "until_decided": "--until-decided", "dataset": "--dataset", "split": "--split",
    "device": "--device", "scheduler": "--scheduler", "json": "--json", "strict": "--strict",
    "dry_run": "--dry-run",
}  # fmt: skip


def do_again(options: argparse.Namespace) -> int:
    """Redo the run that --only names, print how it compares, and return the exit code.

    The code is 0 for the same bits or, on another kind of machine, the same accuracy to a
    tolerance. It is 1 otherwise. Raises UsageError or ManifestError before any work.
    """
    rows = find_rows(options)
    check_limit("workers", options.workers)
    digest = manifest.digest(manifest.read(options.again))
    out = options.out or Path("results") / f"again-{digest[:8]}"
    check_other_folder(out, options.again)
    check_writable(out)
    runs = [restored(row, options, out.absolute() / "runs") for row in rows]
    same = True
    with (
        folder.alone_in(out),
        Workers(options.workers or available_cores(), quiet=options.quiet) as workers,
    ):
        for run in runs:
            lines, this = _done_again(run, workers, fresh=options.fresh)
            iterations, key = run.then["iterations"], run.then["key"]
            print("\n".join([f"{options.only}: {iterations:,} iterations, key {key}", *lines]))
            same &= this
    return 0 if same else FAILURE


def find_rows(options: argparse.Namespace) -> list[dict[str, object]]:
    """Return the rows of the run that --only names, from the tables next to the manifest.

    Raises UsageError where there are none.
    """
    if options.again is None:
        raise UsageError("--only: expected --from MANIFEST with it, found none")
    for name, flag in REFUSED.items():
        value = getattr(options, name)
        if value is not None and value is not False:  # 0 is a value
            raise UsageError(f"--only: expected no {flag} with it, since the manifest says which")
    experiment, _, rest = options.only.partition("/")
    variant, _, seed = rest.rpartition("/")
    if options.experiments or not variant or experiment not in EXPERIMENTS:
        found = " ".join([*options.experiments, options.only])
        raise UsageError(
            '--only: expected EXPERIMENT/VARIANT/SEED, such as "ablation/g1+g2/3000", '
            f"found {found!r}"
        )
    manifest_records.commands(manifest.read(options.again), [experiment])
    path = options.again.parent / "tables" / f"{experiment}{redo.SUFFIX}.csv"
    if not path.is_file():
        raise UsageError(
            f"--only: expected a table of runs at {path}, found none: {experiment} keeps no runs, "
            "or was run before tables of runs were written"
        )
    try:
        table = checksums.verify(path)
    except ResultsError as error:
        raise UsageError(f"--only: {error}") from error
    rows = redo.named(table, variant, seed)
    if not rows:
        raise UsageError(
            f"--only: expected a run of {path} such as {_some(experiment, table)}, found "
            f"{options.only!r}"
        )
    return [dict(row) for row in rows]


def restored(row: dict[str, object], options: argparse.Namespace, runs: Path) -> Restored:
    """Return the run of a row; UsageError where it cannot be the same here."""
    on_gpu = str(row["device"]).startswith("cuda") and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    try:
        source = find(
            str(row["data"]), options.data and options.data.absolute(), quiet=options.quiet
        )
        return redo.restore(row, source, runs, device)
    except (OtherRun, DataError) as error:
        raise UsageError(f"--only {options.only}: {error}") from error


def _done_again(run: Restored, workers: Workers, *, fresh: bool) -> tuple[list[str], bool]:
    job = run.job
    context = Context(
        "", job.source, workers, job.folder, device=job.device, tf32=job.tf32, fresh=fresh
    )
    outcome = context.train("the run", [job])[job]
    wanted = []
    for n, evaluation in run.evaluations:
        if outcome.finished or n < outcome.iteration:
            wanted.append((job, n, evaluation))
    found = context.evaluate("the run", wanted)
    by_evaluation = {(n, evaluation): values for (_, n, evaluation), values in found.items()}
    return redo.compare(run, outcome, by_evaluation)


def _some(experiment: str, table: pd.DataFrame) -> str:
    names = [f"{experiment}/{row.variant}/{row.seed}" for row in table.itertuples()]
    return ", ".join(names[:NAMED_AT_MOST]) + ", …" * (len(names) > NAMED_AT_MOST)
