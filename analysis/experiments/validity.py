"""How far the Taylor series holds where it is used: the real ReLU network, the real learning rate, along training.

The theorems are tested on smooth losses at learning rates that go to 0. Here the share of g_i - g_bar_i that the terms
of the series explain, 1 - |g_i - g_bar_i - terms|^2 / |g_i - g_bar_i|^2, is measured at multiples of the learning rate
of figure 3, beside alpha times the largest eigenvalue of the minibatch's Hessian. Kinks of ReLU have no term in the
series: the same network with softplus, at the same phi, shows what they do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import ablation
from analysis.experiments.along_training import Point, points, spread
from analysis.experiments.post import beyond
from analysis.theory.curvature import extreme_eigenvalues
from analysis.theory.derivatives import Loss, Vector
from analysis.theory.taylor import evaluate_series, inner_gradient_terms, inner_gradients
from analysis.workers import Progress
from reptile_core.meta_gradients import total

NAME = "validity"
VARIANT = total(4)  # Reptile with four steps
FACTORS = tuple(2.0**n for n in (-24, -20, -16, -12, -9, *range(-6, 3)))  # of figure 3's learning rate, 1 among them
ACTIVATIONS = ("relu", "softplus")
ORDERS = (1, 2)
EIGENVALUE_TOLERANCE = 1e-2  # relative: a hundredth is finer than the eye on a logarithmic axis


@dataclass(frozen=True)
class Scale:
    """Tasks at each point, and how many points of a run, both ends among them."""

    tasks: int
    points: int


SCALES = {"smoke": Scale(1, 2), "quick": Scale(2, 2), "paper": Scale(10, 5)}
CLAIM = Claim(
    "taylor-validity",
    "N",
    "experiment",
    "at the learning rate of figure 3 the first-order term explains most of g_i - g_bar_i, i = 2 … 4, on the real "
    "network, at the start and at the end of training",
    "explained share of g_i - g_bar_i",
    0.5,
    1.0,
    "more than half of the squared norm is most of it; 1 is all",
    "the first-order term with the opposite sign",
    paper=beyond(
        r"how much of $g_i - \bar g_i$ section 5.1's $-\alpha \bar H_i \sum_{j<i} \bar g_j$ is at the $\alpha$ that is "
        "used"
    ),
)


def explained_shares(losses: Sequence[Loss], phi: Vector, alphas: Sequence[float]) -> list[dict[str, float]]:
    """Rows alpha, i, order, explained for i = 2 … k; order -1 is the first-order term with the opposite sign."""
    series = inner_gradient_terms(losses, phi, max(ORDERS))
    rows = []
    for alpha in alphas:
        for i, (g, terms) in enumerate(zip(inner_gradients(losses, phi, alpha), series, strict=True), start=1):
            if i == 1:
                continue  # g_1 is g_bar_1
            change = g - terms[0]
            for order in (-1, *ORDERS):
                kept = terms if order > 0 else [terms[0], -terms[1]]
                rest = g - evaluate_series(kept, alpha, abs(order))
                explained = float(1 - rest.square().sum() / change.square().sum())
                rows.append({"alpha": alpha, "i": i, "order": order, "explained": explained})
    return rows


def measure(item: tuple[Point, int], progress: Progress) -> list[dict[str, Any]]:
    """Explained shares of one task at one point, each with alpha times the largest eigenvalue of the last Hessian."""
    point, task = item
    run, phi = point.job.run, point.phi.double()
    where = {"variant": point.job.variant, "seed": run.seed, "iteration": point.iteration, "task": task}
    rows = []
    for activation in ACTIVATIONS:
        losses = point.losses(run.sampling, task, dtype=torch.float64, activation=activation)
        generator = torch.Generator().manual_seed(task)
        pairs = extreme_eigenvalues(losses[-1], phi, count=1, tolerance=EIGENVALUE_TOLERANCE, generator=generator)
        largest = float(pairs.values[0])
        for row in explained_shares(losses, phi, [factor * run.inner.learning_rate for factor in FACTORS]):
            rows.append(where | {"activation": activation} | row | {"sharpness": row["alpha"] * largest})
    progress(1)
    return rows


def measurements(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger at the learning rate of figure 3: means over tasks, intervals over seeds."""
    ends = {"start": table.iteration.min(), "end": table.iteration.max()}
    used = table[(table.alpha == ablation.LEARNING_RATE) & (table.activation == "relu")]
    return [
        measurement(CLAIM.id, f"g_{i}, {when}", role, part.groupby("seed").explained.mean())
        for role, order in (("check", 1), ("control", -1))
        for when, iteration in ends.items()
        for i, part in used[(used.order == order) & (used.iteration == iteration)].groupby("i")
    ]


def run(context: Context) -> Result:
    scale = SCALES[context.profile]
    chosen = spread(points(context, [VARIANT]), scale.points)
    items = [(point, task) for point in chosen for task in range(scale.tasks)]
    table = pd.DataFrame([row for rows in context.workers.map(NAME, measure, items, unit=" tasks") for row in rows])
    return Result({NAME: table}, pd.DataFrame(measurements(table)))


def settings(context: Context) -> dict[str, Any]:
    return {
        "variant": VARIANT.name,
        "learning_rate": ablation.LEARNING_RATE,
        "batch": ablation.BATCH,
        "seeds": ablation.scale_of(context).seeds,
        "tasks": SCALES[context.profile].tasks,
        "dtype": "float64",
    }


EXPERIMENT = Experiment(
    name=NAME,
    shows="section 5.1 where it is used: how much of g_i - g_bar_i the series explains on the ReLU network",
    takes={"smoke": "seconds", "quick": "a minute after the ablation", "paper": "an hour after it"},
    claims=(CLAIM,),
    settings=settings,
    run=run,
)
