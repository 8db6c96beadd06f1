"""Checksums of tables: whether one is as it was written, and whether two are the same to the bit.

The digests of all tables of a folder are in its `SHA256SUMS`, which `sha256sum --check` reads too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path

import pandas as pd

from analysis.results.evidence import tabulate
from analysis.results.tables import ResultsError, read_csv
from analysis.runs.job import NUMERICS_VERSION
from reptile_core.files import write_atomically

SUMS = "SHA256SUMS"
# Columns on when, where and in which steps a table was made, which no rerun repeats.
HISTORY = ("seconds", "look", "arithmetic")


def record(paths: Iterable[Path]) -> None:
    """Record the digests of tables that were just written.

    The digests of the other tables in their folder are kept.
    """
    for folder in {path.parent for path in paths}:
        written = [path for path in paths if path.parent == folder]
        sums = _recorded(folder) | {path.name: _sha256(path) for path in written}
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
        write_atomically(folder / SUMS, "".join(lines).encode())


def verify(path: Path) -> pd.DataFrame:
    """Return a table that is as it was written, by any version.

    Raises ResultsError where it was altered, or has no recorded digest.
    """
    noted, found = _recorded(path.parent).get(path.name), _sha256(path)
    if noted is None:
        raise ResultsError(f"{path}: expected its digest in {SUMS}, found none")
    if noted != found:
        raise ResultsError(
            f"{path}: expected SHA-256 {noted[:12]}…, as {SUMS} has it, found {found[:12]}…"
        )
    return read_csv(path)


def evidence(path: Path) -> pd.DataFrame:
    """Return a table of evidence that this version wrote.

    Raises ResultsError where it is anything else.
    """
    table = verify(path)
    versions = {NUMERICS_VERSION}
    if len(table):
        versions = set(table.get("numerics", pd.Series([None])).dropna())
    if versions != {NUMERICS_VERSION}:
        found = ", ".join(f"{version:g}" for version in versions) or "none"
        raise ResultsError(
            f"{path}: expected numbers of numerics version {NUMERICS_VERSION}, found version "
            f"{found}"
        )
    return tabulate(table)


def digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a table without its columns of HISTORY."""
    text = _without_history(path).to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def compare(then: Mapping[str, str], old: Path, folder: Path, now: Mapping[str, str]) -> list[str]:
    """Return a line for each table that differs from before: which, and by how much.

    then, now: digests by name. old: the folder of the old tables; where a table is not in it, the
        line does not say by how much. folder: where the new tables are.

    Later code may write more tables, which is no difference.
    """
    lines = []
    for name in then:
        if name not in now:
            lines.append(f"{name}: was written then, not now")
        elif then[name] != now[name]:
            lines.append(f"{name}: {_by_how_much(old / name, then[name], folder / name)}")
    return lines


def _by_how_much(old: Path, digest_then: str, new: Path) -> str:
    if not old.is_file() or digest(old) != digest_then:
        return f"differs; the old table is not at {old}"
    then, now = _without_history(old), _without_history(new)
    if list(then) != list(now) or len(then) != len(now):
        return (
            f"differs: {len(then)} rows of {', '.join(then)} then, {len(now)} of {', '.join(now)} "
            "now"
        )
    cells = (then != now).to_numpy()
    numbers = [pd.to_numeric(table.stack(), errors="coerce") for table in (then, now)]
    apart = (numbers[0] - numbers[1]).abs()
    words = f"differs in {cells.sum()} of {cells.size} entries"
    if apart.max() > 0:
        relative = (apart / numbers[0].abs()).max()
        words += f", by up to {apart.max():.3g} (relative {relative:.3g})"
    return words


def _without_history(path: Path) -> pd.DataFrame:
    """Return the table's entries as they are written: numbers would be rounded."""
    table = pd.read_csv(
        StringIO(path.read_text(encoding="utf-8")), dtype=str, keep_default_na=False
    )
    return table.drop(columns=[name for name in HISTORY if name in table])


def _recorded(folder: Path) -> dict[str, str]:
    """Return the recorded digests by name.

    Lines of another form are left out.
    """
    try:
        lines = (folder / SUMS).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split("  ", 1) for line in lines)
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
