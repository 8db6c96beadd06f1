"""Tables of runs that hold enough to redo any one of them and to check that the bits are the same.

A row holds a run's configuration and evaluations, its key, and checksums of the parameters at its
end and of the accuracies of all test tasks. `restore` makes a job of a row. The job's key shows
that it is the same run.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import hypot, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analysis.runs.arithmetic import kind
from analysis.runs.evaluation_chunks import Accuracies, Evaluation
from analysis.runs.job import KEY_PARTS_IN_WORDS, Job, Source, record_digest
from analysis.runs.store import Outcome
from reptile_core.evaluation import estimate
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer, Run

SUFFIX = "_runs"  # of the tables' names
COLUMNS = [
    "variant", "seed", "iterations", "status", "device", "data", "split", "key",
    "parameters_sha256", "accuracies_sha256", "accuracy", "standard_error", "seconds", "arithmetic",
    "configuration", "evaluations",
]  # fmt: skip
ELSEWHERE = ("device", "native")  # parts of a key that tell machines apart, not work
# In standard errors of a difference, where bits cannot be compared: chance exceeds it once in
# 16,000 comparisons.
TOLERANCE = 4.0

Measured = tuple[int, Evaluation]  # an iteration of a run, and how it is evaluated there


class OtherRun(ValueError):
    """A row that today's code, data or options turn into another run.

    The message, one line, says in what they differ.
    """


def tabulate(
    asked: Mapping[Job, Outcome], measured: Mapping[tuple[Job, int, Evaluation], Accuracies]
) -> pd.DataFrame:
    """Return a table with a row for each run, as far as it was asked for, with COLUMNS.

    accuracy: the mean over test tasks at the last evaluation, in [0, 1].
    seconds: of training alone.
    arithmetic: the kinds of machine on which it was trained.
    """
    furthest: dict[tuple[str, str], tuple[Job, Outcome]] = {}
    for job, outcome in asked.items():
        before = furthest.get((job.variant, job.key))
        if before is None or before[0].end < job.end:
            furthest[job.variant, job.key] = job, outcome
    by_key: dict[str, dict[Measured, Accuracies]] = {}
    for (job, iteration, evaluation), accuracies in measured.items():
        by_key.setdefault(job.key, {})[iteration, evaluation] = accuracies
    rows = [_row(job, outcome, by_key.get(job.key, {})) for job, outcome in furthest.values()]
    return pd.DataFrame(rows, columns=COLUMNS)


def with_devices(
    tables: Mapping[str, pd.DataFrame], asked: Iterable[Job]
) -> dict[str, pd.DataFrame]:
    """Return the tables, with a column `device` added where runs were trained on several devices.

    Only tables with seeds get the column.
    """
    devices: dict[int, set[str]] = {}
    for job in asked:
        devices.setdefault(job.run.seed, set()).add(job.decisive["device"])
    if len(set().union(*devices.values())) < 2:
        return dict(tables)
    words = {seed: ", ".join(sorted(some)) for seed, some in devices.items()}
    return {
        name: table.assign(device=table["seed"].map(words)) if "seed" in table else table
        for name, table in tables.items()
    }


def _row(job: Job, outcome: Outcome, found: Mapping[Measured, Accuracies]) -> dict[str, Any]:
    evaluations = [[iteration, asdict(how)] for iteration, how in sorted(found, key=_order)]
    return {
        "variant": job.variant,
        "seed": job.run.seed,
        "iterations": outcome.iteration,
        "status": outcome.status,
        "device": job.decisive["device"],
        "data": job.source.name,
        "split": job.source.split,
        "key": job.key,
        "parameters_sha256": outcome.phi.get(outcome.iteration),
        **summary(found),
        "seconds": round(outcome.seconds, 2),
        "arithmetic": "; ".join(outcome.kinds),
        "configuration": _text(job.decisive),
        "evaluations": _text(evaluations),
    }


def summary(found: Mapping[Measured, Accuracies]) -> dict[str, Any]:
    """Return a checksum of the accuracies of all tasks, and what the last evaluation gave.

    That is its mean accuracy and standard error.
    """
    evaluations = sorted(found, key=_order)
    if not evaluations:
        return {"accuracies_sha256": None, "accuracy": nan, "standard_error": nan}
    digest_of_all = hashlib.sha256()
    for item in evaluations:
        for quantity, values in sorted(found[item].items()):
            numbers = np.ascontiguousarray(values, dtype=np.float64).tobytes()
            digest_of_all.update(quantity.encode() + numbers)
    last = estimate(torch.from_numpy(found[evaluations[-1]]["accuracy"]))
    return {
        "accuracies_sha256": digest_of_all.hexdigest(),
        "accuracy": last.mean,
        "standard_error": last.standard_error,
    }


@dataclass(frozen=True)
class Restored:
    """A run of a table, to be redone.

    job: trains it once more. Its key is that of the row, except on another device or with other
        arithmetic (`same_key`).
    evaluations: those of the table.
    then: the row of the table, with what came out then.
    """

    job: Job
    evaluations: tuple[Measured, ...]
    then: Mapping[str, Any]

    @property
    def same_key(self) -> bool:
        return self.job.key == self.then["key"]


def restore(row: Mapping[str, Any], source: Source, folder: Path, device: str) -> Restored:
    """Return the run of a row, to be trained again in a folder.

    source: the data that the row names, as found here.
    device: "cpu" or "cuda".
    Raises OtherRun where the data, the configuration in today's code or the numerics version are
    not those of the row.
    """
    decisive = json.loads(row["configuration"])
    evaluations = tuple((n, _evaluation(record)) for n, record in json.loads(row["evaluations"]))
    end = int(row["iterations"])
    keep = tuple(sorted({n for n, _ in evaluations if 0 < n < end}))
    tf32 = device != "cpu" and decisive["device"].endswith("tf32")
    try:
        run = _run(decisive["run"])
    except TypeError as error:
        raise OtherRun(
            f"expected the configuration of a run as this version has it, found another ({error})"
        ) from error
    diverged = row["status"] != "finished"
    until = run.iterations if diverged else end
    data = replace(source, split=row["split"])
    job = Job(run, data, folder, row["variant"], device, tf32, until=until, keep=keep)
    now = json.loads(_text(job.decisive))
    others = []
    for name, words in KEY_PARTS_IN_WORDS.items():
        if name not in ELSEWHERE and now[name] != decisive[name]:
            others.append(words)
    if others or record_digest(decisive) != row["key"]:
        found = " and ".join(others) or "a key that is not its own"
        raise OtherRun(f"expected the run {row['key']} of today's code and data, found {found}")
    return Restored(job, evaluations, row)


def compare(
    run: Restored, outcome: Outcome, found: Mapping[Measured, Accuracies]
) -> tuple[list[str], bool]:
    """Return lines that say how a redone run differs from the table's, and whether it is the same.

    It must be the same bit for bit on the same kind of machine, and to TOLERANCE on another.
    """
    then, now = run.then, summary(found)
    parameters = outcome.phi.get(outcome.iteration) == then["parameters_sha256"]
    pairs = [("parameters", parameters)]
    if isinstance(then["accuracies_sha256"], str):
        pairs.append(("accuracies", now["accuracies_sha256"] == then["accuracies_sha256"]))
    lines = [f"{name}: {'the same, bit for bit' if same else 'other bits'}" for name, same in pairs]
    if all(same for _, same in pairs):
        return lines, True
    here = kind(torch.device(run.job.device).type)
    if run.same_key and then["arithmetic"] == here:
        lines.append(
            f"this machine is of the kind that it was trained on, {here}: the same bits were "
            "expected"
        )
        return lines, False
    lines.append(
        f"trained on {then['arithmetic']}, this machine is {here}: bits cannot be compared"
    )
    if len(pairs) == 1:
        return [*lines, "it was not evaluated: there is nothing else to compare"], False
    most = TOLERANCE * hypot(then["standard_error"], now["standard_error"])
    within = bool(abs(now["accuracy"] - then["accuracy"]) <= most)
    is_within = "within" if within else "not within"
    lines.append(
        f"accuracy at the last evaluation: {then['accuracy']:.4f} then, {now['accuracy']:.4f} now, "
        f"{is_within} {TOLERANCE:g} standard errors of the difference ({most:.4f})"
    )
    return lines, within


def named(table: pd.DataFrame, variant: str, seed: str) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a variant and a seed."""
    rows = table[(table["variant"] == variant) & (table["seed"].astype(str) == seed)]
    found = []
    for row in rows.to_dict("records"):
        found.append({str(name): value for name, value in row.items()})
    return found


def _run(record: Mapping[str, Any]) -> Run:
    weights = record["weights"] if isinstance(record["weights"], str) else tuple(record["weights"])
    parts = {
        "sampling": Sampling(**record["sampling"]),
        "inner": Inner(**record["inner"]),
        "outer": Outer(**record["outer"]),
    }
    return Run(**{**record, **parts, "weights": weights})


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**{**record, "sampling": Sampling(**record["sampling"])})


def _order(item: Measured) -> tuple[int, str]:
    iteration, evaluation = item
    return iteration, _text(asdict(evaluation))


def _text(record: Any) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"))
