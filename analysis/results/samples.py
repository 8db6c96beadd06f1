"""What the judge reads of a claim's evidence: the values of its cases, one value a seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis.results.evidence import text_of
from analysis.results.statistics import Mean, Values
from analysis.results.verdict import Case


@dataclass(frozen=True)
class Sample:
    """The values of one case in one role, one value a seed.

    task_errors: the error of each value over tasks; NaN where it has none.
    looks: the look at which each value was first seen.
    """

    name: str
    role: str
    seeds: np.ndarray
    values: Values
    task_errors: Values
    looks: np.ndarray
    tasks: float = nan
    queries: float = nan
    data: str = ""

    @property
    def task_error(self) -> float:
        """The root mean square of the values' errors over tasks; NaN where they have none."""
        known = self.task_errors[np.isfinite(self.task_errors)]
        return float(np.sqrt(np.mean(known**2))) if known.size else nan

    @property
    def mean(self) -> Mean:
        """The mean with its spread over seeds, which is at least the values' error over tasks."""
        return Mean.of(self.values, self.task_error if isfinite(self.task_error) else 0.0)

    def until(self, look: int) -> "Sample":
        """Return the part that was seen up to a look."""
        seen = self.looks <= look
        if seen.all():
            return self
        return replace(
            self,
            seeds=self.seeds[seen],
            values=self.values[seen],
            task_errors=self.task_errors[seen],
            looks=self.looks[seen],
        )


Named = TypeVar("Named", Sample, Case)


def samples_of(rows: pd.DataFrame) -> list[Sample]:
    """Return one sample for each case and role, in the order of their first rows."""
    return [_sample(part) for _, part in rows.groupby(["case", "role"], sort=False)]


def _sample(rows: pd.DataFrame) -> Sample:
    def numbers(name: str, missing: float) -> Any:
        return rows[name].astype(float).fillna(missing).to_numpy()

    name, role, data = rows[["case", "role", "data"]].iloc[0]
    return Sample(
        str(name),
        str(role),
        numbers("seed", -1).astype(int),
        rows["value"].to_numpy(dtype=float),
        rows["task_error"].to_numpy(dtype=float),
        numbers("look", 1).astype(int),
        float(rows["tasks"].astype(float).mean()),
        float(rows["queries"].astype(float).mean()),
        text_of(data),
    )


def rivals(checks: Sequence[Named], control: Named) -> list[Named]:
    """Return what a foil is compared with.

    It is the check of its own case, or every check where none has its name.
    """
    return [sample for sample in checks if sample.name == control.name] or list(checks)


def paired(check: Sample, control: Sample) -> Values:
    """Return check less control, for the seeds that both have."""
    _, mine, others = np.intersect1d(check.seeds, control.seeds, return_indices=True)
    return check.values[mine] - control.values[others]
