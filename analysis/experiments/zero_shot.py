"""Zero-shot: how well an initialization classifies before it has seen a task's labels.

A task's labels are dealt at random, so no initialization can know them. Averaged over all N! ways
to deal them, the accuracy on any image is exactly 1/N: whatever class is predicted, (N-1)! of them
give it to the image. The loss on it is log sum exp(z) less the mean of the logits z, which is at
least log N by Jensen's inequality. Joint training (g1) has nothing else to improve.
"""

from dataclasses import asdict, dataclass
from functools import partial
from itertools import permutations
from math import factorial, log
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from analysis.experiments.shared.experiment import Context, Experiment, Result
from analysis.experiments.shared.trained_points import TrainedPoint, points
from analysis.paper import figure_3, quotes
from analysis.results.claims import Claim, Control
from analysis.results.evidence import CHECK, CONTROL, rows, tabulate
from analysis.results.tables import in_one_table
from analysis.runs.workers import Progress
from reptile_core import meta_gradients
from reptile_core.inner_loop import Phi, inner_loop
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.meta_gradients import Variant
from reptile_core.networks import Network
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool, Tasks
from reptile_core.training import Run, build_network

NAME = "zero_shot"
CLAIM_ID = "zero-shot"
CHUNK = 20  # tasks whose images are in memory together
CHANCE = 1 / figure_3.N_WAY
Logits = Float[Tensor, "tasks images n_way"]
Labels = Int[Tensor, "tasks images"]


@dataclass(frozen=True)
class Scale:
    """Which variants are measured, where, and on how many tasks.

    minibatches: the k of the variants.
    iterations: where their runs are measured.
    tasks: test tasks at each point.
    adapted_tasks: tasks on which they adapt, at the end.
    """

    minibatches: tuple[int, ...]
    iterations: tuple[int, ...]
    seeds: int
    tasks: int
    adapted_tasks: int

    @property
    def variants(self) -> list[Variant]:
        return [variant for variant in meta_gradients.figure_3() if variant.k in self.minibatches]


SCALES = {
    "smoke": Scale((1, 2, 3, 4), (0, 2, 4), 1, tasks=8, adapted_tasks=2),
    "quick": Scale((1, 2, 4), (0, 200, 400), 1, tasks=100, adapted_tasks=4),
    "paper": Scale(
        (1, 2, 3, 4),
        (0, 1_000, 2_000, 5_000, 10_000, 20_000, 40_000),
        5,
        tasks=1_000,
        adapted_tasks=50,
    ),
}
CLAIM = Claim(
    id=CLAIM_ID,
    kind="theorem",
    sources=("B",),
    statement=(
        "averaged over all permutations of the labels, every phi has an accuracy of 1/N before "
        "adaptation and a cross-entropy of log N or more, image by image: joint training has "
        "nothing to improve"
    ),
    quantity=(
        "largest over images, each averaged over all permutations: |accuracy - 1/N|; log N - loss "
        "(nats), where that is above 0"
    ),
    band=(-1e-9, 1e-9),
    reason="float64 round-off, 2e-16, through a sum of 120",
    control=Control(
        kind="wrong formula",
        words=(
            "one labelling in the place of all, means over images and variants: |accuracy - 1/N|; "
            "log N - loss, where that is above 0"
        ),
    ),
    quotation=f"{quotes.G1} {quotes.JOINT_LEARNS_LITTLE}",
    amended=(
        "Accuracy and loss were measured on tasks with labels dealt at random, whose noise left "
        "both undecided. The average over all labellings is exact."
    ),
    least="smoke",
)


def labellings(labels: Labels, n_way: int) -> Int[Tensor, "all tasks images"]:
    """Return the labels under each of the N! permutations of the classes, the identity first."""
    return torch.tensor(list(permutations(range(n_way))), device=labels.device)[:, labels]


def correct(
    logits: Logits, labels: Int[Tensor, "*all tasks images"]
) -> Float[Tensor, "*all tasks images"]:
    """Return 1.0 where an image is classified as labelled, else 0.0."""
    return (logits.argmax(-1) == labels).double()


def cross_entropy(
    logits: Logits, labels: Int[Tensor, "*all tasks images"]
) -> Float[Tensor, "*all tasks images"]:
    """Return the loss of every image in nats, in float64."""
    log_p = F.log_softmax(logits.double(), -1)
    return -log_p.expand(*labels.shape, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def before_adaptation(logits: Logits, labels: Labels) -> dict[str, float]:
    """Return accuracy and loss with the labels as dealt, and how far the accuracy spreads.

    The spread is the standard deviation over other ways to deal the labels.
    """
    # Accuracy by labelling and task.
    every = correct(logits, labellings(labels, logits.shape[-1])).mean(-1)
    return {
        "accuracy_before": float(correct(logits, labels).mean()),
        "loss_before": float(cross_entropy(logits, labels).mean()),
        "accuracy_spread": float((every.var(0, correction=0).mean() / len(labels)).sqrt()),
    }


def deviations(logits: Logits, labels: Labels) -> dict[str, float]:
    """Return the two numbers of the check and the two of the control, as `CLAIM` defines them."""
    n_way = logits.shape[-1]
    every = labellings(labels, n_way)
    accuracy, loss = correct(logits, every).mean(0), cross_entropy(logits, every).mean(0)
    return {
        "accuracy_all": float((accuracy - 1 / n_way).abs().max()),
        "loss_all": float((log(n_way) - loss).clamp(min=0).max()),
        "accuracy_one": float((correct(logits, labels).mean() - 1 / n_way).abs()),
        "loss_one": float((log(n_way) - cross_entropy(logits, labels)).clamp(min=0).mean()),
    }


def logits_of(network: Network, phi: Phi, pool: ImagePool, drawn: Tasks) -> tuple[Logits, Labels]:
    """Return logits and labels of the support sets, each a batch of its own."""
    logits = []
    for start in range(0, len(drawn.support.label), CHUNK):
        logits.append(network(phi, pool.minibatch(drawn.support[slice(start, start + CHUNK)]).x))
    return torch.cat(logits), drawn.support.label.to(phi.device)


def after_adaptation(
    run: Run, phi: Phi, pool: ImagePool, drawn: Tasks, tasks: int
) -> dict[str, float]:
    """Return accuracy and loss on the same images once the inner loop has learned from them."""
    network = build_network(run)
    loss, ends = CrossEntropy(network, reduction=run.inner.reduction), []
    for task in range(tasks):
        batches: list[Minibatch] = [pool.minibatch(batch) for batch in drawn[task].minibatches]
        *_, end = inner_loop(loss, phi, batches, run.inner.build())
        ends.append(network(end.after, pool.minibatch(drawn[task].support).x))
    logits, labels = torch.stack(ends), drawn.support.label[:tasks].to(phi.device)
    return {
        "accuracy_after": float(correct(logits, labels).mean()),
        "loss_after": float(cross_entropy(logits, labels).mean()),
    }


def measure(
    point: TrainedPoint, progress: Progress, *, tasks: int, adapted_tasks: int
) -> list[dict[str, Any]]:
    """Return rows of one point, on the support sets of evaluation tasks.

    The last point also has rows after adaptation, and rows for the claim.
    """
    run, pool, phi = point.job.run, point.pool("test"), point.phi
    drawn = pool.sample(
        figure_3.EVALUATION,
        seed=run.seed,
        purpose=Purpose.EVALUATION,
        iteration=0,
        task=torch.arange(tasks),
        test_shots=1,
    )
    logits, labels = logits_of(build_network(run), phi, pool, drawn)
    found = before_adaptation(logits, labels)
    if point.is_last:
        found |= deviations(logits, labels) | after_adaptation(run, phi, pool, drawn, adapted_tasks)
    progress(1)
    return [point.row(quantity, value) for quantity, value in found.items()]


def evidence(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the evidence for the claim, from one seed."""
    mine = table[table.seed == seed]
    found = []
    for quantity in ("accuracy", "loss"):
        over_all = mine[mine.quantity == f"{quantity}_all"]
        for variant, part in over_all.groupby("variant", sort=False):
            found += rows(CLAIM_ID, f"{quantity}, {variant}", CHECK, {seed: part.value.item()})
        one = mine[mine.quantity == f"{quantity}_one"].value.mean()
        found += rows(CLAIM_ID, f"{quantity}, one labelling", CONTROL, {seed: one})
    return tabulate(found)


def settings(context: Context, scale: Scale) -> dict[str, Any]:
    """Return everything that decides the outcome besides data and code."""
    return asdict(scale) | {
        "schedule": figure_3.ITERATIONS,
        "variants": [variant.name for variant in scale.variants],
        "n_way": figure_3.N_WAY,
        "labellings": factorial(figure_3.N_WAY),
    }


def run(context: Context, scale: Scale) -> Result:
    """Measure points of figure 3's runs."""
    seeds = context.seeds_of(scale.seeds)
    every = points(context, scale.variants, seeds, scale.iterations, schedule=figure_3.ITERATIONS)
    work = partial(measure, tasks=scale.tasks, adapted_tasks=scale.adapted_tasks)
    results = context.workers.map(NAME, work, every, unit=" points")
    table = in_one_table(results)
    return Result({NAME: table}, evidence(table, seeds[0]))


EXPERIMENT = Experiment(
    name=NAME,
    shows="before adaptation no initialization is better than chance, averaged over all labellings",
    takes={
        "smoke": "seconds",
        "quick": "10 seconds after the ablation",
        "paper": "some 10 minutes after it",
    },
    claims=(CLAIM,),
    settings=settings,
    run=run,
    scales=SCALES,
)
