"""The ledger: verdicts as a file, `claims.json`, that holds all of every claim.

The report, the terminal and other programs read nothing else.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any, get_args

from analysis.results.claims import Claim, Control
from analysis.results.tables import ResultsError
from analysis.results.verdict import (
    DECISIONS,
    Case,
    ControlOutcome,
    SeedPlan,
    Verdict,
    Why,
)
from reptile_core.files import write_atomically

NAME = "claims.json"


def write(verdicts: Sequence[Verdict], folder: Path) -> Path:
    """Write claims.json: a list of objects, one for each claim; see `as_record`."""
    records = [as_record(verdict) for verdict in verdicts]
    text = json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / NAME, (text + "\n").encode())
    return folder / NAME


def read(folder: Path) -> list[Verdict]:
    """Return the verdicts that `write` wrote.

    Raises ResultsError where the file is missing or anything else.
    """
    path = folder / NAME
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ResultsError(
            f"{path}: expected the ledger of a run, found none; python reproduce.py writes it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"{path}: expected JSON, found {error}") from error
    if not isinstance(rows, list):
        raise ResultsError(f"{path}: expected a list of claims, found {type(rows).__name__}")
    return [_verdict(row, path) for row in rows]


def as_record(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON has it.

    It has the claim's fields (id, kind, statement, band, …); verdict ("supported", "refuted" or
    "undecided") and why; cases, each with its mean, interval, seeds and own decision; control
    (kind, words, outcome, cases); shown, what is only shown; plan, look and epochs. What is not
    finite is null.
    """
    claim, control = asdict(verdict.claim), asdict(verdict.claim.control)
    record = claim | {
        "verdict": verdict.decision,
        "why": verdict.why,
        "cases": [asdict(case) for case in verdict.cases],
        "control": control
        | {"outcome": verdict.control, "cases": [asdict(case) for case in verdict.controls]},
        "shown": [asdict(case) for case in verdict.shown],
        "plan": None if verdict.plan is None else asdict(verdict.plan),
        "look": verdict.look,
        "epochs": list(verdict.epochs),
        "profile": verdict.profile,
        "diverged": list(verdict.diverged),
        "data": list(verdict.data),
        "decided_on": verdict.decided_on,
    }
    return _finite(record)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _verdict(row: Any, path: Path) -> Verdict:
    """Return the verdict of a record: the inverse of `as_record`."""
    try:
        control = Control(
            kind=row["control"]["kind"],
            words=row["control"]["words"],
            band=_band(row["control"]["band"]),
        )
        parts = {field.name: row[field.name] for field in fields(Claim)}
        parts |= {
            "band": _band(row["band"]),
            "limits": _band(row["limits"]),
            "sources": tuple(row["sources"]),
        }
        claim = Claim(**parts | {"control": control})
        texts = ("id", "statement", "quantity", "reason", "quotation", "amended")
        if odd := [name for name in texts if type(getattr(claim, name)) is not str]:
            raise TypeError(f"no text as its {odd[0]}")
        _one_of(DECISIONS, "verdict", row["verdict"])
        _one_of(get_args(Why), "why", row["why"])
        _one_of(("theorem", "experiment"), "kind", row["kind"])
        _one_of(("wrong formula", "foil", "sham"), "control.kind", control.kind)
        _one_of(get_args(ControlOutcome), "control.outcome", row["control"]["outcome"])
        plan = row["plan"]
        return Verdict(
            claim,
            row["verdict"],
            row["why"],
            _parse_cases(row["cases"]),
            _parse_cases(row["control"]["cases"]),
            row["control"]["outcome"],
            _parse_cases(row["shown"]),
            row["look"],
            tuple(row["epochs"]),
            None if plan is None else SeedPlan(**plan | {"seconds": _number(plan["seconds"])}),
            row["profile"],
            tuple(row["diverged"]),
            tuple(row["data"]),
            row.get("decided_on", 0),  # ledgers of earlier versions have none
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        name = row.get("id") if isinstance(row, dict) else row
        raise ResultsError(
            f"{path}: expected a claim with its verdict, found {name!r}: {error!r}"
        ) from error


def _parse_cases(rows: Iterable[dict[str, Any]]) -> tuple[Case, ...]:
    numbers = ("mean", "low", "high", "sd", "task_error", "tasks", "queries")
    cases = []
    for row in rows:
        _one_of(DECISIONS, "decision", row["decision"])
        parts = {name: _number(row[name]) for name in numbers}
        cases.append(Case(**row | parts | {"seeds": tuple(int(seed) for seed in row["seeds"])}))
    return tuple(cases)


def _one_of(expected: Sequence[str], name: str, found: object) -> None:
    if found not in expected:
        raise ValueError(
            f"{name}: expected one of {', '.join(filter(None, expected))}, found {found!r}"
        )


def _number(value: Any) -> float:
    return nan if value is None else float(value)


def _band(ends: Any) -> tuple[float, float] | None:
    """Return the ends of a band; JSON has null for one that is not finite."""
    if ends is None:
        return None
    low, high = ends
    return -inf if low is None else float(low), inf if high is None else float(high)


def count(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many claims got which verdict."""
    decided = [verdict.decision for verdict in verdicts]
    return {decision: decided.count(decision) for decision in DECISIONS}
