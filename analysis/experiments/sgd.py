"""Outside meta-learning: does SGD with small minibatches end where their gradients are better aligned than where
full-batch descent ends, at equal training loss, and does it generalize better there?

The paper's analysis says that k steps of SGD on minibatches also raise the inner product of their gradients, and the
blog that this may explain the generalization of SGD. One classifier of handwritten digits is trained with the same
learning rate from the same start on minibatches of different sizes, to exactly the same loss on the training set; then
gradients are compared on minibatches that are the same for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import post
from analysis.tables import over_seeds
from analysis.workers import Progress
from reptile_core import philox
from reptile_core.inner_loop import SGD, Loss, Phi, gradient
from reptile_core.networks import CrossEntropy, Minibatch, mlp
from reptile_core.philox import Purpose

NAME = "sgd"
TRAINING_IMAGES = 500  # the other 1,297 test
SMALL, FULL = 10, TRAINING_IMAGES
LEARNING_RATE = 0.3  # on the mean loss: both reach the target in about as many steps, seen on the training loss alone
BISECTIONS = 40  # more than float32 can tell apart
NETWORK = mlp((64, 32, 10), activation="tanh")  # smooth, as the theory has it
PLAIN, REORDERED, SETTLED = "plain", "another order", "settled"
SETTLED_FROM = 2.0  # times the target: the loss at which what is to settle goes on with the full batch
MEASURED = (
    "cosine",
    "inner product",
    "variance",
    "generalization gap",
    "test loss",
    "test accuracy",
    "training loss",
    "steps",
)


@dataclass(frozen=True)
class Scale:
    """How much of the experiment a profile runs. target: the training loss at which all are compared, in nats."""

    seeds: int
    target: float
    batches: tuple[int, ...]


SCALES = {
    "smoke": Scale(seeds=2, target=0.5, batches=(SMALL, FULL)),
    "quick": Scale(seeds=16, target=0.02, batches=(SMALL, 50, FULL)),
    "paper": Scale(seeds=48, target=0.02, batches=(SMALL, 20, 50, 100, FULL)),
}
MOST_STEPS = 20_000  # a run that has not reached the target by then has none to be compared at
SETTINGS: dict[str, Any] = {
    "network": "64-32-10, tanh",
    "training_images": TRAINING_IMAGES,
    "learning_rate": LEARNING_RATE,
    "reduction": "mean",
    "measured_on": SMALL,
    "settled_from": SETTLED_FROM,
    "most_steps": MOST_STEPS,
}
UNIT = "less the full batch's, in standard deviations of what another order changes"
REASON = "less than one such deviation is what chance makes in one seed of three"
CONTROL = f"minibatches of {SMALL} in another order, compared with themselves"
CLAIMS = (
    Claim(
        "sgd-alignment",
        "B, N",
        "experiment",
        "outside meta-learning, small minibatches end with better aligned gradients at equal training loss",
        f"mean cosine of minibatch gradients, {UNIT}",
        1.0,
        1000.0,
        REASON,
        CONTROL,
        paper=post.OUTSIDE,
    ),
    Claim(
        "sgd-generalization",
        "B, N",
        "experiment",
        "outside meta-learning, small minibatches generalize better at equal training loss",
        f"minus the generalization gap (test less training loss), {UNIT}",
        1.0,
        1000.0,
        REASON,
        CONTROL,
        paper=post.OUTSIDE,
    ),
)


@dataclass(frozen=True)
class Item:
    """One piece of work: a size of minibatches and how many seeds, the lanes of one phi.

    variant: "plain"; "another order", the same with other random numbers for the order of the images; "settled", with
    the last of the way by full batch, so that phi slides from where noise holds it to the floor of the valley.
    """

    batch: int
    variant: str
    seeds: int
    target: float


@dataclass(frozen=True)
class Digits:
    """Each seed's division of the digits: x (seeds, count, 64) in [0, 1], y (seeds, count)."""

    train: Minibatch
    test: Minibatch


@lru_cache(maxsize=1)
def digits(seeds: int) -> Digits:
    from sklearn.datasets import load_digits  # slow to import, and of use to this alone

    images, labels = load_digits(return_X_y=True)
    x, y = torch.as_tensor(images / 16).float(), torch.as_tensor(labels)
    order = _orders(seeds, Purpose.SPLIT, len(y))
    train, test = order[:, :TRAINING_IMAGES], order[:, TRAINING_IMAGES:]
    return Digits(Minibatch(x[train], y[train]), Minibatch(x[test], y[test]))


def minibatches(data: Minibatch, order: Int[Tensor, "seeds count"], size: int) -> Minibatch:
    """The data cut into disjoint minibatches: x (seeds, m, size, 64), y (seeds, m, size)."""
    lanes = torch.arange(len(order)).unsqueeze(-1)
    x, y = data.x[lanes, order], data.y[lanes, order]
    return Minibatch(x.unflatten(1, (-1, size)), y.unflatten(1, (-1, size)))


def train(
    phi: Float[Tensor, "seeds P"], data: Minibatch, loss: Loss, *, batch: int, target: float, order: int = 0
) -> tuple[Float[Tensor, "seeds P"], Int[Tensor, " seeds"]]:
    """Where each seed's path from phi first has the target as its loss on all training images, and in how many steps.

    Epochs of disjoint minibatches in a new order each. The loss is computed after every step; on the straight line of
    the step that took it to the target or below, the point is found by bisection, so that all end at equal loss.
    """
    optimizer, seeds, in_epoch = SGD(LEARNING_RATE), len(phi), TRAINING_IMAGES // batch
    end, steps = torch.full_like(phi, float("nan")), torch.zeros(seeds, dtype=torch.long)
    for step in range(MOST_STEPS):
        if step == 0 or (in_epoch > 1 and step % in_epoch == 0):  # the full batch has no order
            shuffled = _orders(seeds, Purpose.TRAINING, TRAINING_IMAGES, iteration=step // in_epoch, task=order)
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
    """The point of the segment from `above` to `below` whose loss is the target, by bisection in each lane."""
    low, high = torch.zeros(len(above), 1), torch.ones(len(above), 1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        under: Bool[Tensor, "seeds 1"] = (loss(torch.lerp(above, below, middle), data) <= target).unsqueeze(-1)
        low, high = torch.where(under, low, middle), torch.where(under, middle, high)
    return torch.lerp(above, below, high)


def mean_pair_product(g: Float[Tensor, "*lanes m P"]) -> Float[Tensor, "*lanes"]:
    """Mean of g_i . g_j over pairs i != j: (|sum g_i|^2 - sum |g_i|^2) / (m (m - 1))."""
    m = g.shape[-2]
    return (g.sum(-2).square().sum(-1) - g.square().sum((-2, -1))) / (m * (m - 1))


def measure(phi: Float[Tensor, "seeds P"], data: Digits, loss: Loss) -> dict[str, Float[Tensor, " seeds"]]:
    """What is compared at the end points: alignment on minibatches of 10 that no training met as such, and the gap."""
    common = minibatches(data.train, _orders(len(phi), Purpose.EVALUATION, TRAINING_IMAGES), SMALL)
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
    """Rows batch, variant, seed, quantity, value."""
    data, loss = digits(item.seeds), CrossEntropy(NETWORK, reduction="mean")
    start = torch.stack([NETWORK.initialize(seed) for seed in range(item.seeds)])
    near = item.target * (SETTLED_FROM if item.variant == SETTLED else 1.0)
    phi, steps = train(start, data.train, loss, batch=item.batch, target=near, order=int(item.variant == REORDERED))
    if item.variant == SETTLED:
        phi, more = train(phi, data.train, loss, batch=FULL, target=item.target)
        steps = steps + more
    found = measure(phi, data, loss) | {"steps": steps}
    progress(1)
    return [
        {"batch": item.batch, "variant": item.variant, "seed": seed, "quantity": quantity, "value": value}
        for quantity, values in found.items()
        for seed, value in enumerate(values.tolist())
    ]


def measurements(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger: differences in the same seed, in standard deviations of the control's differences."""
    by = table.pivot(index="seed", columns=["quantity", "batch", "variant"], values="value")
    rows = []
    for claim, quantity, sign, role in (
        ("sgd-alignment", "cosine", 1.0, "check"),
        ("sgd-alignment", "inner product", 1.0, "reported"),
        ("sgd-generalization", "generalization gap", -1.0, "check"),
        ("sgd-generalization", "test accuracy", 1.0, "reported"),
    ):
        small, other, settled = (by[quantity, SMALL, variant] for variant in (PLAIN, REORDERED, SETTLED))
        full = by[quantity, FULL, PLAIN]
        chance = (other - small).std(ddof=1)
        rows.append(measurement(claim, quantity, role, sign * (small - full) / chance))
        rows.append(measurement(claim, f"{quantity}, settled", "reported", sign * (settled - full) / chance))
        if role == "check":
            rows.append(measurement(claim, f"{quantity}, reordered", "control", sign * (other - small) / chance))
    return rows


def items(scale: Scale) -> list[Item]:
    """Every size of minibatches, and the smallest once more in another order and once settled."""
    sizes = [(batch, PLAIN) for batch in scale.batches]
    return [
        Item(batch, variant, scale.seeds, scale.target)
        for batch, variant in (*sizes, (SMALL, REORDERED), (SMALL, SETTLED))
    ]


def report(summary: pd.DataFrame) -> Sequence[str]:
    """Lines for the end of the run, in columns."""
    means = summary.pivot(index=["batch", "variant"], columns="quantity", values="mean")
    return means[list(MEASURED)].round(4).to_string().splitlines()


def scale_of(context: Context) -> Scale:
    """The profile's scale, with the user's number of seeds where there is one."""
    scale = SCALES[context.profile]
    return scale if context.seeds is None else replace(scale, seeds=context.seeds)


def run(context: Context) -> Result:
    """Train with every size of minibatches, compare the end points."""
    parts = context.workers.map(NAME, train_and_measure, items(scale_of(context)), unit=" runs")
    table = pd.DataFrame([row for rows in parts for row in rows])
    summary = over_seeds(table, ["batch", "variant", "quantity"])
    tables: Mapping[str, pd.DataFrame] = {NAME: table, f"{NAME}_summary": summary}
    return Result(tables, pd.DataFrame(measurements(table)), report(summary))


EXPERIMENT = Experiment(
    name=NAME,
    shows="outside meta-learning: small minibatches against the full batch at equal training loss",
    takes={"smoke": "seconds", "quick": "half a minute", "paper": "about 5 minutes (no scale of the paper's own)"},
    claims=CLAIMS,
    settings=lambda context: asdict(scale_of(context)) | SETTINGS,
    run=run,
    data="scikit-learn's digits, 1,797 handwritten digits of 8 × 8 pixels",
)


def _orders(
    seeds: int, purpose: Purpose, count: int, *, iteration: int = 0, task: int = 0
) -> Int[Tensor, "seeds count"]:
    keys = [philox.bits(seed, purpose, count, iteration=iteration, task=task) for seed in range(seeds)]
    return philox.permutations(torch.stack(keys))
