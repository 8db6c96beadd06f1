"""The variance of meta-gradients relative to their squared mean, E|u - E u|^2 / |E u|^2, over tasks and minibatches.

The blog: including more gradients learns faster "due to variance reduction", and Reptile converges faster than MAML
"since the update has lower variance". Here all updates are measured at the same phi, along one run, and on the same
tasks; then against how fast each of them learned in figure 3.

From n independent tasks with updates u_1 … u_n, V = sum_t |u_t - u_bar|^2 / (n - 1) is an unbiased estimate of
E|u - E u|^2, and |u_bar|^2 - V / n of |E u|^2: the mean's own noise is taken off. Their ratio |E u|^2 / E|u - E u|^2,
the signal in units of the noise, is what is averaged over the points of a run and compared: unlike its inverse it is
finite and in order where no signal is left.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isclose
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import ablation, post
from analysis.experiments.along_training import Point, points, spread
from analysis.tables import over_seeds, spearman
from analysis.theory.expectations import monte_carlo
from analysis.workers import Progress
from reptile_core.inner_loop import InnerOptimizer, Loss, Phi, inner_loop
from reptile_core.meta_gradients import Variant, average, figure_3, last, maml, total
from reptile_core.networks import CrossEntropy, Minibatch
from reptile_core.philox import Purpose
from reptile_core.training import build_network

NAME = "variance"
ALONG = total(4)  # the run along whose points every update is measured
STEPS = range(2, ALONG.k + 1)
MAML = tuple(f"MAML, k = {k}" for k in STEPS)
UPDATES = (*(variant.name for variant in figure_3(ALONG.k)), *MAML)
# Variants whose expected update has the same share of AvgGrad as g_1: an average has its sum's relative variance and
# takes g_k's step, so that no other length of step is compared.
EQUAL_STEP = tuple(variant for variant in figure_3(ALONG.k) if isclose(sum(variant.weights), 1))
EARLY = 0.2  # of training: beyond, the paper's curves lie close together


@dataclass(frozen=True)
class Scale:
    """Tasks at each point, and how many points of a run, both ends among them."""

    tasks: int
    points: int


SCALES = {"smoke": Scale(3, 2), "quick": Scale(32, 3), "paper": Scale(200, 9)}
LOWER = (
    0.05,
    100.0,
    "at least a twentieth lower, over seeds; above 1 where the other's signal is estimated below 0. At first the log "
    "of the quotient was taken, which such an estimate leaves undefined",
)
CLAIMS = (
    Claim(
        "variance-last",
        "B, P6.2",
        "experiment",
        "the relative variance of g_1 + … + g_k is lower than that of g_k, k = 2 … 4",
        "1 - (relative variance of the sum) / (that of the last)",
        *LOWER,
        "the average in the place of the last: the sum but for its length",
        paper=post.MORE,
    ),
    Claim(
        "variance-maml",
        "B",
        "experiment",
        "the relative variance of Reptile's update is lower than that of MAML's, k = 2 … 4",
        "1 - (relative variance of Reptile) / (that of MAML)",
        *LOWER,
        "the average in the place of MAML: Reptile but for its length",
        paper=post.FASTER,
    ),
    Claim(
        "variance-speed",
        "B",
        "experiment",
        "lower relative variance goes with faster learning, at an equal step along AvgGrad",
        "Spearman's correlation of less relative variance with the mean gain in accuracy early in training",
        0.78,
        1.0,
        "what 7 variants in random order reach or exceed once in 40 times; with few tasks the signals of g_3 and g_4 "
        "are not told from 0, nor is their order, so that it is judged at the paper's scale alone: so bound after a "
        "quick run gave -0.37 [-0.82, 0.07], which would have refuted it",
        "each variant with another's relative variance: mean over all shifts along the list",
        least="paper",
        paper=f"{post.MORE} {post.FASTER}",
    ),
)


def updates(
    loss: Loss, phi: Phi, minibatches: Sequence[Minibatch], optimizer: InnerOptimizer
) -> Float[Tensor, "updates P"]:
    """The updates named in UPDATES on one task: figure 3's sums, all from one inner loop, and MAML's gradients."""
    g = torch.stack([step.gradient for step in inner_loop(loss, phi, minibatches, optimizer)])
    variants = figure_3(len(minibatches))
    weights = g.new_tensor([variant.weights + (0.0,) * (len(g) - variant.k) for variant in variants])
    mamls = [maml(loss, phi, minibatches[:k], optimizer)[0] / optimizer.learning_rate for k in STEPS]
    return torch.cat([weights @ g, torch.stack(mamls)])


def signal_and_noise(
    mean: Float[Tensor, "updates P"], standard_error: Float[Tensor, "updates P"], n: int
) -> tuple[Float[Tensor, " updates"], Float[Tensor, " updates"]]:
    """Unbiased estimates of |E u|^2 and E|u - E u|^2 from the mean of n independent u and its standard errors."""
    error = standard_error.double().square().sum(-1)  # V / n
    return mean.double().square().sum(-1) - error, n * error


def measure(point: Point, progress: Progress, *, tasks: int) -> list[dict[str, Any]]:
    """Rows of every update at one point: `signal` |E u|^2 and `noise` E|u - E u|^2."""
    run, pool = point.job.run, point.pool("train")
    loss, phi = CrossEntropy(build_network(run), reduction=run.inner.reduction), point.phi
    drawn = pool.sample(
        run.sampling, seed=run.seed, purpose=Purpose.ANALYSIS, iteration=point.iteration, task=torch.arange(tasks)
    )
    addresses = iter(range(tasks))

    def draw() -> Tensor:
        minibatches = [pool.minibatch(batch) for batch in drawn[next(addresses)].minibatches]
        progress(1)
        return updates(loss, phi, minibatches, run.inner.build())

    signal, noise = signal_and_noise(*monte_carlo(draw, tasks), tasks)
    return [
        {"update": name, "seed": run.seed, "iteration": point.iteration, "signal": s, "noise": v, "ratio": s / v}
        for name, s, v in zip(UPDATES, signal.tolist(), noise.tolist(), strict=True)
    ]


def ratios(table: pd.DataFrame) -> pd.Series:
    """|E u|^2 / E|u - E u|^2 by (update, seed), the mean over the run: the inverse of the relative variance."""
    return table.groupby(["update", "seed"], sort=False).ratio.mean()


def intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The ratios by update and iteration, and by update their means over the run, where iteration is NaN: columns
    update, iteration, mean, low, high, seeds."""
    along = over_seeds(table.rename(columns={"ratio": "value"}), ["update", "iteration"])
    return pd.concat([along, over_seeds(ratios(table).rename("value").reset_index(), ["update"])])


def early_gains(curves: pd.DataFrame) -> pd.Series:
    """Mean accuracy early in training (at least two measurements) less that at the start, by (variant, seed)."""
    accuracy = curves[curves.quantity == "accuracy"].pivot_table(
        index=["variant", "seed"], columns="iteration", values="value"
    )
    until = max(EARLY * accuracy.columns[-1], accuracy.columns[2])
    return accuracy.loc[:, (accuracy.columns > 0) & (accuracy.columns <= until)].mean(axis=1) - accuracy[0]


def speeds(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Columns variant, seed, ratio, gain: figure 3's variants."""
    ratio, gain = ratios(table), early_gains(curves)
    return pd.DataFrame(
        {"variant": variant.name, "seed": seed, "ratio": value, "gain": gain[variant.name, seed]}
        for variant in figure_3(ALONG.k)
        for seed, value in ratio[variant.name].items()
    )


def correlations(speeds: pd.DataFrame, variants: Sequence[Variant], *, shift: int = 0) -> pd.Series:
    """Spearman's correlation of less relative variance with the gain among the variants, by seed; with `shift`, of each
    one's gain with the relative variance of the variant so many places before it."""
    mine = speeds[speeds.variant.isin([variant.name for variant in variants])]
    return pd.Series({seed: spearman(np.roll(part.ratio, shift), part.gain) for seed, part in mine.groupby("seed")})


def measurements(table: pd.DataFrame, speeds: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger: every comparison is on the same tasks at the same phi."""
    ratio = ratios(table)
    rows = []
    for k, name in zip(STEPS, MAML, strict=True):
        mine = ratio[total(k).name]
        for claim, rival in (("variance-last", last(k).name), ("variance-maml", name)):
            rows.append(measurement(claim, f"k = {k}", "check", 1 - ratio[rival] / mine))
            rows.append(measurement(claim, f"k = {k}", "control", 1 - ratio[average(k).name] / mine))
    shifted = [correlations(speeds, EQUAL_STEP, shift=shift) for shift in range(1, len(EQUAL_STEP))]
    for case, role, values in (
        ("equal step", "check", correlations(speeds, EQUAL_STEP)),
        ("equal step", "control", sum(shifted) / len(shifted)),
        ("every variant", "beside", correlations(speeds, figure_3(ALONG.k))),
    ):
        rows.append(measurement("variance-speed", case, role, values, least=-1.0, most=1.0))
    return rows


def run(context: Context) -> Result:
    """Measure all updates along the run of ALONG; compare with the learning curves of figure 3."""
    scale = SCALES[context.profile]
    curves = ablation.table(context.train(ablation.NAME, ablation.jobs(ablation.scale_of(context), context)))
    chosen = spread(points(context, [ALONG]), scale.points)
    work = partial(measure, tasks=scale.tasks)
    found = context.workers.map(NAME, work, chosen, sizes=[scale.tasks] * len(chosen), unit=" tasks")
    table = pd.DataFrame([row for rows in found for row in rows])
    speed = speeds(table, curves)
    tables = {NAME: table, f"{NAME}_intervals": intervals(table), f"{NAME}_speed": speed}
    return Result(tables, pd.DataFrame(measurements(table, speed)))


def settings(context: Context) -> dict[str, Any]:
    return asdict(SCALES[context.profile]) | {
        "along": ALONG.name,
        "n_way": ablation.N_WAY,
        "batch": ablation.BATCH,
        "learning_rate": ablation.LEARNING_RATE,
        "early": EARLY,
        "seeds": ablation.scale_of(context).seeds,
        "variants": {variant.name: variant.label for variant in figure_3(ALONG.k)},
        "equal_step": [variant.name for variant in EQUAL_STEP],
    }


EXPERIMENT = Experiment(
    name=NAME,
    shows="the relative variance of sums, last gradients and MAML at the same phi, and whether it predicts speed",
    takes={"smoke": "seconds", "quick": "under a minute after the ablation", "paper": "half an hour after it"},
    claims=CLAIMS,
    settings=settings,
    run=run,
)
