"""Reptile beside MAML, and phi - W as a gradient for Adam: learning curves at figure 3's settings with k = 4.

Reptile (g_1 + … + g_k, and their average), first-order MAML (g_k), MAML with its second derivatives and joint training
(g_1), with the same inner loop and the same outer step; and Reptile with Adam outside instead of the plain step. The
plain runs are figure 3's and are reused where they are there.

The paper gives no learning rate for Adam outside. It is chosen from a grid by the final accuracy of runs of their own,
from a seed that is not judged: other characters held out, another start. The plain step is figure 3's, not chosen here.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import ablation, post, sweeps
from analysis.experiments.ablation import CHANCE
from analysis.experiments.sweeps import Scale
from analysis.runs import Job, Outcome
from analysis.tables import over_seeds
from reptile_core.meta_gradients import average, last, total
from reptile_core.training import Outer, Run

NAME = "outer"
K = 4
PLAIN = {
    "Reptile": total(K),
    "Reptile, average": average(K),
    "FOMAML": last(K),
    "joint training": last(1),
}
MAML, ADAM = "MAML", "Reptile, Adam outside"
METHODS = (*PLAIN, MAML, ADAM)
ADAM_STEPS = (3e-4, 1e-3, 3e-3)  # around torch's default, 1e-3
VALIDATION_SEED = 1_000  # far from those that are judged
SCALES = ablation.SCALES  # so that its runs are reused
VALIDATION_TASKS = {"smoke": 2, "quick": 50, "paper": 500}
CLAIMS = (
    Claim(
        "faster-than-maml",
        "B",
        "experiment",
        "Reptile reaches a given accuracy in fewer meta-iterations than MAML",
        "meta-iterations that MAML needs less those that Reptile needs, to the highest accuracy that both reach, "
        "as a share of the run",
        0.05,
        1.0,
        "a twentieth of the run: what one would call faster",
        "joint training in Reptile's place",
        paper=post.FASTER,
    ),
    Claim(
        "meta-adam",
        "B",
        "experiment",
        "phi - W fed to Adam as a gradient works at least as well as the plain step at the same budget",
        "final accuracy, Adam outside less the plain step",
        -0.02,
        1.0,
        "two points of accuracy are less than one would change an optimizer for",
        "joint training with the plain step in Adam's place",
        paper=post.ADAM,
    ),
)


def configure(method: str, scale: Scale, seed: int, *, adam_step: float) -> Run:
    """Figure 3's run of g_1 + … + g_k, changed as the method has it. adam_step: Adam's learning rate, annealed."""
    run = ablation.configure(PLAIN.get(method, total(K)), scale, seed)
    if method == MAML:
        return replace(run, weights="maml")
    return replace(run, outer=Outer(adam_step, optimizer="adam")) if method == ADAM else run


def validation(context: Context, scale: Scale) -> pd.DataFrame:
    """Adam outside, each step of the grid, from the seed set aside: columns step, accuracy."""
    scale = replace(scale, every=scale.iterations, tasks=VALIDATION_TASKS[context.profile])
    named = [(f"{step:g}", configure(ADAM, scale, VALIDATION_SEED, adam_step=step)) for step in ADAM_STEPS]
    outcomes = sweeps.train(context, f"{NAME}: choosing Adam's step", named)
    accuracy = sweeps.by_seed(sweeps.curves(NAME, outcomes), diverged=CHANCE).loc[VALIDATION_SEED]
    ends = [accuracy.get((name, scale.iterations), CHANCE) for name, _ in named]
    return pd.DataFrame({"step": ADAM_STEPS, "accuracy": ends})


def reached(curve: pd.Series, target: float) -> float:
    """Where a curve (accuracy by iteration) first reaches the target, on straight lines between measurements; NaN if it
    never does."""
    iterations, values = curve.index.to_numpy(dtype=float), curve.to_numpy()
    at = np.flatnonzero(values >= target)
    if not at.size:
        return float("nan")
    i = int(at[0])
    if i == 0:
        return float(iterations[0])
    rise = (target - values[i - 1]) / (values[i] - values[i - 1])
    return float(iterations[i - 1] + rise * (iterations[i] - iterations[i - 1]))


def races(curves: pd.DataFrame) -> pd.DataFrame:
    """Each method against MAML from each seed: columns variant, seed, target (the highest accuracy that both reach),
    iterations and maml_iterations to it."""
    accuracy = sweeps.by_seed(curves)
    rows = []
    for variant in METHODS:
        for seed, row in accuracy.iterrows():
            mine, maml = (row[name].dropna().sort_index() for name in (variant, MAML))
            target = min(mine.max(), maml.max())
            needed = {"iterations": reached(mine, target), "maml_iterations": reached(maml, target)}
            rows.append({"variant": variant, "seed": seed, "target": target, **needed})
    return pd.DataFrame(rows)


def costs(outcomes: Mapping[Job, Outcome]) -> pd.DataFrame:
    """Per meta-iteration of a variant: gradients of a minibatch, Hessian-vector products, and seconds with evaluations
    (the least of the seeds, as whatever else a machine does only adds to them)."""
    rows = []
    for job, outcome in outcomes.items():
        k = job.run.sampling.steps
        products = k - 1 if job.run.weights == "maml" else 0
        seconds = outcome.seconds / max(outcome.iteration, 1)
        rows.append({"variant": job.variant, "gradients": k, "products": products, "seconds": seconds})
    return pd.DataFrame(rows).groupby("variant", sort=False).min().reset_index()


def measurements(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger: every comparison is of the same seed, that is of the same tasks."""
    race = races(curves).set_index(["variant", "seed"])
    ahead = (race.maml_iterations - race.iterations) / curves.iteration.max()
    final = sweeps.by_seed(curves, diverged=CHANCE).xs(curves.iteration.max(), axis="columns", level="iteration")
    return [
        measurement("faster-than-maml", "Reptile", "check", ahead["Reptile"]),
        measurement("faster-than-maml", "joint training", "control", ahead["joint training"]),
        measurement("meta-adam", "Adam", "check", final[ADAM] - final["Reptile"]),
        measurement("meta-adam", "joint training", "control", final["joint training"] - final["Reptile"]),
    ]


def report(race: pd.DataFrame, cost: pd.DataFrame) -> list[str]:
    """What each method and MAML need to the highest accuracy that both reach: iterations, gradients and seconds."""
    mean = race.groupby("variant", sort=False)[["target", "iterations", "maml_iterations"]].mean()
    lines = ["to the highest accuracy that both it and MAML reach (means over seeds; seconds with evaluations)"]
    by = cost.set_index("variant")
    for row in mean.drop(MAML).itertuples():
        spent = [
            f"{needed:,.0f} iterations, {needed * by.gradients[name]:,.0f} gradients"
            + (f" and {needed * by.products[name]:,.0f} Hessian products" if by.products[name] else "")
            + f", {needed * by.seconds[name]:,.1f} s"
            for name, needed in ((row.Index, row.iterations), (MAML, row.maml_iterations))
        ]
        lines.append(f"  {100 * row.target:.1f} %: {row.Index} {spent[0]}; MAML {spent[1]}")
    return lines


def run(context: Context) -> Result:
    """Choose Adam's step, then train all methods over seeds."""
    scale = sweeps.scale_of(SCALES, context)
    chosen = validation(context, scale)
    step = float(chosen.step[chosen.accuracy.idxmax()])  # of equals the smallest
    outcomes = sweeps.train(
        context,
        NAME,
        [(m, configure(m, scale, seed, adam_step=step)) for seed in range(scale.seeds) for m in METHODS],
    )
    curves, cost = sweeps.curves(NAME, outcomes), costs(outcomes)
    race = races(curves)
    tables = {
        NAME: curves,
        f"{NAME}_intervals": over_seeds(curves[curves.quantity == "accuracy"], ["variant", "iteration"]),
        f"{NAME}_validation": chosen,
        f"{NAME}_races": race,
        f"{NAME}_costs": cost,
    }
    lines = [
        f"Adam outside: step {step:g} chosen of {', '.join(f'{s:g}' for s in ADAM_STEPS)}",
        *report(race, cost),
    ]
    return Result(tables, pd.DataFrame(measurements(curves)), lines)


def settings(context: Context) -> dict[str, Any]:
    common = {name: value for name, value in ablation.SETTINGS.items() if name not in ("variants", "train_shots")}
    return asdict(sweeps.scale_of(SCALES, context)) | common | {
        "k": K,
        "methods": list(METHODS),
        "adam_steps": list(ADAM_STEPS),
        "validation": {"seed": VALIDATION_SEED, "tasks": VALIDATION_TASKS[context.profile]},
    }  # fmt: skip


EXPERIMENT = Experiment(
    name=NAME,
    shows="Reptile beside MAML at figure 3's settings, and phi - W as a gradient for Adam",
    takes={
        "smoke": "half a minute",
        "quick": "about 1.5 minutes after the ablation",
        "paper": "half an hour, and half an hour a seed, after the ablation (an estimate)",
    },
    claims=CLAIMS,
    settings=settings,
    run=run,
)
