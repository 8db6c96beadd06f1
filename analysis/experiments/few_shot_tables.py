"""Section 6.1's tables: accuracy by cell and seed, and a summary next to what was published."""

from collections.abc import Mapping
from dataclasses import asdict
from math import hypot, nan
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from analysis.experiments.few_shot_cells import HINDERED, MEASURED, UNTRAINED, Cell, Unmeasured
from analysis.paper.benchmarks import BENCHMARKS, METHODS, PUBLISHED
from analysis.results.split_variance import characters, classes_of, split_error
from analysis.results.tables import COLUMNS as TIDY
from analysis.results.tables import student_t
from analysis.runs.evaluation_chunks import Accuracies
from reptile_core.evaluation import estimate

NAME = "few_shot"
WORDS = {"reptile": "Reptile", "fomaml": "FOMAML", "maml": "MAML", UNTRAINED: "untrained"}
CELL = ["benchmark", "shots", "method", "transductive"]  # the columns that name a row
NORMAL_95 = 1.96  # half of a 95 % interval in standard errors, for the mean over many tasks


def table(measured: Mapping[Cell, Accuracies]) -> pd.DataFrame:
    """Return the tidy table of accuracy in [0, 1], one row per cell, seed and kind of evaluation.

    split_error: the standard error over other choices of the test characters. It is NaN for
        photographs, whose classes are as published, and where tasks are too few to tell.
    """
    found = []
    for cell, accuracies in measured.items():
        drawn = cell.job.run.network == "omniglot"
        classes = classes_of(cell.job, cell.evaluation) if drawn else None
        for quantity, values in accuracies.items():
            error = nan if classes is None else error_over_splits(values, classes, cell)
            found.append(_row(cell, quantity, values) | {"split_error": error})
    return pd.DataFrame(found, columns=[*TIDY, "split", "split_error", *CELL])


def _row(cell: Cell, quantity: str, values: Float[np.ndarray, " tasks"]) -> dict[str, Any]:
    found = estimate(torch.from_numpy(values))
    return {
        "experiment": NAME,
        "variant": f"{cell.benchmark} {cell.shots}-shot {cell.method}",
        "seed": cell.job.run.seed,
        "iteration": cell.job.end if cell.trained else 0,
        "quantity": quantity,
        "value": found.mean,
        "standard_error": found.standard_error,
        "count": found.count,
        "split": cell.job.source.split,
        "benchmark": cell.benchmark,
        "shots": cell.shots,
        "method": cell.method,
        "transductive": quantity == "accuracy_transductive",
    }


def error_over_splits(
    values: Float[np.ndarray, " tasks"], classes: Int[np.ndarray, "tasks n_way"], cell: Cell
) -> float:
    """Return `split_error` of a cell; NaN where tasks are too few to tell."""
    test, every = characters(cell.job)
    try:
        return split_error(values, classes, test=test, every=every)
    except ValueError:
        return nan


def summary(table: pd.DataFrame, others: Mapping[str, Unmeasured]) -> pd.DataFrame:
    """Return every cell of every benchmark, in %.

    A row has our accuracy with its 95 % interval, what was published, and the status, one of
    STATUSES, with the reason where the cell was hindered. The interval is over seeds, by Student's
    t. Where there is one seed, it is over tasks, and over splits as well if the seed drew the
    characters.

    others: why cells are not measured, by "benchmark-method".
    """
    groups = {key: part for key, part in table.groupby(CELL)}
    found = []
    for benchmark in BENCHMARKS:
        for shots in benchmark.shots:
            for method in (*(m.name for m in METHODS), UNTRAINED):
                for transductive in (False, True):
                    key = (benchmark.name, shots, method, transductive)
                    found.append(_summarized(key, groups.get(key, table.iloc[:0]), others))
    return pd.DataFrame(found)


def _summarized(
    key: tuple[str, int, str, bool], part: pd.DataFrame, others: Mapping[str, Unmeasured]
) -> dict[str, Any]:
    """Return one row of the summary.

    part: the cell's rows, one per seed.
    """
    benchmark, shots, method, transductive = key
    mean, half, source = PUBLISHED.get((method, transductive, benchmark, shots), (nan, nan, ""))
    # An initialization is measured only where something is trained from it.
    trained = METHODS[0].name if method == UNTRAINED else method
    why = others.get(f"{benchmark}-{trained}", Unmeasured(HINDERED, "no results"))
    if len(part):
        why = Unmeasured(MEASURED)
    return (
        dict(zip(CELL, key, strict=True))
        | {"row": in_words(method, transductive)}
        | _interval(part)
        | {"published": mean, "published_half": half, "source": source}
        | asdict(why)
    )


def _interval(part: pd.DataFrame) -> dict[str, Any]:
    """Return mean and interval, in %, of one cell's rows, one per seed."""
    values = 100 * part.value
    if len(part) > 1:
        mean, low, high = student_t(values)
    elif len(part) == 1:
        over_splits = part.split_error.fillna(0).item() if part.split.item() == "seed" else 0.0
        mean, half = values.item(), NORMAL_95 * 100 * hypot(part.standard_error.item(), over_splits)
        low, high = mean - half, mean + half
    else:
        mean = low = high = nan
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "seeds": len(part),
        "tasks": part["count"].sum(),
    }


def in_words(method: str, transductive: bool) -> str:
    """Return the name that the paper gives a row."""
    return WORDS[method] + (" + transduction" if transductive else "")
