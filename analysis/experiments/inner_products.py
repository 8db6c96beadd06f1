"""Inner products between gradients of one task's minibatches: does meta-training raise them?

AvgGradInner = 1/2 d/dphi E[g_bar_1 . g_bar_2] is in every update with k > 1, and not in joint
training's g_1. Here inner products and cosines of minibatch gradients are measured along figure 3's
runs, within tasks and between them. They are measured at the initialization and, at the paper's
scale, after adaptation.

One small step is also taken along what Reptile's update has beyond k AvgGrad: does it alone raise
the inner product of its task? With independent minibatches a longer gradient raises the inner
product too, so cosines and squared norms are in the tables as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.experiments.inner_products_claims import CLAIMS, RISES, RISES_LAST, STEP
from analysis.experiments.inner_products_measuring import (
    MINIBATCHES,
    STEP_SHARE,
    Part,
    measure,
    measure_steps,
    rise,
)
from analysis.experiments.shared.experiment import Context, Experiment, Result
from analysis.experiments.shared.trained_points import TrainedPoint, points
from analysis.paper import figure_3
from analysis.results.evidence import CHECK, CONTROL, SHOWN, rows, tabulate
from analysis.results.tables import in_one_table, over_seeds
from analysis.theory.inner_products import Gram, cosines
from reptile_core.meta_gradients import last, sum_of

NAME = "inner_products"
REPTILE, FOMAML = sum_of(MINIBATCHES), last(MINIBATCHES)  # REPTILE's steps are taken apart
JOINT = last(1)
SUMS, LASTS = (sum_of(2), REPTILE), (last(2), FOMAML)
VARIANTS = (JOINT, SUMS[0], LASTS[0], SUMS[1], LASTS[1])


@dataclass(frozen=True)
class Scale:
    """Where the runs are measured, and on how many tasks.

    iterations: points of the runs, the start and the end among them.
    tasks: tasks at each point.
    step_tasks: tasks on which steps are taken, at both ends of Reptile's runs.
    characters: the characters of the tasks.
    after_adaptation: whether points are measured after adaptation as well.
    """

    iterations: tuple[int, ...]
    seeds: int
    tasks: int
    step_tasks: int
    characters: tuple[Part, ...]
    after_adaptation: bool


SCALES = {
    "smoke": Scale(
        (0, 4), 2, tasks=3, step_tasks=1, characters=("train", "test"), after_adaptation=True
    ),
    "quick": Scale(
        (0, 400), 5, tasks=8, step_tasks=8, characters=("train",), after_adaptation=False
    ),
    "paper": Scale(
        (0, 1_000, 2_000, 5_000, 10_000, 20_000, 40_000),
        5,
        tasks=24,
        step_tasks=8,
        characters=("train", "test"),
        after_adaptation=True,
    ),
}


def bounded_change(before: float, after: float) -> float:
    """Return the change relative to the sum of sizes, in [-1, 1].

    No change gives 0; a change from a negative value to a positive one gives 1.
    """
    size = abs(after) + abs(before)
    return (after - before) / size if size else 0.0


def changes(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the change of means over tasks, seed by seed.

    Columns: direction, quantity, iteration, seed, value, task_error. Cosines change by after less
    before. Inner products and squared norms have bounded changes.
    """
    by = ["direction", "quantity", "iteration", "seed"]
    found = []
    for key, part in steps.groupby(by, sort=False):
        pairs = part[["before", "after"]].to_numpy()
        where = dict(zip(by, key, strict=True))
        value, error = _change(pairs, bounded=where["quantity"] != "cosine")
        found.append(where | {"value": value, "task_error": error})
    return pd.DataFrame(found)


def rises(grams: Iterable[tuple[TrainedPoint, Part, Gram]], scale: Scale) -> pd.DataFrame:
    """Return how much training raised the cosine within tasks less that between them.

    Columns: variant, seed, characters, value, task_error.
    """
    by_end: dict[tuple[str, int, Part], dict[int, Gram]] = {}
    for point, characters, gram in grams:
        key = (point.job.variant, point.job.run.seed, characters)
        by_end.setdefault(key, {})[point.iteration] = gram
    found = []
    for (variant, seed, characters), ends in by_end.items():
        change = rise(ends[scale.iterations[0]], ends[scale.iterations[-1]], scale.tasks)
        where = {"variant": variant, "seed": seed, "characters": characters}
        found.append(where | {"value": change.value, "task_error": change.standard_error})
    return pd.DataFrame(found)


def evidence(
    table: pd.DataFrame,
    rise_table: pd.DataFrame,
    change_table: pd.DataFrame,
    scale: Scale,
    seeds: Sequence[int],
) -> pd.DataFrame:
    """Return the evidence for all claims.

    Training characters before adaptation are judged. Test characters, inner products along training
    and the step in the opposite direction are only shown. A seed whose run diverged has no value.
    """
    found = []
    for claim, variants in ((RISES, SUMS), (RISES_LAST, LASTS)):
        for variant, role in ((JOINT, CONTROL), *((variant, CHECK) for variant in variants)):
            mine = rise_table[rise_table.variant == variant.name]
            for characters in scale.characters:
                judged = characters == "train"
                values = _by_seed(mine[mine.characters == characters], seeds)
                case = variant.name if judged else f"{variant.name}, test characters"
                found += rows(claim, case, role if judged else SHOWN, values, tasks=scale.tasks)
            case = f"{variant.name}, change of the inner product, bounded"
            values = product_changes(table, variant.name)
            found += rows(claim, case, SHOWN, values, tasks=scale.tasks)
    roles = {"beyond": CHECK, "AvgGrad": CONTROL, "opposite": SHOWN}
    changes_of_products = change_table[change_table.quantity == "inner product"]
    by_direction = changes_of_products.groupby(["direction", "iteration"], sort=False)
    for (direction, iteration), part in by_direction:
        case = f"after {iteration:,} iterations" + f", {direction}" * (roles[direction] == SHOWN)
        found += rows(STEP, case, roles[direction], _by_seed(part, seeds), tasks=scale.step_tasks)
    return tabulate(found)


def product_changes(table: pd.DataFrame, variant: str) -> pd.Series:
    """Return by seed the bounded change of the mean inner product from start to end of training.

    The mean is over pairs within tasks of training characters, before adaptation.
    """
    mine = table[
        (table.variant == variant) & (table.quantity == "inner product") & (table.pairs == "within")
        & (table.characters == "train") & (table.when == "before")
    ].pivot_table(index="seed", columns="iteration", values="value")  # fmt: skip
    start, end = mine[mine.columns.min()], mine[mine.columns.max()]
    by_seed = {seed: bounded_change(start[seed], end[seed]) for seed in mine.index}
    return pd.Series(by_seed, dtype=float)


def gram_table(by_point: Iterable[tuple[TrainedPoint, Gram]]) -> pd.DataFrame:
    """Return a long table of Gram matrices.

    Columns: variant, seed, iteration, row, column, inner_product, cosine.
    """
    parts = []
    for point, gram in by_point:
        row, column = np.indices(gram.shape)
        cells = pd.DataFrame(
            {
                "row": row.ravel(),
                "column": column.ravel(),
                "inner_product": gram.flatten().numpy(),
                "cosine": cosines(gram.double()).flatten().numpy(),
            }
        )
        parts.append(
            cells.assign(
                variant=point.job.variant, seed=point.job.run.seed, iteration=point.iteration
            )
        )
    return pd.concat(parts)


def same_phi(every: Sequence[TrainedPoint]) -> dict[TrainedPoint, TrainedPoint]:
    """Return for each point the one that is measured in its place.

    All runs of a seed start from the same phi, so that one point stands for all their starts.
    """
    first: dict[tuple[int, int, str], TrainedPoint] = {}
    chosen = {}
    for point in every:
        key = (point.job.run.seed, point.iteration, point.job.variant if point.iteration else "")
        chosen[point] = first.setdefault(key, point)
    return chosen


def run(context: Context, scale: Scale) -> Result:
    """Measure points of the variants' runs, and take Reptile's steps apart."""
    seeds = context.seeds_of(scale.seeds)
    every = points(context, VARIANTS, seeds, scale.iterations, schedule=figure_3.ITERATIONS)
    table, grams = along_training(context, every, scale)
    steps = steps_of(context, every, scale)
    rise_table, change_table = rises(grams, scale), changes(steps)
    shown = []
    for point, part, gram in grams:
        if part == "train" and point.job.run.seed == seeds[0] and _is_shown(point, scale):
            shown.append((point, gram))
    tables = {
        NAME: table,
        f"{NAME}_intervals": over_seeds(
            table, ["variant", "characters", "when", "quantity", "pairs", "iteration"]
        ),
        f"{NAME}_rises": rise_table,
        f"{NAME}_steps": steps,
        f"{NAME}_changes": over_seeds(change_table, ["direction", "quantity", "iteration"]),
        f"{NAME}_gram": gram_table(shown),
    }
    return Result(tables, evidence(table, rise_table, change_table, scale, seeds))


def along_training(
    context: Context, every: Sequence[TrainedPoint], scale: Scale
) -> tuple[pd.DataFrame, list[tuple[TrainedPoint, Part, Gram]]]:
    """Measure all points: the table of summaries, and the Gram matrices before adaptation."""
    chosen = same_phi(every)
    items = list(product(dict.fromkeys(chosen.values()), scale.characters))
    work = partial(measure, tasks=scale.tasks, after_adaptation=scale.after_adaptation)
    found = dict(zip(items, context.workers.map(NAME, work, items, unit=" points"), strict=True))
    table, grams = [], []
    for point, measured in chosen.items():
        for characters in scale.characters:
            summary, gram = found[measured, characters]
            table += [row | {"variant": point.job.variant} for row in summary]
            grams.append((point, characters, gram))
    return pd.DataFrame(table), grams


def steps_of(context: Context, every: Sequence[TrainedPoint], scale: Scale) -> pd.DataFrame:
    """Take the steps at both ends of Reptile's runs, on every task."""
    ends = scale.iterations[0], scale.iterations[-1]
    of_reptile = [point for point in every if point.job.variant == REPTILE.name]
    mine = [point for point in of_reptile if point.iteration in ends]
    items = list(product(mine, range(scale.step_tasks)))
    work = partial(measure_steps, tasks=scale.step_tasks)
    found = context.workers.map(f"{NAME}, steps", work, items, unit=" tasks")
    return in_one_table(found)


def settings(context: Context, scale: Scale) -> dict[str, Any]:
    """Return everything that decides the outcome besides data and code."""
    return asdict(scale) | {
        "schedule": figure_3.ITERATIONS,
        "variants": {variant.name: variant.label for variant in VARIANTS},
        "n_way": figure_3.N_WAY,
        "minibatches": MINIBATCHES,
        "batch": figure_3.BATCH,
        "learning_rate": figure_3.LEARNING_RATE,
        "adaptation_steps": figure_3.EVALUATION_STEPS,
        "outer_step": figure_3.OUTER_STEP,
        "step_share": STEP_SHARE,
    }


EXPERIMENT = Experiment(
    name=NAME,
    shows="whether Reptile raises the inner product between gradients of minibatches of one task",
    takes={
        "smoke": "half a minute",
        "quick": "a minute after the ablation",
        "paper": "10 minutes after it",
    },
    claims=CLAIMS,
    settings=settings,
    run=run,
    scales=SCALES,
)


def _change(pairs: Float[np.ndarray, "tasks 2"], *, bounded: bool) -> tuple[float, float]:
    """Return the change of the mean from before to after, and its error over tasks.

    The error is found by leaving out one task at a time. It is NaN for one task.
    """

    def of(part: Float[np.ndarray, "n 2"]) -> float:
        before, after = part.mean(0)
        return bounded_change(before, after) if bounded else float(after - before)

    n = len(pairs)
    if n < 2:
        return of(pairs), nan
    without = np.array([of(np.delete(pairs, task, axis=0)) for task in range(n)])
    return of(pairs), float(np.sqrt((n - 1) * without.var()))


def _by_seed(part: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """Return value and error by seed; NaN for a seed that has none."""
    return part.set_index("seed")[["value", "task_error"]].reindex(seeds)


def _is_shown(point: TrainedPoint, scale: Scale) -> bool:
    """Return whether the figure shows this point's matrix.

    It shows both ends of Reptile's run, and the end of FOMAML's.
    """
    if point.iteration == scale.iterations[0]:
        return point.job.variant == REPTILE.name
    at_end = point.iteration == scale.iterations[-1]
    return at_end and point.job.variant in (REPTILE.name, FOMAML.name)
