"""Figure 3 (section 6.2): learning curves of the sums of inner gradients g_1 … g_k used as the meta-gradient.

Omniglot 5-way 5-shot, plain SGD in both loops, k disjoint minibatches of 25, learning rate 0.003 on the summed loss,
outer step 0.25 annealed linearly to 0 (an average divides by k), evaluation after 5 steps of batch 25.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.experiment import Context, Experiment, Result
from analysis.runs import Job, Outcome, Source
from analysis.tables import over_seeds, tidy
from reptile_core.meta_gradients import Variant, figure_3
from reptile_core.tasks import Sampling
from reptile_core.training import Evaluation, Inner, Outer, Run

NAME = "ablation"
N_WAY = SHOTS = 5
BATCH = 25
LEARNING_RATE = 0.003  # on the sum over a minibatch, as the authors' code minimizes it: 0.075 on the mean
OUTER_STEP = 0.25
EVALUATION_STEPS = 5


@dataclass(frozen=True)
class Scale:
    """How much of the experiment a profile runs; every other setting is the paper's."""

    iterations: int
    every: int
    tasks: int
    seeds: int


SCALES = {
    "smoke": Scale(iterations=30, every=15, tasks=4, seeds=2),
    "quick": Scale(iterations=500, every=100, tasks=24, seeds=3),
    "paper": Scale(iterations=40_000, every=1_000, tasks=50, seeds=3),
}
# On two cores of an AMD EPYC; on a GPU not measured.
TAKES = {"smoke": "about half a minute", "quick": "about 7 minutes", "paper": "under 2 hours a seed"}
SETTINGS: dict[str, Any] = {
    "n_way": N_WAY,
    "shots": SHOTS,
    "train_shots": "5 k",
    "inner": {"optimizer": "sgd", "learning_rate": LEARNING_RATE, "reduction": "sum", "batch": BATCH},
    "outer_step": {"from": OUTER_STEP, "to": 0.0},
    "evaluation_steps": EVALUATION_STEPS,
    "variants": {variant.name: variant.weights for variant in figure_3()},
}


def configure(variant: Variant, scale: Scale, seed: int) -> Run:
    """The run of one curve: train shots are k x 5, so that the k minibatches of 25 are disjoint."""
    return Run(
        network="omniglot",
        sampling=Sampling(n_way=N_WAY, shots=SHOTS * variant.k, batch=BATCH, steps=variant.k),
        weights=variant.weights,
        inner=Inner("sgd", LEARNING_RATE),
        outer=Outer(OUTER_STEP),
        evaluation=Evaluation(
            Sampling(n_way=N_WAY, shots=SHOTS, batch=BATCH, steps=EVALUATION_STEPS), scale.tasks, scale.every
        ),
        iterations=scale.iterations,
        seed=seed,
    )


def jobs(
    scale: Scale,
    source: Source,
    folder: Path,
    *,
    variants: Sequence[Variant] | None = None,
    device: str = "cpu",
    fresh: bool = False,
) -> list[Job]:
    """All runs of the experiment: every variant from every seed."""
    return [
        Job(configure(variant, scale, seed), source, folder, variant.name, device, fresh)
        for variant in (figure_3() if variants is None else variants)
        for seed in range(scale.seeds)
    ]


def table(outcomes: Mapping[Job, Outcome]) -> pd.DataFrame:
    """The tidy table behind the figure, ordered by variant, seed and iteration."""
    return tidy(_rows(outcomes))


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    """Final accuracy by variant, over seeds: columns variant, mean, low, high, seeds."""
    measured = curves[curves.quantity == "accuracy"]
    return over_seeds(measured[measured.iteration == measured.iteration.max()], ["variant"])


def report(summary: pd.DataFrame) -> list[str]:
    """Lines for the end of the run: final accuracy of each variant."""
    lines = ["final accuracy on test characters (95 % interval over seeds)"]
    for row in summary.itertuples():
        interval = f"  [{100 * max(row.low, 0):5.1f}, {100 * min(row.high, 1):5.1f}]" if row.seeds > 1 else ""
        lines.append(f"  {row.variant:<18}{100 * row.mean:5.1f} %{interval}")
    return lines


def scale_of(context: Context) -> Scale:
    """The profile's scale, with the user's number of seeds where there is one."""
    scale = SCALES[context.profile]
    return scale if context.seeds is None else replace(scale, seeds=context.seeds)


def run(context: Context) -> Result:
    """Train the ten variants over seeds."""
    outcomes = context.train(
        NAME, jobs(scale_of(context), context.source, context.runs, device=context.device, fresh=context.fresh)
    )
    curves = table(outcomes)
    final = summary(curves)
    intervals = over_seeds(curves[curves.quantity == "accuracy"], ["variant", "iteration"])
    ended_early = [
        f"{job.variant}, seed {job.run.seed}: {o.status}" for job, o in outcomes.items() if o.status != "finished"
    ]
    tables = {NAME: curves, f"{NAME}_intervals": intervals, f"{NAME}_summary": final}
    return Result(tables, lines=[*report(final), *ended_early])


EXPERIMENT = Experiment(
    name=NAME,
    shows="figure 3: learning curves of the sums of inner gradients g_1 … g_k, over seeds",
    takes=TAKES,
    claims=(),
    settings=lambda context: asdict(scale_of(context)) | SETTINGS,
    run=run,
)


def _rows(outcomes: Mapping[Job, Outcome]) -> Iterable[dict]:
    for job, outcome in outcomes.items():
        for row in outcome.rows:
            yield {"experiment": NAME, "variant": job.variant, "seed": job.run.seed, **row}
