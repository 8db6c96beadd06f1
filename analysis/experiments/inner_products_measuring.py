"""Measuring inner products of minibatch gradients at one point of a run, and steps from it."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from math import perm
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.experiments.shared.trained_points import TrainedPoint
from analysis.paper import figure_3
from analysis.runs.workers import Progress
from analysis.theory.derivatives import Loss, Vector, gradient
from analysis.theory.expectations import SampleMean, expected_inner_gradients
from analysis.theory.inner_products import Gram, cosines, gradient_gram, summarize
from analysis.theory.losses import on_minibatch
from reptile_core.losses import CrossEntropy
from reptile_core.philox import Purpose
from reptile_core.tasks import Sampling
from reptile_core.training import build_network

Part = Literal["train", "test"]
MINIBATCHES = 4  # of a task: as many disjoint ones of 25 as 20 drawings of 5 characters give
SAMPLING = Sampling(figure_3.N_WAY, figure_3.SHOTS * MINIBATCHES, figure_3.BATCH, MINIBATCHES)
# Share of figure 3's outer step on the same task: small, yet far above float32's round-off.
STEP_SHARE = 0.1


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


def adapted(loss: Loss, phi: Vector, *, alpha: float, steps: int) -> Vector:
    """Return phi after `steps` steps of SGD on one minibatch."""
    for _ in range(steps):
        phi = phi - alpha * gradient(loss, phi)
    return phi


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


def task_of(gram: Gram, tasks: int) -> Tensor:
    """Return the task of each gradient of a Gram matrix whose gradients are in task order."""
    return torch.arange(len(gram)) // (len(gram) // tasks)


def rise(start: Gram, end: Gram, tasks: int) -> SampleMean:
    """Return how much the cosine within tasks, less that between them, rises from start to end.

    Its error over tasks is that of the change, since both matrices are of the same tasks.
    """
    change = cosines(end.cpu().double()) - cosines(start.cpu().double())
    return summarize(change, task_of(change, tasks)).difference


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


def _displaced(loss: Loss, displacement: Vector, phi: Vector) -> Float[Tensor, ""]:
    """Return the loss at phi + displacement.

    Its gradient at one common phi is the gradient at each task's own parameters.
    """
    return loss(phi + displacement)
