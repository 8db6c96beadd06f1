"""Tidy tables, as CSV and as DataFrame.

Each row is one measured number, with what it is and where it comes from.
"""

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reptile_core.files import write_atomically

COLUMNS = [
    "experiment", "variant", "seed", "iteration", "quantity", "value", "standard_error", "count",
]  # fmt: skip
CONFIDENCE = 0.95


class ResultsError(ValueError):
    """A file of the output folder that is not as it was written; the message is one line."""


def tidy(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the rows as a table, one row a measurement.

    standard_error, count: of `value`, over the tasks that it is a mean of.
    """
    return pd.DataFrame(list(rows), columns=COLUMNS)


def in_one_table(parts: Iterable[Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """Return the rows of all parts, one part after the other, as one table."""
    return pd.DataFrame(list(chain.from_iterable(parts)))


def student_t(values: Sequence[float] | pd.Series) -> tuple[float, float, float]:
    """Return the mean and the ends of its Student-t interval; the ends are NaN for one value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, float("nan"), float("nan")
    from scipy.special import stdtrit  # slow to import, and needed at the end alone

    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the mean of `value` over seeds, with a Student-t interval of the seeds' means.

    The columns are mean, low, high and seeds. Student's t is used and not a bootstrap, which is far
    too narrow over three seeds. One seed has no interval: NaN.
    """

    def summarize(values: pd.Series) -> pd.Series:
        mean, low, high = student_t(values)
        return pd.Series({"mean": mean, "low": low, "high": high, "seeds": len(values)})

    groups = table.groupby(by, sort=False, observed=True)["value"]
    return groups.apply(summarize).unstack().astype({"seeds": int}).reset_index()


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table, whole or not at all.

    Numbers have full precision, so that equal bits give equal files.
    """
    write_atomically(path, table.to_csv(index=False, lineterminator="\n").encode())


def read_csv(path: Path) -> pd.DataFrame:
    """Return the table that `write_csv` wrote, to the bit from pandas 3.1 on.

    A byte-order mark and blank lines, which other programs add, are skipped. Raises ResultsError
    where the table is no longer whole. Also refuses a table that another program has cut at
    semicolons: its decimal points may have become commas.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        if ";" in header and "," not in header:
            raise ResultsError(
                f"{path}: expected columns that are separated by commas, found {header.strip()!r}"
            )
        table = pd.read_csv(StringIO(text))
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ResultsError(
            f"{path}: expected a table, found {' '.join(str(error).split())}"
        ) from error
    if not text.endswith(("\n", "\r")):
        raise ResultsError(
            f"{path}: expected a table of whole lines, found one that breaks off in its last"
        )
    return table
