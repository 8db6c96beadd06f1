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
from itertools import chain, product
from math import nan, perm
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.experiments.shared.experiment import EPOCH, Context, Experiment, Result
from analysis.experiments.shared.trained_points import TrainedPoint, points
from analysis.paper import figure_3, quotes
from analysis.results.claims import Claim, Control
from analysis.results.evidence import CHECK, CONTROL, SHOWN, rows, tabulate
from analysis.results.tables import in_one_table, over_seeds
from analysis.runs.workers import Progress
from analysis.theory.derivatives import Loss, Vector, gradient
from analysis.theory.expectations import SampleMean, expected_inner_gradients
from analysis.theory.inner_products import Gram, cosines, gradient_gram, summarize
from analysis.theory.losses import on_minibatch
from reptile_core.losses import CrossEntropy
from reptile_core.meta_gradients import last, sum_of
from reptile_core.philox import Purpose
from reptile_core.tasks import Sampling
from reptile_core.training import build_network

NAME = "inner_products"
RISES, RISES_LAST, STEP = "inner-product-rises", "inner-product-rises-last", "inner-product-step"
Part = Literal["train", "test"]
MINIBATCHES = 4  # of a task: as many disjoint ones of 25 as 20 drawings of 5 characters give
SAMPLING = Sampling(figure_3.N_WAY, figure_3.SHOTS * MINIBATCHES, figure_3.BATCH, MINIBATCHES)
REPTILE, FOMAML = sum_of(MINIBATCHES), last(MINIBATCHES)  # REPTILE's steps are taken apart
JOINT = last(1)
SUMS, LASTS = (sum_of(2), REPTILE), (last(2), FOMAML)
VARIANTS = (JOINT, SUMS[0], LASTS[0], SUMS[1], LASTS[1])
# Share of figure 3's outer step on the same task: small, yet far above float32's round-off.
STEP_SHARE = 0.1


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
COSINE = "cosine within tasks less that between tasks, at the end of training less at the start"
TWENTIETH = (
    "a twentieth of an aligned pair's; a cosine cannot be above 1, nor a difference of two "
    "differences of them above 4"
)
FOIL = Control(kind="foil", words="joint training, g1, in its place, on the same tasks")
CLAIMS = (
    Claim(
        id=RISES,
        kind="experiment",
        sources=("B",),
        statement=(
            "meta-training along Reptile's update, g1 + … + gk, raises the cosine between "
            "gradients of minibatches of one task, at the initialization: more than that of pairs "
            "from different tasks, and more than joint training does"
        ),
        quantity=COSINE,
        band=(0.05, 4.0),
        limits=(-4.0, 4.0),
        reason=TWENTIETH,
        control=FOIL,
        quotation=quotes.INNER_PRODUCT,
        epoch=EPOCH,
        amended=(
            "The post says it of Reptile's update alone, so g2 and g4 have become a claim of their "
            "own. The old control, the same pairs grouped by their number, fell whenever the check "
            "rose; joint training, which was in the check, has taken its place. At first the "
            "cosine within tasks alone was judged; it rises as well along a direction that all "
            "tasks share, which says nothing of one task."
        ),
    ),
    Claim(
        id=RISES_LAST,
        kind="experiment",
        sources=("N",),
        statement="meta-training along the last gradient, g2 or g4, raises it too",
        quantity=COSINE,
        band=(0.05, 4.0),
        limits=(-4.0, 4.0),
        reason=TWENTIETH,
        control=FOIL,
        quotation=quotes.beyond(
            "of the last gradient alone, whose expectation holds AvgGradInner as well"
        ),
        epoch=EPOCH,
        amended="These two cases were part of inner-product-rises; the post says nothing of them.",
    ),
    Claim(
        id=STEP,
        kind="experiment",
        sources=("B",),
        statement=(
            "a small step along what Reptile's expected update has beyond k AvgGrad raises the "
            "inner product between gradients of minibatches of its task"
        ),
        quantity="(after - before) / (|after| + |before|) of the mean inner product",
        band=(0.0, 1.0),
        limits=(-1.0, 1.0),
        reason="any rise, over seeds",
        control=Control(
            kind="foil", words="a step of the same length along AvgGrad: k = 1, joint training"
        ),
        quotation=quotes.INNER_PRODUCT,
        epoch=EPOCH,
        amended=(
            "The change was taken relative to the value before, which may be near 0: such a ratio "
            "has no bound and a long tail. It is measured on eight tasks a seed in the place of "
            "two."
        ),
    ),
)


def losses_of(point: TrainedPoint, characters: Part, tasks: int) -> list[list[Loss]]:
    """Return the losses of each task's minibatches.

    The tasks are the same at every point of every variant of a seed. None of them is from the
    training stream.
    """
    pool, run = point.pool(characters), point.job.run
    drawn = pool.sample(
        SAMPLING, seed=run.seed, purpose=Purpose.ANALYSIS, iteration=0, task=torch.arange(tasks)
    )
    loss = CrossEntropy(build_network(run), reduction=run.inner.reduction)
    found = []
    for i in range(tasks):
        minibatches = [pool.minibatch(batch) for batch in drawn[i].minibatches]
        found.append([on_minibatch(loss, minibatch) for minibatch in minibatches])
    return found


def adapted(loss: Loss, phi: Vector, *, alpha: float, steps: int) -> Vector:
    """Return phi after `steps` steps of SGD on one minibatch."""
    for _ in range(steps):
        phi = phi - alpha * gradient(loss, phi)
    return phi


def adapted_gram(
    losses: Sequence[Sequence[Loss]], phi: Vector, *, alpha: float, steps: int
) -> Gram:
    """Return the Gram matrix of gradients after adaptation, task by task.

    Each task adapts by `steps` steps on its first minibatch. The gradients are those of its other
    minibatches, at its own parameters.
    """
    moved = []
    for first, *others in losses:
        displacement = adapted(first, phi, alpha=alpha, steps=steps) - phi
        moved += [partial(_displaced, loss, displacement) for loss in others]
    return gradient_gram(moved, phi)


def task_of(gram: Gram, tasks: int) -> Tensor:
    """Return the task of each gradient of a Gram matrix whose gradients are in task order."""
    return torch.arange(len(gram)) // (len(gram) // tasks)


def summaries(gram: Gram, tasks: int) -> list[dict[str, Any]]:
    """Return rows of means over a Gram matrix whose gradients are in task order.

    Columns: quantity, pairs, value, standard_error.
    pairs: "within" and "between" tasks, their "difference", and "self", a gradient with itself.
    """
    gram = gram.cpu().double()
    found = [{"quantity": "inner product", "pairs": "self", "value": float(gram.diagonal().mean())}]
    for quantity, matrix in (("inner product", gram), ("cosine", cosines(gram))):
        for pairs, estimate in vars(summarize(matrix, task_of(gram, tasks))).items():
            found.append({"quantity": quantity, "pairs": pairs, **asdict(estimate)})
    return found


def rise(start: Gram, end: Gram, tasks: int) -> SampleMean:
    """Return how much the cosine within tasks, less that between them, rises from start to end.

    Its error over tasks is that of the change, since both matrices are of the same tasks.
    """
    change = cosines(end.cpu().double()) - cosines(start.cpu().double())
    return summarize(change, task_of(change, tasks)).difference


def measure(
    item: tuple[TrainedPoint, Part], progress: Progress, *, tasks: int, after_adaptation: bool
) -> tuple[list[dict[str, Any]], Gram]:
    """Return rows of one point, before and perhaps after adaptation, and its Gram matrix before."""
    point, characters = item
    losses, run, phi = losses_of(point, characters, tasks), point.job.run, point.phi
    before = gradient_gram(list(chain.from_iterable(losses)), phi)
    found = {"before": before}
    if after_adaptation:
        found["after"] = adapted_gram(
            losses, phi, alpha=run.inner.learning_rate, steps=figure_3.EVALUATION_STEPS
        )
    where = {
        "variant": point.job.variant,
        "seed": run.seed,
        "iteration": point.iteration,
        "characters": characters,
    }
    table = []
    for when, gram in found.items():
        common = where | {"when": when}
        table += [common | row for row in summaries(gram, tasks)]
    progress(1)
    return table, before.cpu()


def pair_means(losses: Sequence[Loss], phi: Vector) -> dict[str, float]:
    """Return the mean inner product, cosine and squared norm of the losses' gradients.

    Inner product and cosine are means over pairs of different losses. The squared norm is a mean
    over the losses.
    """
    gram = gradient_gram(losses, phi).double()
    cosine = cosines(gram)
    return {
        "inner product": float(gram.sum() - gram.trace()) / perm(len(losses), 2),
        "cosine": float(cosine.sum() - cosine.trace()) / perm(len(losses), 2),
        "squared norm": float(gram.diagonal().mean()),
    }


def step_effects(losses: Sequence[Loss], phi: Vector, alpha: float) -> list[dict[str, Any]]:
    """Return rows of `pair_means` before and after small steps phi - s u on one task.

    Columns: direction, quantity, before, after. All steps have the same length. With all the task's
    minibatches in every order, E[g_1 + … + g_k] is exact. u is what it has "beyond" k AvgGrad, the
    "opposite" of that, or "AvgGrad".
    """
    means = expected_inner_gradients(losses, phi, alpha, len(losses))
    update, avg_grad = means.sum(0), means[0]
    beyond = update - len(losses) * avg_grad
    length = STEP_SHARE * figure_3.OUTER_STEP * alpha * update.norm()
    before = pair_means(losses, phi)
    found = []
    for direction, u in (("beyond", beyond), ("opposite", -beyond), ("AvgGrad", avg_grad)):
        after = pair_means(losses, phi - length * u / u.norm())
        for quantity, value in before.items():
            where = {"direction": direction, "quantity": quantity}
            found.append(where | {"before": value, "after": after[quantity]})
    return found


def measure_steps(
    item: tuple[TrainedPoint, int], progress: Progress, *, tasks: int
) -> list[dict[str, Any]]:
    """Return rows of `step_effects` on one task at one point.

    item: the point, and the number of the task.
    tasks: how many tasks there are.
    """
    point, task = item
    losses = losses_of(point, "train", tasks)[task]
    where = {"seed": point.job.run.seed, "iteration": point.iteration, "task": task}
    progress(1)
    effects = step_effects(losses, point.phi, point.job.run.inner.learning_rate)
    return [where | row for row in effects]


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
        "paper": "an hour after it",
    },
    claims=CLAIMS,
    settings=settings,
    run=run,
    scales=SCALES,
)


def _displaced(loss: Loss, displacement: Vector, phi: Vector) -> Float[Tensor, ""]:
    """Return the loss at phi + displacement.

    Its gradient at one common phi is the gradient at each task's own parameters.
    """
    return loss(phi + displacement)


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
