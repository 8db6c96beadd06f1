"""Does meta-training raise the inner product between gradients of different minibatches of one task?

AvgGradInner = 1/2 d/dphi E[g_bar_1 . g_bar_2] is in every update with k > 1 and not in joint training's g_1. Here inner
products and cosines of minibatch gradients are measured along figure 3's runs, within tasks and between them, at the
initialization and after adaptation. And one small step is taken along what Reptile's update has beyond k AvgGrad: does
it alone raise the inner product of its task? With independent minibatches a longer gradient raises the inner product
too; cosines and squared norms stand beside.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import perm
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import ablation, post
from analysis.experiments.along_training import Point, points, spread
from analysis.tables import over_seeds
from analysis.theory.derivatives import Loss, Vector, gradient
from analysis.theory.expectations import expected_inner_gradients
from analysis.theory.inner_products import Gram, cosines, gradient_gram, summarize
from analysis.theory.losses import on_minibatch
from analysis.workers import Progress
from reptile_core.meta_gradients import last, total
from reptile_core.networks import CrossEntropy
from reptile_core.philox import Purpose
from reptile_core.tasks import Sampling
from reptile_core.training import build_network

NAME = "inner_products"
Characters = Literal["train", "test"]
MINIBATCHES = 4  # of a task: the most disjoint ones of 25 that 20 drawings of 5 characters give
SAMPLING = Sampling(ablation.N_WAY, ablation.SHOTS * MINIBATCHES, ablation.BATCH, MINIBATCHES)
REPTILE, FOMAML = total(MINIBATCHES), last(MINIBATCHES)  # the first one's steps are taken apart
VARIANTS = (last(1), total(2), last(2), REPTILE, FOMAML)
LONGER = tuple(variant.name for variant in VARIANTS if variant.k > 1)
STEP_SHARE = 0.1  # of figure 3's outer step on the same task: small, and above float32's round-off by far


@dataclass(frozen=True)
class Scale:
    """Tasks at each point; how many points of a run, both ends among them; and tasks on which steps are taken, at both
    ends of Reptile's runs."""

    tasks: int
    points: int
    step_tasks: int


SCALES = {"smoke": Scale(3, 2, 1), "quick": Scale(6, 3, 2), "paper": Scale(24, 9, 8)}
CLAIMS = (
    Claim(
        "inner-product-rises",
        "B",
        "experiment",
        "meta-training with k > 1 raises the cosine between gradients of minibatches of one task, at the "
        "initialization: above joint training's (g1), and more than that of pairs from different tasks",
        "cosine within tasks less that between tasks: at the end of training less g1's; at the end less at the start",
        0.05,
        2.0,
        "a twentieth of an aligned pair's; some dozens of pairs leave an error of about 0.02. At first the cosine "
        "within tasks alone was held against g1's; but with g2 and g4 cosines between tasks rise as well, along a "
        "direction that tasks share: it told nothing of one task, and its control, pairs of different tasks, passed. "
        "The control is a mean over variants since that of g2 alone reached 0.06 by noise",
        "minibatches grouped by their number in the place of their task",
        paper=post.INNER_PRODUCT,
    ),
    Claim(
        "inner-product-step",
        "B",
        "experiment",
        "a small step along what Reptile's expected update has beyond k AvgGrad raises the inner product between "
        "gradients of minibatches of its task",
        "relative change of the mean inner product",
        0.0,
        1e3,
        "any rise, over seeds",
        "a step of the same length along AvgGrad: k = 1, joint training",
        paper=post.INNER_PRODUCT,
    ),
)


def losses_of(point: Point, characters: Characters, tasks: int) -> list[list[Loss]]:
    """The losses of each task's minibatches: the same tasks at every point of every variant of a seed, none of them
    from the training stream."""
    pool, run = point.pool(characters), point.job.run
    drawn = pool.sample(SAMPLING, seed=run.seed, purpose=Purpose.ANALYSIS, iteration=0, task=torch.arange(tasks))
    loss = CrossEntropy(build_network(run), reduction=run.inner.reduction)
    return [[on_minibatch(loss, pool.minibatch(batch)) for batch in drawn[i].minibatches] for i in range(tasks)]


def adapted(loss: Loss, phi: Vector, *, alpha: float, steps: int) -> Vector:
    """phi after so many steps of SGD on one minibatch."""
    for _ in range(steps):
        phi = phi - alpha * gradient(loss, phi)
    return phi


def grams(losses: Sequence[Sequence[Loss]], phi: Vector, *, alpha: float, steps: int) -> tuple[Gram, Gram]:
    """Gram matrices of all tasks' gradients, task by task: at phi; and after adaptation, each task's at its own
    parameters, `steps` steps on its first minibatch away, of its other minibatches."""
    before = gradient_gram([loss for mine in losses for loss in mine], phi)
    moved = []
    for first, *others in losses:
        displacement = adapted(first, phi, alpha=alpha, steps=steps) - phi
        moved += [partial(_displaced, loss, displacement) for loss in others]
    return before, gradient_gram(moved, phi)


def summaries(gram: Gram, tasks: int) -> list[dict[str, Any]]:
    """Rows quantity, pairs, value, standard_error of a Gram matrix whose gradients lie task by task.

    pairs: "within" and "between" tasks and their "difference"; "by number", the same difference where the first
    minibatches of all tasks count as one task, and so on; "self", a gradient with itself.
    """
    gram, index = gram.cpu().double(), torch.arange(len(gram))
    task, number = index // (len(gram) // tasks), index % (len(gram) // tasks)
    rows = [{"quantity": "inner product", "pairs": "self", "value": float(gram.diagonal().mean())}]
    for quantity, matrix in (("inner product", gram), ("cosine", cosines(gram))):
        for pairs, estimate in vars(summarize(matrix, task)).items():
            rows.append({"quantity": quantity, "pairs": pairs, **asdict(estimate)})
        by_number = summarize(matrix, number).difference
        rows.append({"quantity": quantity, "pairs": "by number", **asdict(by_number)})
    return rows


def measure(item: tuple[Point, Characters], progress: Progress, *, tasks: int) -> tuple[list[dict[str, Any]], Gram]:
    """Rows of one point, before and after adaptation, and the Gram matrix before it."""
    point, characters = item
    run = point.job.run
    before, after = grams(
        losses_of(point, characters, tasks),
        point.phi,
        alpha=run.inner.learning_rate,
        steps=run.evaluation.sampling.steps,
    )
    where = {"variant": point.job.variant, "seed": run.seed, "iteration": point.iteration, "characters": characters}
    rows = [
        where | {"when": when} | row
        for when, gram in (("before", before), ("after", after))
        for row in summaries(gram, tasks)
    ]
    progress(1)
    return rows, before.cpu()


def pair_means(losses: Sequence[Loss], phi: Vector) -> dict[str, float]:
    """Means over pairs of different losses of their gradients' inner product and cosine, and over the losses of the
    squared norm."""
    gram = gradient_gram(losses, phi).double()
    cosine = cosines(gram)
    return {
        "inner product": float(gram.sum() - gram.trace()) / perm(len(losses), 2),
        "cosine": float(cosine.sum() - cosine.trace()) / perm(len(losses), 2),
        "squared norm": float(gram.diagonal().mean()),
    }


def step_effects(losses: Sequence[Loss], phi: Vector, alpha: float) -> list[dict[str, Any]]:
    """Rows direction, quantity, before, after of small steps phi - s u, all of the same length, on one task.

    With all its minibatches in every order, E[g_1 + … + g_k] is exact; u is what it has "beyond" k AvgGrad, the
    "opposite" of that, or "AvgGrad".
    """
    means = expected_inner_gradients(losses, phi, alpha, len(losses))
    update, avg_grad = means.sum(0), means[0]
    beyond = update - len(losses) * avg_grad
    length = STEP_SHARE * ablation.OUTER_STEP * alpha * update.norm()
    before = pair_means(losses, phi)
    rows = []
    for direction, u in (("beyond", beyond), ("opposite", -beyond), ("AvgGrad", avg_grad)):
        after = pair_means(losses, phi - length * u / u.norm())
        rows += [{"direction": direction, "quantity": q, "before": before[q], "after": after[q]} for q in before]
    return rows


def measure_steps(point: Point, progress: Progress, *, tasks: int) -> list[dict[str, Any]]:
    """Rows of `step_effects` on each task at one point."""
    run = point.job.run
    rows = []
    for task, losses in enumerate(losses_of(point, "train", tasks)):
        where = {"seed": run.seed, "iteration": point.iteration, "task": task}
        rows += [where | row for row in step_effects(losses, point.phi, run.inner.learning_rate)]
        progress(1)
    return rows


def changes(steps: pd.DataFrame) -> pd.DataFrame:
    """Means over tasks, seed by seed: columns seed, iteration, direction, quantity, value. Cosines: after less before;
    inner products and squared norms: the same relative to before."""
    by = ["direction", "quantity", "iteration", "seed"]
    mean = steps.groupby(by, sort=False)[["before", "after"]].mean().reset_index()
    unit = mean.before.abs().where(mean.quantity != "cosine", 1.0)
    return mean.assign(value=(mean.after - mean.before) / unit)[[*by, "value"]]


def measurements(table: pd.DataFrame, steps: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger. Judged: training characters before adaptation. Test characters, inner products along
    training, cosines of a step and the step the other way are told beside."""
    before = table[table.when == "before"].pivot_table(
        index="seed", columns=["quantity", "characters", "pairs", "variant", "iteration"], values="value"
    )
    start, end, joint = table.iteration.min(), table.iteration.max(), VARIANTS[0].name
    rows = []

    def add(case: str, role: str, values: pd.Series) -> None:
        rows.append(measurement("inner-product-rises", case, role, values))

    for characters, role in (("train", "check"), ("test", "beside")):
        found = before["cosine", characters, "difference"]
        for variant in LONGER:
            add(f"{variant}, {characters}, less g1's", role, found[variant, end] - found[joint, end])
            add(f"{variant}, {characters}, less at the start", role, found[variant, end] - found[variant, start])
    grouped, product = before["cosine", "train", "by number"], before["inner product", "train", "within"]
    of_all = {
        iteration: sum(grouped[variant, iteration] for variant in LONGER) / len(LONGER) for iteration in (start, end)
    }
    add("mean of the variants, less g1's", "control", of_all[end] - grouped[joint, end])
    add("mean of the variants, less at the start", "control", of_all[end] - of_all[start])
    for variant in (joint, *LONGER):
        change = product[variant, end] / product[variant, start] - 1
        add(f"{variant}, train, relative change of the inner product", "beside", change)
    judged = {("beyond", "inner product"): "check", ("AvgGrad", "inner product"): "control"}
    for (direction, quantity, iteration), part in changes(steps).groupby(["direction", "quantity", "iteration"]):
        case = f"{direction}, {quantity}, after {iteration} iterations"
        rows.append(
            measurement("inner-product-step", case, judged.get((direction, quantity), "beside"), part.value.dropna())
        )
    return rows


def gram_table(by_point: Iterable[tuple[Point, Gram]]) -> pd.DataFrame:
    """Long table of Gram matrices: columns variant, seed, iteration, row, column, inner_product, cosine."""
    parts = []
    for point, gram in by_point:
        cells = pd.DataFrame(
            [
                (row, column, float(gram[row, column]), float(cosine))
                for row, line in enumerate(cosines(gram.double()))
                for column, cosine in enumerate(line)
            ],
            columns=["row", "column", "inner_product", "cosine"],
        )
        parts.append(cells.assign(variant=point.job.variant, seed=point.job.run.seed, iteration=point.iteration))
    return pd.concat(parts)


def run(context: Context) -> Result:
    """Measure points of the variants' runs on training and on test characters; take Reptile's steps apart."""
    scale = SCALES[context.profile]
    every = points(context, VARIANTS)
    items = [(point, characters) for point in spread(every, scale.points) for characters in get_args(Characters)]
    found = context.workers.map(NAME, partial(measure, tasks=scale.tasks), items, unit=" points")
    table = pd.DataFrame([row for rows, _ in found for row in rows])

    both_ends = spread(every, 2)
    ends = [point for point in both_ends if point.job.variant == REPTILE.name]
    work = partial(measure_steps, tasks=scale.step_tasks)
    effects = context.workers.map(f"{NAME}, steps", work, ends, sizes=[scale.step_tasks] * len(ends), unit=" tasks")
    steps = pd.DataFrame([row for rows in effects for row in rows])

    grams_of = {point: gram for (point, part), (_, gram) in zip(items, found, strict=True) if part == "train"}
    first = [point for point in both_ends if point.job.run.seed == both_ends[0].job.run.seed]
    shown = [p for p in first if p in ends or (p.is_last and p.job.variant == FOMAML.name)]
    tables = {
        NAME: table,
        f"{NAME}_intervals": over_seeds(table, ["variant", "characters", "when", "quantity", "pairs", "iteration"]),
        f"{NAME}_steps": steps,
        f"{NAME}_changes": over_seeds(changes(steps), ["direction", "quantity", "iteration"]),
        f"{NAME}_gram": gram_table((point, grams_of[point]) for point in shown),
    }
    return Result(tables, pd.DataFrame(measurements(table, steps)))


def settings(context: Context) -> dict[str, Any]:
    return asdict(SCALES[context.profile]) | {
        "variants": {variant.name: variant.label for variant in VARIANTS},
        "n_way": ablation.N_WAY,
        "minibatches": MINIBATCHES,
        "batch": ablation.BATCH,
        "learning_rate": ablation.LEARNING_RATE,
        "adaptation_steps": ablation.EVALUATION_STEPS,
        "outer_step": ablation.OUTER_STEP,
        "step_share": STEP_SHARE,
        "seeds": ablation.scale_of(context).seeds,
    }


EXPERIMENT = Experiment(
    name=NAME,
    shows="whether Reptile raises the inner product between gradients of minibatches of one task",
    takes={"smoke": "half a minute", "quick": "a minute after the ablation", "paper": "20 minutes after it"},
    claims=CLAIMS,
    settings=settings,
    run=run,
)


def _displaced(loss: Loss, displacement: Vector, phi: Vector) -> Float[Tensor, ""]:
    """The loss at phi + displacement: its gradient in phi at one phi is that at each task's own parameters."""
    return loss(phi + displacement)
