"""Does rho predict the early curves? At an equal step along AvgGrad, sums w_1 g_1 + … + w_k g_k differ in the rest.

Section 5 gives the expected update of a sum: AvgGrad times sum w_i, less alpha AvgGradInner times sum w_i (i-1). So
rho = sum w_i (i-1) / sum w_i is how far a variant moves towards inner products per unit of AvgGrad. Here every variant
has k = 4 and eps sum w_i = 1, as g1 + g2 + g3 + g4 has in figure 3, and rho goes from -1/2 to 4. Pairs of equal rho
differ in sum w_i², by which independent noise in the g_i enters. The outer step is not annealed: only the early curve
is asked for.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import ablation, sweeps
from analysis.experiments.ablation import CHANCE
from analysis.experiments.post import beyond
from analysis.experiments.sweeps import Scale
from analysis.tables import over_seeds, spearman
from reptile_core.meta_gradients import Variant, total
from reptile_core.training import Outer, Run

NAME = "rho"
K = 4
STEP = ablation.OUTER_STEP * K  # eps sum w_i of figure 3's longest sum


def rho(weights: Sequence[float]) -> float:
    """sum w_i (i-1) / sum w_i."""
    return sum(i * w for i, w in enumerate(weights)) / sum(weights)


def noise(weights: Sequence[float]) -> float:
    """sum w_i² / (sum w_i)²: the variance of independent noise in the g_i, per unit of AvgGrad squared."""
    return sum(w * w for w in weights) / sum(weights) ** 2


def unit(name: str, label: str, *w: float) -> Variant:
    """A variant of K gradients whose weights are scaled to sum to 1."""
    return Variant(name, tuple(x / sum(w) for x in w), label)


VARIANTS = (
    unit("(3g1-g2)/2", r"\frac{1}{2}(3g_1 - g_2)", 3, -1, 0, 0),
    unit("g1", "g_1", 1, 0, 0, 0),
    unit("(g1+g2)/2", r"\frac{1}{2}(g_1 + g_2)", 1, 1, 0, 0),
    unit("g2", "g_2", 0, 1, 0, 0),
    unit("(g1+g2+g3)/3", r"\frac{1}{3}(g_1 + g_2 + g_3)", 1, 1, 1, 0),
    unit("(g1+g4)/2", r"\frac{1}{2}(g_1 + g_4)", 1, 0, 0, 1),
    unit("(g1+g2+g3+g4)/4", r"\frac{1}{4}(g_1 + g_2 + g_3 + g_4)", 1, 1, 1, 1),
    unit("g3", "g_3", 0, 0, 1, 0),
    unit("(g2+g3+g4)/3", r"\frac{1}{3}(g_2 + g_3 + g_4)", 0, 1, 1, 1),
    unit("g4", "g_4", 0, 0, 0, 1),
    unit("2g4-g3", "2g_4 - g_3", 0, 0, -1, 2),
)
SCALES = {
    "smoke": Scale(iterations=4, every=2, tasks=2, seeds=2),
    "quick": Scale(iterations=100, every=50, tasks=12, seeds=3),
    "paper": Scale(iterations=2_000, every=200, tasks=100, seeds=5),
}
CLAIMS = (
    Claim(
        "ablation-rho",
        "N",
        "experiment",
        "rho predicts the order of the early curves at an equal step along AvgGrad",
        "Spearman's correlation of rho with the mean gain in accuracy early in training",
        0.62,
        1.0,
        "what 11 variants in random order reach or exceed once in 40 times",
        "the noise, -sum w_i², in the place of rho",
        paper=beyond(
            r"per unit of AvgGrad the update $\sum_i w_i g_i$ holds $-\alpha \rho$ of AvgGradInner, with "
            r"$\rho = \frac{\sum_i w_i (i-1)}{\sum_i w_i}$"
        ),
    ),
)


def configure(variant: Variant, scale: Scale, seed: int) -> Run:
    """The run of figure 3's g1 + g2 + g3 + g4, with other weights and no annealing."""
    base = ablation.configure(total(K), scale, seed)
    return replace(base, weights=variant.weights, outer=Outer(STEP, final=STEP))


def gains(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy at the measured iterations less that at the start: columns seed, variant, rho, noise, value.

    A run that diverged classifies at chance from there on.
    """
    accuracy = sweeps.by_seed(curves, diverged=CHANCE)
    rows = []
    for variant in VARIANTS:
        mine = accuracy[variant.name]
        for seed, gain in (mine.loc[:, mine.columns > 0].mean(axis=1) - mine[0]).items():
            rows.append(
                {
                    "seed": seed, "variant": variant.name, "rho": rho(variant.weights),
                    "noise": noise(variant.weights), "value": gain,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def correlations(gains: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of the gains with rho and with less noise: a row for each seed."""
    return pd.DataFrame(
        {
            seed: {
                "rho": spearman(part.rho, part.value),
                "noise": spearman(-part.noise, part.value),
            }
            for seed, part in gains.groupby("seed")
        }
    ).T.rename_axis("seed")


def measurements(gains: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger."""
    found = correlations(gains)
    return [
        measurement("ablation-rho", name, role, found[name], least=-1.0, most=1.0)
        for name, role in (("rho", "check"), ("noise", "control"))
    ]


def pairs(gains: pd.DataFrame) -> pd.Series:
    """Mean over seeds of the gain of the quieter variant less that of the noisier one, by their common rho."""
    mean = gains.groupby("variant", sort=False)[["rho", "noise", "value"]].mean().sort_values("noise")
    by_rho = mean.groupby(mean.rho.round(9)).value
    return (by_rho.first() - by_rho.last())[by_rho.size() == 2]


def run(context: Context) -> Result:
    """Train all variants over seeds."""
    scale = sweeps.scale_of(SCALES, context)
    outcomes = sweeps.train(
        context, NAME, [(v.name, configure(v, scale, seed)) for seed in range(scale.seeds) for v in VARIANTS]
    )
    curves = sweeps.curves(NAME, outcomes)
    gained = gains(curves)
    tables = {
        NAME: curves,
        f"{NAME}_intervals": over_seeds(curves[curves.quantity == "accuracy"], ["variant", "iteration"]),
        f"{NAME}_gains": over_seeds(gained, ["variant", "rho", "noise"]),
        f"{NAME}_correlations": correlations(gained).reset_index(),
    }
    lines = [
        f"rho = {value:g}: the quieter of two variants gains {100 * difference:+.1f} points more"
        for value, difference in pairs(gained).items()
    ]
    return Result(tables, pd.DataFrame(measurements(gained)), lines)


def settings(context: Context) -> dict[str, Any]:
    common = {name: value for name, value in ablation.SETTINGS.items() if name not in ("variants", "outer_step")}
    return asdict(sweeps.scale_of(SCALES, context)) | common | {
        "train_shots": ablation.SHOTS * K,
        "k": K,
        "outer_step": STEP,
        "variants": {v.name: {"weights": v.weights, "label": v.label} for v in VARIANTS},
    }  # fmt: skip


EXPERIMENT = Experiment(
    name=NAME,
    shows="whether rho = sum w_i (i-1) / sum w_i predicts how fast a sum of inner gradients learns",
    takes={"smoke": "seconds", "quick": "over a minute", "paper": "about an hour (an estimate)"},
    claims=CLAIMS,
    settings=settings,
    run=run,
)
