"""The ledger: each claim with its criterion, written before the run, and the verdict that measurement and control give.

A claim is data. Its criterion is a band that every measured number must lie in; its negative control is the same check
on a wrong formula, whose numbers must all lie outside. A control that does not fail makes any verdict "inconclusive:
the check cannot fail"; so does a profile smaller than the one that the claim is about: neither pass nor refutation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, isinf, isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.tables import student_t
from reptile_core.files import write_atomically

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_JUDGED = "supported", "refuted", "inconclusive", "not judged"
CANNOT_FAIL = "inconclusive: the check cannot fail"
TOO_SMALL = "inconclusive: the scale is too small"
DIVERGED = "inconclusive: runs diverged"
PROFILES = ("smoke", "quick", "paper")  # from small to large
MADE_UP = "NOT OMNIGLOT"  # begins the line that names data which only stand in for it

# role: "check" or "control" (others are let be); low, high: an interval over seeds, NaN where the value stands alone;
# data: the line that names data and scale; profile: that scale alone; diverged: runs that ended early, in words.
NO_MEASUREMENTS = pd.DataFrame(
    {
        name: pd.Series(dtype=float if name in ("value", "low", "high") else object)
        for name in ("claim", "case", "role", "value", "low", "high", "data", "profile", "diverged")
    }
)


@dataclass(frozen=True)
class Claim:
    """What is claimed, where, and what would show it.

    quantity: what is measured, in words with its unit. low, high: the band it must lie in; reason: why that wide.
    control: the wrong formula that is checked beside it. least: the smallest profile at which it is judged; what the
    paper says of its figures, at tens of thousands of iterations, a few hundred can neither support nor refute.
    paper: what the paper or its authors' post says, in words or as an equation, LaTeX between dollars.
    """

    id: str
    source: str
    kind: Literal["theorem", "experiment"]
    statement: str
    quantity: str
    low: float
    high: float
    reason: str
    control: str
    least: Literal["smoke", "quick", "paper"] = "quick"
    paper: str = ""

    def __post_init__(self) -> None:
        if not (isfinite(self.low) and isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"band of {self.id}: expected finite low <= high, found [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Interval:
    """What one case measured: a number alone (low = high), or an interval over seeds."""

    low: float
    high: float


def judge(claim: Claim, measured: Sequence[Interval], controls: Sequence[Interval]) -> str:
    """The verdict over all cases: supported if every one lies in the band, refuted if some one lies outside.

    A number that is not finite lies in no band and outside none.
    """
    if not measured:
        return NOT_JUDGED
    if not controls or not all(outside(claim, control) for control in controls):
        return CANNOT_FAIL
    if all(inside(claim, case) for case in measured):
        return SUPPORTED
    return REFUTED if any(outside(claim, case) for case in measured) else INCONCLUSIVE


def inside(claim: Claim, interval: Interval) -> bool:
    """All of it in the band."""
    return claim.low <= interval.low and interval.high <= claim.high


def outside(claim: Claim, interval: Interval) -> bool:
    """None of it in the band, and its ends are numbers."""
    ends = isfinite(interval.low) and isfinite(interval.high)
    return ends and (interval.high < claim.low or interval.low > claim.high)


def measurement(
    claim: str, case: str, role: str, values: Iterable[float], *, least: float = -inf, most: float = inf
) -> dict[str, Any]:
    """A row for the ledger: the mean of one value per seed, with its interval. One seed alone judges nothing.

    least, most: what the values, and so their mean, can be; the interval ends there.
    """
    values = list(values)
    mean, low, high = student_t(values)
    if len(values) < 2:
        low, high = -inf, inf
    return {
        "claim": claim, "case": case, "role": role, "value": mean, "low": max(low, least), "high": min(high, most),
    }  # fmt: skip


def ledger(claims: Iterable[Claim], measurements: pd.DataFrame) -> pd.DataFrame:
    """One row per claim from a table with the columns of NO_MEASUREMENTS, or some of them; a claim without measurements
    is not judged."""
    measurements = measurements.reindex(columns=NO_MEASUREMENTS.columns)
    rows = []
    for claim in claims:
        mine = measurements[measurements.claim == claim.id]
        measured, controls = (intervals(mine[mine.role == role]) for role in ("check", "control"))
        row = asdict(claim) | {"cases": len(measured), "controls": len(controls)}
        for name, cases in (("measured", measured), ("control", controls)):
            row |= {f"{name}_low": np.min([case.low for case in cases]) if cases else None}  # NaN if any is
            row |= {f"{name}_high": np.max([case.high for case in cases]) if cases else None}
        data = "; ".join(dict.fromkeys(mine["data"].dropna()))
        small = any(PROFILES.index(profile) < PROFILES.index(claim.least) for profile in set(mine["profile"].dropna()))
        diverged = "; ".join(dict.fromkeys(mine["diverged"].dropna()))
        lost = bool(diverged) and any(isnan(case.low) for case in (*measured, *controls))
        verdict = TOO_SMALL if measured and small else judge(claim, measured, controls)
        if lost and verdict in (INCONCLUSIVE, CANNOT_FAIL):
            verdict = DIVERGED
        rows.append(row | {"verdict": verdict, "data": data, "diverged": diverged})
    return pd.DataFrame(rows)


def write_ledger(table: pd.DataFrame, folder: Path) -> list[Path]:
    """claims.csv, claims.json and claims.md."""
    contents = {
        "claims.csv": table.to_csv(index=False, lineterminator="\n"),
        "claims.json": table.to_json(orient="records", indent=2, force_ascii=False, double_precision=15) + "\n",
        "claims.md": markdown(table),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in contents]


def markdown(table: pd.DataFrame) -> str:
    """The ledger for people: verdict, claim, what was measured against which band, and what the control gave."""
    lines = ["| verdict | claim | measured | band | control |", "|---|---|---|---|---|"]
    for row in table.itertuples():
        cells = [
            f"**{row.verdict}**",
            f"`{row.id}` ({row.source}) {row.statement}",
            f"{row.quantity}: {span(row.measured_low, row.measured_high)} in {row.cases} cases"
            + (f" (runs ended early: {row.diverged})" if row.diverged else ""),
            f"[{row.low:g}, {row.high:g}]: {row.reason}",
            f"{row.control}: {span(row.control_low, row.control_high)}",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def lines(table: pd.DataFrame) -> list[str]:
    """The ledger for a terminal, one line a claim."""
    width = max(map(len, table.id), default=0)
    return [
        f"{row.id:<{width}}  {row.verdict:<14} {row.quantity} {span(row.measured_low, row.measured_high)}"
        f"  (control {span(row.control_low, row.control_high)})"
        for row in table.itertuples()
    ]


def counts(table: pd.DataFrame) -> str:
    """How many claims got which verdict."""
    return ", ".join(f"{count} {verdict}" for verdict, count in table.verdict.value_counts().items())


def intervals(rows: pd.DataFrame) -> list[Interval]:
    """A row's interval: its low and high where it has them, else its value alone."""
    lows, highs = (rows[side].fillna(rows["value"]) for side in ("low", "high"))
    return [Interval(float(low), float(high)) for low, high in zip(lows, highs, strict=True)]


def span(low: float | None, high: float | None) -> str:
    """An interval in four digits, in words where it has no numbers."""
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return "not measured"
    if isinf(low) and isinf(high):
        return "no interval"
    low, high = low + 0.0, high + 0.0  # no -0
    return f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}"
