"""An output folder: tables and evidence with their checksums, the ledger, and a lock.

The lock lets in one writer at a time.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from analysis.results import checksums, evidence, looks, manifest
from analysis.results.claims import SEEDS_OF_AN_EPOCH, Claim
from analysis.results.judge import judge
from analysis.results.tables import ResultsError, write_csv
from analysis.results.verdict import Verdict
from analysis.runs.job import NUMERICS_VERSION
from reptile_core.files import remove_unfinished

# Folders of an output folder where tables, figures, runs and evaluations are written.
WRITTEN_TO = ("", "tables", "figures", "runs", "runs/evaluations", "runs/checks")


class InUse(ValueError):
    """An output folder that another process writes to; the message, one line, says which."""


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Write tables/NAME.csv for each, and record their checksums."""
    paths = []
    for name, table in tables.items():
        paths.append(folder / "tables" / f"{name}.csv")
        write_csv(table, paths[-1])
    checksums.record(paths)
    return paths


def complete(
    found: pd.DataFrame,
    *,
    data: str,
    profile: str,
    diverged: Sequence[str],
    seconds: float,
    workers: int,
) -> pd.DataFrame:
    """Return evidence with what the script knows of it.

    data: the line that names the data, for rows that name none.
    seconds: what the experiment took. Where rows do not say what a seed takes on one core, each
        seed has an equal share.
    """
    table = evidence.tabulate(found)
    seeds = max(1, table["seed"].nunique())
    return table.assign(
        data=table["data"].astype(object).fillna(data),
        profile=profile,
        diverged="; ".join(diverged) or None,
        numerics=NUMERICS_VERSION,
        epoch=table["seed"].astype(float) // SEEDS_OF_AN_EPOCH,
        seconds=(table["seconds"].astype(float) / workers).fillna(seconds / seeds),
    )


def write_evidence(folder: Path, experiment: str, table: pd.DataFrame) -> list[Path]:
    """Write an experiment's evidence.

    Seeds that were judged before keep the number of their look.
    """
    path = _evidence_path(folder, experiment)
    before = looks.read(folder)
    try:
        parts = [before, looks.judged(checksums.evidence(path))] if path.exists() else [before]
        before = pd.concat([part for part in parts if len(part)] or [looks.NONE])
    except ResultsError:
        pass  # an older version's, or altered: it judged nothing that counts here
    table = looks.number(table, before)
    looks.remember(folder, before, table)
    return write_tables(folder, {path.stem: table})


def judge_all(folder: Path, claims: Mapping[str, Sequence[Claim]]) -> list[Verdict]:
    """Return the verdicts on all claims, from the evidence in the folder.

    claims: by experiment. The evidence may be of this invocation or an earlier one. A table that
        was altered is named in a warning and not judged.
    """
    found = [evidence.NO_EVIDENCE]
    for name in claims:
        path = _evidence_path(folder, name)
        try:
            found += [checksums.evidence(path)] if path.exists() else []
        except (ResultsError, ValueError) as error:
            warnings.warn(
                f"{error}; it is left as it is and not judged; rerun {name} to replace it",
                stacklevel=2,
            )
    every = pd.concat([table for table in found if len(table)] or [evidence.NO_EVIDENCE])
    return judge(chain.from_iterable(claims.values()), every)


def manifest_there(folder: Path) -> dict[str, Any] | None:
    """Return the manifest that an earlier command left in the folder.

    Returns None where there is none, and, with a warning, where it cannot be read.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        return manifest.read(path)
    except manifest.ManifestError as error:
        warnings.warn(
            f"{error}; what it says of earlier experiments is left out of the new one", stacklevel=2
        )
        return None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to the output folder meanwhile.

    Raises InUse if one writes there. Removes what killed writers left there.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InUse(
            f"--out: expected a folder that no other run writes to, found {folder} in use by "
            f"{manifest.holder(folder / 'manifest.json')}; wait for it, or name another folder"
        ) from None
    try:
        for part in WRITTEN_TO:
            remove_unfinished(folder / part)
        yield
    finally:
        lock.release()


def _evidence_path(folder: Path, experiment: str) -> Path:
    return folder / "tables" / f"{experiment}_evidence.csv"
