"""Training and measuring of `sgd`: SGD on handwritten digits to a given training loss.

Seeds are the lanes of one phi.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.runs.workers import Progress
from reptile_core import philox
from reptile_core.inner_loop import SGD, Loss, Phi, gradient
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.networks import mlp
from reptile_core.philox import Purpose

TRAINING_IMAGES = 500  # the other 1,297 are for testing
SMALL, FULL = 10, TRAINING_IMAGES
# On the mean loss. SMALL and FULL reach the target in about as many steps, as seen on the training
# loss alone.
LEARNING_RATE = 0.3
BISECTIONS = 40  # more than float32 can tell apart
NETWORK = mlp((64, 32, 10), activation="tanh")  # smooth, as the theory has it
PLAIN, REORDERED, SETTLED, HALVED = "plain", "another order", "settled", "half of the images"
# Images of the control, in one batch: fewer images should generalize worse.
HALF = FULL // 2
# Multiple of the target loss at which a run that is to settle goes on with the full batch.
SETTLED_FROM = 2.0
MAX_STEPS = 20_000  # a run that has not reached the target by then has no end point to compare


@dataclass(frozen=True)
class Item:
    """One piece of work: a size of minibatches and seeds, the lanes of one phi.

    The variant is one of:
    - "plain";
    - "another order", the same with other random numbers for the order of the images;
    - "settled", with the last of the way by full batch, so that phi slides from where noise holds
      it to the floor of the valley;
    - "half of the images", which are all that is trained on, so that the gap is known to be
      another.
    """

    batch: int
    variant: str
    seeds: tuple[int, ...]
    target: float


@dataclass(frozen=True)
class Digits:
    """Each seed's division of the digits into training and test images.

    x: shape (seeds, count, 64), in [0, 1].
    y: shape (seeds, count).
    """

    train: Minibatch
    test: Minibatch


@lru_cache(maxsize=1)
def digits(seeds: tuple[int, ...]) -> Digits:
    """Return the division of the digits by each seed."""
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    images, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(images / 16).float(), torch.as_tensor(labels)
    order = _orders(seeds, Purpose.SPLIT, len(y))
    train, test = order[:, :TRAINING_IMAGES], order[:, TRAINING_IMAGES:]
    return Digits(Minibatch(x[train], y[train]), Minibatch(x[test], y[test]))


def of_item(item: Item) -> Digits:
    """Return the data on which an item is trained and tested."""
    data = digits(item.seeds)
    if item.variant != HALVED:
        return data
    return Digits(Minibatch(data.train.x[:, :HALF], data.train.y[:, :HALF]), data.test)


def minibatches(data: Minibatch, order: Int[Tensor, "seeds count"], size: int) -> Minibatch:
    """Cut the data into disjoint minibatches.

    x: shape (seeds, m, size, 64).
    y: shape (seeds, m, size).
    """
    lanes = torch.arange(len(order)).unsqueeze(-1)
    x, y = data.x[lanes, order], data.y[lanes, order]
    return Minibatch(x.unflatten(1, (-1, size)), y.unflatten(1, (-1, size)))


def train(
    phi: Float[Tensor, "seeds P"],
    data: Minibatch,
    loss: Loss,
    *,
    seeds: Sequence[int],
    batch: int,
    target: float,
    order: int = 0,
    max_steps: int = MAX_STEPS,
) -> tuple[Float[Tensor, "seeds P"], Int[Tensor, " seeds"]]:
    """Find where each seed's path from phi first has the target as its loss on all data.

    Return these points, and in how many steps they were reached. Each epoch takes disjoint
    minibatches in a new order. The loss is computed after every step. Once a step has taken it to
    the target or below, bisection finds the point on the straight line of that step, so that all
    end at equal loss. A seed that has not arrived in `max_steps` steps has NaN and 0 steps.
    """
    count = data.y.shape[-1]
    optimizer, in_epoch = SGD(LEARNING_RATE), count // batch
    end, steps = torch.full_like(phi, float("nan")), torch.zeros(len(phi), dtype=torch.long)
    for step in range(max_steps):
        if step == 0 or (in_epoch > 1 and step % in_epoch == 0):  # the full batch has no order
            shuffled = _orders(
                seeds, Purpose.TRAINING, count, iteration=step // in_epoch, task=order
            )
            epoch = minibatches(data, shuffled, batch)
        here = Minibatch(epoch.x[:, step % in_epoch], epoch.y[:, step % in_epoch])
        after, _ = optimizer.step(phi, gradient(loss, phi, here), ())
        arrived = (steps == 0) & (loss(after, data) <= target)
        if arrived.any():
            end[arrived] = crossing(loss, data, phi, after, target)[arrived]
            steps[arrived] = step + 1
            if (steps > 0).all():
                break
        phi = after
    return end, steps


def crossing(loss: Loss, data: Minibatch, above: Phi, below: Phi, target: float) -> Phi:
    """Find the point from `above` to `below` whose loss is the target, by bisection in each lane.

    The point is on the straight segment between them.
    """
    low, high = torch.zeros(len(above), 1), torch.ones(len(above), 1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        reached = loss(torch.lerp(above, below, middle), data) <= target
        under: Bool[Tensor, "seeds 1"] = reached.unsqueeze(-1)
        low, high = torch.where(under, low, middle), torch.where(under, middle, high)
    return torch.lerp(above, below, high)


def mean_pair_product(g: Float[Tensor, "*lanes m P"]) -> Float[Tensor, "*lanes"]:
    """Return the mean of g_i . g_j over pairs i != j: (|sum g_i|^2 - sum |g_i|^2) / (m (m - 1))."""
    m = g.shape[-2]
    return (g.sum(-2).square().sum(-1) - g.square().sum((-2, -1))) / (m * (m - 1))


def measure(
    phi: Float[Tensor, "seeds P"], data: Digits, loss: Loss, seeds: Sequence[int]
) -> dict[str, Float[Tensor, " seeds"]]:
    """Return what is compared at the end points, by quantity and seed.

    Alignment is measured on minibatches of 10 that no training met as such.
    """
    common = minibatches(
        data.train, _orders(seeds, Purpose.EVALUATION, data.train.y.shape[-1]), SMALL
    )
    g = gradient(loss, phi.unsqueeze(1).expand(-1, common.y.shape[1], -1), common).double()
    training, test = loss(phi, data.train), loss(phi, data.test)
    correct = NETWORK(phi, data.test.x).argmax(-1) == data.test.y
    return {
        "cosine": mean_pair_product(F.normalize(g, dim=-1)),
        "inner product": mean_pair_product(g),
        "variance": g.var(-2).sum(-1),
        "generalization gap": test - training,
        "test loss": test,
        "test accuracy": correct.double().mean(-1),
        "training loss": training,
    }


def train_and_measure(item: Item, progress: Progress) -> list[dict[str, Any]]:
    """Return rows with columns batch, variant, seed, quantity, value."""
    data, loss, seeds = of_item(item), CrossEntropy(NETWORK, reduction="mean"), item.seeds
    start = torch.stack([NETWORK.initialize(seed) for seed in seeds])
    near = item.target * (SETTLED_FROM if item.variant == SETTLED else 1.0)
    order = int(item.variant == REORDERED)
    phi, steps = train(
        start, data.train, loss, seeds=seeds, batch=item.batch, target=near, order=order
    )
    if item.variant == SETTLED:
        phi, more = train(phi, data.train, loss, seeds=seeds, batch=FULL, target=item.target)
        steps = steps + more
    found = measure(phi, data, loss, seeds) | {"steps": steps}
    progress(1)
    table = []
    where = {"batch": item.batch, "variant": item.variant}
    for quantity, values in found.items():
        for seed, value in zip(seeds, values.tolist(), strict=True):
            table.append(where | {"seed": seed, "quantity": quantity, "value": value})
    return table


def _orders(
    seeds: Sequence[int], purpose: Purpose, count: int, *, iteration: int = 0, task: int = 0
) -> Int[Tensor, "seeds count"]:
    """Return a permutation for each seed."""
    keys = [philox.bits(seed, purpose, count, iteration=iteration, task=task) for seed in seeds]
    return philox.permutations(torch.stack(keys))
