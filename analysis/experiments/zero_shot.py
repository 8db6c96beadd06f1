"""Zero-shot: how well an initialization classifies before it has seen a task's labels.

A task's labels are dealt at random, so that no initialization can know them: accuracy stays at chance, 1 / N, and the
expected cross-entropy at log N or above, whatever is trained. Joint training (g1) has nothing else to improve.
"""

from functools import partial
from math import log
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import ablation, post
from analysis.experiments.along_training import Point, points
from analysis.workers import Progress
from reptile_core.inner_loop import inner_loop
from reptile_core.meta_gradients import figure_3
from reptile_core.networks import CrossEntropy, Minibatch
from reptile_core.philox import Purpose
from reptile_core.training import build_network

NAME = "zero_shot"
TASKS = {"smoke": 8, "quick": 100, "paper": 1_000}
ADAPTED_TASKS = {"smoke": 2, "quick": 4, "paper": 50}
CHUNK = 20  # tasks whose images are in memory together
CHANCE, LOG_N = 1 / ablation.N_WAY, log(ablation.N_WAY)
CLAIMS = (
    Claim(
        "zero-shot-accuracy",
        "B",
        "experiment",
        "before adaptation accuracy stays at chance, whatever is trained",
        "accuracy before adaptation less 1/N, mean along training",
        -0.03,
        0.03,
        "a twentieth of what adaptation gains; the mean over tasks has a standard error of about 0.01 a seed",
        "accuracy after adaptation, longest sum",
        paper=post.G1,
    ),
    Claim(
        "zero-shot-loss",
        "B",
        "experiment",
        "before adaptation the loss stays at log N or above, so joint training has nothing to improve",
        "cross-entropy before adaptation less log N (nats an example), mean along training",
        -0.02,
        1e3,
        "the lower end is a mean over tasks and may lie below its expectation by its standard error",
        "the same after adaptation, longest sum",
        paper=post.JOINT_LEARNS_LITTLE,
    ),
)


def measure(point: Point, progress: Progress, *, tasks: int, adapted_tasks: int) -> list[dict[str, Any]]:
    """Accuracy and mean cross-entropy (nats) on the support sets of evaluation tasks before adaptation and, at the last
    point, after it."""
    run, pool = point.job.run, point.pool("test")
    network, phi, sampling = build_network(run), point.phi, run.evaluation.sampling
    drawn = pool.sample(
        sampling, seed=run.seed, purpose=Purpose.EVALUATION, iteration=0, task=torch.arange(tasks), test_shots=1
    )

    def on(phi: torch.Tensor, batch: Minibatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Correct or not, and loss, of every example."""
        logits = network(phi, batch.x)
        losses = F.cross_entropy(logits.flatten(0, -2), batch.y.flatten(), reduction="none")
        return (logits.argmax(-1) == batch.y).flatten().double(), losses.double()

    chunks = [pool.minibatch(drawn.support[slice(i, i + CHUNK)]) for i in range(0, tasks, CHUNK)]
    correct, losses = (torch.cat(parts) for parts in zip(*(on(phi, chunk) for chunk in chunks), strict=True))
    rows = [point.row("accuracy_before", float(correct.mean())), point.row("loss_before", float(losses.mean()))]
    if point.is_last:
        loss, ends = CrossEntropy(network, reduction=run.inner.reduction), []
        for task in range(adapted_tasks):
            batches = [pool.minibatch(batch) for batch in drawn[task].minibatches]
            *_, last = inner_loop(loss, phi, batches, run.inner.build())
            ends.append(on(last.after, pool.minibatch(drawn[task].support)))
        for i, quantity in enumerate(("accuracy_after", "loss_after")):
            rows.append(point.row(quantity, float(torch.cat([end[i] for end in ends]).mean())))
    progress(1)
    return rows


def measurements(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger: means along training, the start excluded, of every variant over seeds."""
    longest = max(table.variant.unique(), key=lambda name: (name.count("g"), "/" not in name))
    trained = table[table.iteration > 0]
    rows = []
    for claim, quantity, base in (("zero-shot-accuracy", "accuracy", CHANCE), ("zero-shot-loss", "loss", LOG_N)):
        for variant, part in trained[trained.quantity == f"{quantity}_before"].groupby("variant", sort=False):
            rows.append(measurement(claim, variant, "check", part.groupby("seed").value.mean() - base))
        after = trained[(trained.quantity == f"{quantity}_after") & (trained.variant == longest)]
        rows.append(measurement(claim, longest, "control", after.groupby("seed").value.mean() - base))
    return rows


def settings(context: Context) -> dict[str, Any]:
    return {
        "n_way": ablation.N_WAY,
        "seeds": ablation.scale_of(context).seeds,
        "tasks": TASKS[context.profile],
        "adapted_tasks": ADAPTED_TASKS[context.profile],
    }


def run(context: Context) -> Result:
    """Measure all points of figure 3's runs."""
    work = partial(measure, tasks=TASKS[context.profile], adapted_tasks=ADAPTED_TASKS[context.profile])
    results = context.workers.map(NAME, work, points(context, figure_3()), unit=" points")
    table = pd.DataFrame([row for rows in results for row in rows])
    return Result({NAME: table}, pd.DataFrame(measurements(table)))


EXPERIMENT = Experiment(
    name=NAME,
    shows="before adaptation accuracy stays at chance and the loss at log N, whatever is trained",
    takes={"smoke": "seconds", "quick": "half a minute after the ablation", "paper": "some 10 minutes after it"},
    claims=CLAIMS,
    settings=settings,
    run=run,
)
