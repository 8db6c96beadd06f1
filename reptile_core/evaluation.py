"""Few-shot evaluation as in the authors' code: adapt to the support set, classify test examples.

A task has one test example per class by default (`queries`). Batch norm uses the batch at hand, so
it matters which examples are classified together. With transduction all test examples share one
batch. Without it, each is alone in a batch with the whole support set, and nothing leaks from one
to another.
"""

from dataclasses import dataclass
from math import nan, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reptile_core.inner_loop import InnerOptimizer, Loss, Phi, State, inner_loop
from reptile_core.losses import Minibatch
from reptile_core.networks import Network
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool, Sampling, Tasks

# The authors' test set: one example per class. Without transduction, more estimate the same number.
TEST_SHOTS = 1


@dataclass(frozen=True)
class Estimate:
    """A mean over tasks with its standard error (NaN for one task)."""

    mean: float
    standard_error: float
    count: int


def classify(
    network: Network, phi: Phi, test: Minibatch, support: Minibatch, *, transductive: bool
) -> Int[Tensor, "*lanes n_test"]:
    """Return the predicted classes of the test examples.

    x of both minibatches: (*lanes, count, *shape).
    """
    if transductive:
        return network(phi, test.x).argmax(-1)
    # One more lane axis, over test examples. Each goes in front of a copy of the support set, as a
    # batch of its own.
    lanes = test.y.ndim - 1
    copies = support.x.unsqueeze(lanes).expand(*test.y.shape, *support.x.shape[lanes:])
    batches = torch.cat([test.x.unsqueeze(lanes + 1), copies], lanes + 1)
    return network(phi.unsqueeze(-2) if lanes else phi, batches)[..., 0, :].argmax(-1)


def accuracies(
    network: Network,
    loss: Loss,
    phi: Float[Tensor, " P"],
    pool: ImagePool,
    tasks: Tasks,
    optimizer: InnerOptimizer,
    state: State | None = None,
    *,
    transductive: bool = True,
    lanes: int = 1,
) -> dict[str, Float[Tensor, " tasks"]]:
    """Return the accuracy in [0, 1] of each task, without transduction and, if asked for, with it.

    Every task starts from the same phi and the same state of the optimizer. Neither is changed, as
    in the authors' evaluation.

    tasks: with one leading axis.
    lanes: number of tasks adapted at once. Best are as many as memory holds on a GPU, and one on
        a CPU core.
    """
    if lanes < 1:
        raise ValueError(f"lanes: expected at least 1, found {lanes}")
    count = tasks.test.label.shape[0]
    kinds = {"accuracy": False} | ({"accuracy_transductive": True} if transductive else {})
    correct: dict[str, list[Tensor]] = {name: [] for name in kinds}
    for start in range(0, count, lanes):
        chunk = tasks[slice(start, start + lanes)]
        width = chunk.test.label.shape[0]
        adapted = phi.expand(width, -1)
        minibatches = [pool.minibatch(batch) for batch in chunk.minibatches]
        for step in inner_loop(loss, adapted, minibatches, optimizer, state):
            adapted = step.after
        test, support = pool.minibatch(chunk.test), pool.minibatch(chunk.support)
        for name, together in kinds.items():
            predicted = classify(network, adapted, test, support, transductive=together)
            correct[name].append((predicted == test.y).double().mean(-1))
    return {name: torch.cat(parts) for name, parts in correct.items()}


def evaluation_tasks(
    sampling: Sampling,
    pool: ImagePool,
    *,
    seed: int,
    tasks: range,
    queries: int = TEST_SHOTS,
    look: int = 0,
) -> Tasks:
    """Return the evaluation tasks with these numbers of a seed.

    They are the same for every variant, so that their difficulty cancels in comparisons.

    queries: test examples per class.
    look: which stream of tasks; tasks of different looks are independent.

    Raises ValueError where there is no task, no test example or a negative number.
    """
    if not tasks:
        raise ValueError(f"tasks: expected at least 1 task, found {tasks}")
    for name, value, lowest in (
        ("tasks", min(tasks), 0),
        ("queries", queries, 1),
        ("look", look, 0),
    ):
        if value < lowest:
            raise ValueError(f"{name}: expected at least {lowest}, found {value}")
    return pool.sample(
        sampling,
        seed=seed,
        purpose=Purpose.EVALUATION,
        iteration=look,
        task=torch.tensor(tasks),
        test_shots=queries,
    )


def estimate(per_task: Float[Tensor, " tasks"]) -> Estimate:
    """Return the mean over tasks of one number per task, with its standard error.

    Raises ValueError where there is no task.
    """
    n = per_task.numel()
    if n == 0:
        raise ValueError("per_task: expected at least 1 task, found 0")
    spread = per_task.std(correction=1).item() if n > 1 else nan
    return Estimate(per_task.mean().item(), spread / sqrt(n), n)
