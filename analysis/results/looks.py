"""Looks: at which look a seed was first judged, remembered by the output folder.

Every further look at a claim with more seeds spends a share of its error. So a folder's `looks.csv`
keeps each of them, whatever later commands write over the evidence.
"""

import warnings
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.results.evidence import CHECK, CONTROL
from analysis.results.tables import ResultsError, read_csv, write_csv

NAME = "looks.csv"
KEY = ("claim", "profile", "numerics", "epoch", "data")  # looks are counted where these are equal
COLUMNS = [*KEY, "seed", "look"]
NONE = pd.DataFrame(columns=COLUMNS)


def number(new: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """Return evidence with the look at which each seed first entered a claim's evidence.

    Seeds that were judged before keep their look, others get the next.

    before: rows of COLUMNS, such as earlier evidence.
    """
    known: dict[tuple[str, ...], dict[float, int]] = {}
    for row in before[COLUMNS].to_dict("records"):
        looks = known.setdefault(_key(row), {})
        look = int(row["look"])
        looks[row["seed"]] = min(look, looks.get(row["seed"], look))
    numbered = []
    for row in new.to_dict("records"):
        looks = known.get(_key(row), {})
        numbered.append(looks.get(row["seed"], max(looks.values(), default=0) + 1))
    return new.assign(look=numbered)


def judged(evidence: pd.DataFrame) -> pd.DataFrame:
    """Return the looks that evidence has taken, a row for each claim and seed that is judged."""
    rows = evidence[evidence.seed.notna() & evidence.role.isin((CHECK, CONTROL))]
    return rows[rows.look.notna()][COLUMNS].drop_duplicates()


def read(folder: Path) -> pd.DataFrame:
    """Return the looks that a folder remembers; none, with a warning, where they are unreadable."""
    path = folder / NAME
    if not path.exists():
        return NONE
    try:
        table = read_csv(path)
        if list(table) != COLUMNS:
            raise ResultsError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(table)}"
            )
    except ResultsError as error:
        warnings.warn(f"{error}; earlier looks are known from the evidence alone", stacklevel=2)
        return NONE
    return table


def remember(folder: Path, before: pd.DataFrame, evidence: pd.DataFrame) -> None:
    """Add the looks that evidence has taken to those that the folder remembers."""
    parts = [part for part in (before, judged(evidence)) if len(part)]
    if parts:
        every = pd.concat(parts).drop_duplicates([*KEY, "seed"])
        write_csv(every.sort_values([*KEY, "seed"]), folder / NAME)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row's key; a number is the same whether a table has it as an integer or not."""
    found = (row[name] for name in KEY)
    return tuple(
        one if isinstance(one, str) else f"{nan if one is None else one:g}" for one in found
    )
