"""Evidence: one long table of measurements, a row for each claim, case, role and seed.

It holds no interval: the judge computes everything else. `value` is one number of one seed, and
`task_error` its standard error over the tasks that it is a mean of. `tasks` and `queries` (test
examples a class) say how many those were.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

TEXT = ("claim", "case", "role", "data", "profile", "diverged")
NUMBERS = (
    "seed", "value", "task_error", "tasks", "queries", "epoch", "look", "seconds", "numerics",
)  # fmt: skip
COLUMNS = (
    "claim", "case", "role", "seed", "value", "task_error", "tasks", "queries", "epoch", "look",
    "seconds", "data", "profile", "numerics", "diverged",
)  # fmt: skip
CHECK, CONTROL, SHOWN = "check", "control", "shown"  # roles; what is shown is not judged
_DTYPES = {name: object if name in TEXT else float for name in COLUMNS}
NO_EVIDENCE = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in _DTYPES.items()})


def rows(
    claim: str,
    case: str,
    role: str,
    values: pd.DataFrame | pd.Series | Mapping[int, float],
    *,
    tasks: float = np.nan,
    queries: float = np.nan,
) -> list[dict[str, Any]]:
    """Return the rows of one case.

    values: by seed. A table has the seeds as its index and a column value. It may have columns
        task_error, tasks and queries, so that each seed has its own.
    """
    table = _as_table(values)
    common = {"claim": claim, "case": case, "role": role, "tasks": tasks, "queries": queries}
    records = zip(table.index, table.to_dict("records"), strict=True)
    return [common | {"seed": seed, **record} for seed, record in records]


def _as_table(values: pd.DataFrame | pd.Series | Mapping[int, float]) -> pd.DataFrame:
    if isinstance(values, pd.DataFrame):
        return values
    return pd.DataFrame({"value": pd.Series(values, dtype=float)})


def tabulate(found: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Return evidence with all of COLUMNS, missing ones empty.

    Raises ValueError where claim, case, role or value is missing, or where two rows of one claim,
    case, role and seed would count as two.
    """
    table = found if isinstance(found, pd.DataFrame) else pd.DataFrame(list(found))
    if table.empty:
        return NO_EVIDENCE.copy()
    for name in ("claim", "case", "role", "value"):
        if name not in table:
            raise ValueError(
                f"evidence: expected the column {name!r}, found "
                f"{', '.join(map(str, table.columns))}"
            )
    table = table.reindex(columns=list(COLUMNS))
    seeded = table[table.seed.notna()]
    twice = seeded[seeded.duplicated(["claim", "case", "role", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"evidence: expected one row of a seed, found two of {row.claim}, {row.case}, seed "
            f"{row.seed}"
        )
    return table


def text_of(value: object) -> str:
    """Return a cell of a TEXT column as text; a missing one is empty."""
    return "" if value is None or value != value else str(value)
