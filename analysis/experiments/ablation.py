"""Figure 3 (section 6.2): learning curves of the sums of inner gradients g_1 … g_k used as the meta-gradient.

Omniglot 5-way 5-shot, plain SGD in both loops, k disjoint minibatches of 25, learning rate 0.003 on the summed loss,
outer step 0.25 annealed linearly to 0 (an average divides by k), evaluation after 5 steps of batch 25.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

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
SETTINGS = {
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


def finding(summary: pd.DataFrame, variants: Sequence[Variant]) -> str:
    """The figure's title: where g_1 ended, and the longest sum beside it."""
    final = summary.set_index("variant")["mean"]
    first, longest = variants[0], max(variants, key=lambda variant: (variant.k, sum(variant.weights)))
    return (
        f"g₁ alone ends at {100 * final[first.name]:.0f} % accuracy, "
        f"the sum of {longest.k} inner gradients at {100 * final[longest.name]:.0f} %"
    )


def caption(scale: Scale) -> str:
    """What the figure shows, to be understood without the paper at hand."""
    band = (
        f"Mean of {scale.seeds} seeds, band: 95 % Student-t interval of that mean." if scale.seeds > 1 else "One seed."
    )
    return (
        "Each curve uses one combination of a task's inner SGD gradients as the meta-gradient: $\\phi \\leftarrow "
        "\\phi - \\epsilon\\,\\alpha\\,(w_1 g_1 + \\ldots + w_k g_k)$, with $g_i$ the gradient met at step i.\n"
        f"5-way 5-shot, k disjoint minibatches of {BATCH}, $\\alpha$ = {LEARNING_RATE} on the summed loss, "
        f"$\\epsilon$ = {OUTER_STEP} annealed linearly to 0 over {scale.iterations:,} iterations. {band}\n"
        f"Accuracy after {EVALUATION_STEPS} steps on the 5-shot support of {scale.tasks} test tasks, the same ones at "
        "every point of every curve of a seed; one test example per class; no transduction."
    )


def report(summary: pd.DataFrame) -> list[str]:
    """Lines for the end of the run: final accuracy of each variant."""
    lines = ["final accuracy on test characters (95 % interval over seeds)"]
    for row in summary.itertuples():
        interval = f"  [{100 * max(row.low, 0):5.1f}, {100 * min(row.high, 1):5.1f}]" if row.seeds > 1 else ""
        lines.append(f"  {row.variant:<18}{100 * row.mean:5.1f} %{interval}")
    return lines


def _rows(outcomes: Mapping[Job, Outcome]) -> Iterable[dict]:
    for job, outcome in outcomes.items():
        for row in outcome.rows:
            yield {"experiment": NAME, "variant": job.variant, "seed": job.run.seed, **row}
