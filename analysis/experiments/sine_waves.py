"""Section 4's sine waves: their minibatches, the network, training and adaptation to test waves.

All seeds of an initialization go together, as lanes of one phi. The network is so small that the
calls of a gradient take longer than its arithmetic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from math import ceil, pi

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.runs.workers import Progress
from reptile_core import philox
from reptile_core.inner_loop import SGD, Phi, inner_loop
from reptile_core.losses import Minibatch
from reptile_core.meta_gradients import weighted_sum
from reptile_core.networks import ACTIVATIONS, Network, mlp
from reptile_core.philox import Purpose
from reptile_core.training import Outer

WIDTHS = (1, 64, 64, 1)
INTERVAL = (-5.0, 5.0)
AMPLITUDE = (0.1, 5.0)
POINTS = 50
BATCH = 10  # points of a minibatch, and points that a test task shows
K = POINTS // BATCH
LEARNING_RATE = 0.02  # on the mean squared error, as in the authors' script
OUTER_STEP = 0.1
TEST_STEPS = 32
BLOCK = 250  # iterations whose waves are drawn together
LANES = 32  # seeds that are trained together, at most
ADAPTED = 4  # seeds that are adapted together, at most: each of their test tasks has a phi
# Activation and first weights. The authors' published script has tanh and PyTorch's weights; the
# paper has ReLU. Glorot's weights with zero biases, the start of the other networks here, are shown
# next to them.
NETWORKS = {
    "tanh": ("tanh", "pytorch"),
    "relu": ("relu", "pytorch"),
    "tanh, Glorot": ("tanh", "glorot"),
}
# The gradient in an activation's input, from that in its output and the output itself.
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": torch.ops.aten.tanh_backward,
    "relu": partial(torch.ops.aten.threshold_backward, threshold=0),
}
# w_1 … w_k of the minibatches that the 50 points are cut into; empty for no training.
INITIALIZATIONS: dict[str, tuple[float, ...]] = {
    "untrained": (),
    "joint": (float(K),),
    "reptile": (1.0,) * K,
}


@dataclass(frozen=True)
class Waves:
    """Waves on the grid, with a random order of the points for each."""

    y: Float[Tensor, "*tasks points"]
    order: Int[Tensor, "*tasks points"]

    def minibatches(self, count: int, *, size: int) -> list[Minibatch]:
        """Return the first `count` disjoint parts of the points in their random order.

        x, y: shape (*tasks, size, 1).
        """
        x, y = grid()[self.order], self.y.gather(-1, self.order)
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        return [Minibatch(x[..., cut].unsqueeze(-1), y[..., cut].unsqueeze(-1)) for cut in cuts]


@dataclass(frozen=True)
class Item:
    """One piece of work: an initialization from several seeds, which are lanes of one phi."""

    initialization: str
    network: str
    iterations: int
    seeds: tuple[int, ...]
    tasks: int

    @property
    def size(self) -> int:
        """Gradients that training takes, in each lane."""
        return self.iterations * len(INITIALIZATIONS[self.initialization])


@dataclass(frozen=True)
class Adapted:
    """Test tasks after each of 0 … 32 steps.

    squared_error: mean over the points of each task.
    energy: mean square of each task's wave, which is the squared error of f = 0.
    picture: the predictions for the first seed's first task.
    """

    squared_error: Float[Tensor, "steps seeds tasks"]
    energy: Float[Tensor, "seeds tasks"]
    picture: Float[Tensor, "steps points"]

    @property
    def relative(self) -> Float[Tensor, "steps seeds tasks"]:
        """Squared errors, as multiples of the mean squared error of f = 0 on a seed's tasks."""
        return (self.squared_error / self.energy.mean(-1, keepdim=True)).double()

    @property
    def relative_standard_error(self) -> Float[Tensor, "steps seeds"]:
        """The standard error over tasks of the mean of `relative`; NaN for one task.

        That mean is a quotient R = mean(e) / mean(E) of squared errors e and energies E. Both
        change with the tasks. To first order its error is that of the mean of (e - R E) / mean(E).
        """
        energy = self.energy.double()
        of_zero = energy / energy.mean(-1, keepdim=True)
        residual = self.relative - self.relative.mean(-1, keepdim=True) * of_zero
        return residual.std(-1) / self.energy.shape[-1] ** 0.5


def grid() -> Float[Tensor, " points"]:
    return torch.linspace(*INTERVAL, POINTS)


def draw_waves(
    seeds: Sequence[int],
    purpose: Purpose,
    *,
    iteration: Int[Tensor, "*tasks"] | int = 0,
    task: Int[Tensor, "*tasks"] | int = 0,
) -> Waves:
    """Draw waves a sin(x + b), a ~ U[0.1, 5], b ~ U[0, 2 pi], at these addresses of each seed.

    Their shape is (seeds, *tasks, points).
    """
    uniform = partial(
        philox.uniform, purpose=purpose, count=2 + POINTS, iteration=iteration, task=task
    )
    u = torch.stack([uniform(seed) for seed in seeds])
    low, high = AMPLITUDE
    a, b = low + (high - low) * u[..., :1], 2 * pi * u[..., 1:2]
    return Waves((a * torch.sin(grid() + b)).float(), philox.permutations(u[..., 2:]))


def initialize(network: Network, seed: int, scheme: str) -> Float[Tensor, " P"]:
    """Return the first weights by a scheme, "glorot" or "pytorch".

    The latter draws weights and biases as torch.nn.Linear does, within ±1/sqrt(fan-in). With one
    input it matters: without biases all units of the first layer bend at x = 0.
    """
    if scheme == "glorot":
        return network.initialize(seed)
    bounds = []
    for fan_in, fan_out in pairwise(WIDTHS):
        count = (fan_in + 1) * fan_out
        bounds.append(torch.full((count,), fan_in**-0.5))
    u = philox.uniform(seed, Purpose.INITIALIZATION, network.n_parameters)
    return ((2 * u - 1) * torch.cat(bounds)).float()


@dataclass(frozen=True)
class SquaredError:
    """The mean over a minibatch of (f(x) - y)^2, one number per lane.

    Its gradient is computed by hand, in the operations of autograd and so in the same bits, in half
    the time.

    network: one made by `networks.mlp`.
    activation: of its hidden layers, "tanh" or "relu".
    """

    network: Network
    activation: str

    def __post_init__(self) -> None:
        if self.activation not in SLOPES:
            expected = " or ".join(map(repr, SLOPES))
            raise ValueError(f"activation: expected {expected}, found {self.activation!r}")

    def __call__(self, phi: Phi, batch: Minibatch) -> Float[Tensor, "*lanes"]:
        return (self.network(phi, batch.x) - batch.y).square().mean((-2, -1))

    @torch.no_grad()
    def gradient(self, phi: Phi, batch: Minibatch) -> Phi:
        """Return L'(phi), from the last layer back to the first.

        With x_l the input of layer l and g_l the gradient in its output, W_l has x_l^T g_l, b_l the
        sum of g_l over the minibatch, and g_{l-1} is g_l W_l^T, times the slope of the activation.
        """
        parts = list(self.network.unflatten(phi).values())
        weights, biases = parts[0::2], parts[1::2]
        inputs = [batch.x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(ACTIVATIONS[self.activation](inputs[-1] @ weight + bias.unsqueeze(-2)))
        f = inputs[-1] @ weights[-1] + biases[-1].unsqueeze(-2)
        g = 2 / f.shape[-2:].numel() * (f - batch.y)
        found: list[Tensor] = []
        for layer in reversed(range(len(weights))):
            found[:0] = (inputs[layer].mT @ g).flatten(-2), g.sum(-2)
            if layer:
                g = SLOPES[self.activation](g @ weights[layer].mT, inputs[layer])
        return torch.cat(found, -1)


def loss_of(network: str) -> SquaredError:
    """Return the loss for one of NETWORKS."""
    activation, _ = NETWORKS[network]
    return SquaredError(mlp(WIDTHS, activation=activation), activation)


def train(item: Item, progress: Progress) -> Float[Tensor, "seeds P"]:
    """Return phi after training, one lane per seed.

    A seed's waves are the same for every initialization.
    """
    _, scheme = NETWORKS[item.network]
    loss, inner, outer = loss_of(item.network), SGD(LEARNING_RATE), Outer(OUTER_STEP)
    phi = torch.stack([initialize(loss.network, seed, scheme) for seed in item.seeds])
    weights = INITIALIZATIONS[item.initialization]
    if not weights:
        return phi
    for start in range(0, item.iterations, BLOCK):
        block = torch.arange(start, min(start + BLOCK, item.iterations))
        waves = draw_waves(item.seeds, Purpose.TRAINING, iteration=block)
        minibatches = waves.minibatches(len(weights), size=POINTS // len(weights))
        for column, iteration in enumerate(block.tolist()):
            here = [Minibatch(batch.x[:, column], batch.y[:, column]) for batch in minibatches]
            direction, _ = weighted_sum(loss, phi, here, inner, weights)
            phi = torch.add(phi, direction, alpha=-outer.size(iteration, item.iterations))
        progress(len(block) * len(weights))
    return phi


def adapt(
    loss: SquaredError, phi: Float[Tensor, "seeds P"], seeds: Sequence[int], tasks: int
) -> Adapted:
    """Take 32 steps of gradient descent on 10 points of each test task, the same at every step.

    phi: one lane per seed, which meets the test tasks of that seed.
    """
    waves = draw_waves(seeds, Purpose.EVALUATION, task=torch.arange(tasks))
    x = grid().unsqueeze(-1)

    def predict(phi: Phi) -> Float[Tensor, "seeds tasks points"]:
        return loss.network(phi, x).squeeze(-1)

    adapted = phi.unsqueeze(1).expand(-1, tasks, -1)
    predictions = [predict(adapted)]
    minibatches = waves.minibatches(1, size=BATCH) * TEST_STEPS
    for step in inner_loop(loss, adapted, minibatches, SGD(LEARNING_RATE)):
        predictions.append(predict(step.after))
    f = torch.stack(predictions)
    return Adapted((f - waves.y).square().mean(-1), waves.y.square().mean(-1), f[:, 0, 0])


def train_and_adapt(item: Item, progress: Progress) -> Adapted:
    loss, phi = loss_of(item.network), train(item, progress)
    parts = []
    for first in range(0, len(phi), ADAPTED):
        some = slice(first, first + ADAPTED)
        parts.append(adapt(loss, phi[some], item.seeds[some], item.tasks))
    return Adapted(
        torch.cat([part.squared_error for part in parts], 1),
        torch.cat([part.energy for part in parts]),
        parts[0].picture,
    )


def items(
    networks: Sequence[str], seeds: Sequence[int], *, iterations: int, tasks: int
) -> list[Item]:
    """Return the work for every initialization of every network, at most LANES seeds at a time.

    The parts are about equal. A seed that was alone would have other bits: one lane is multiplied
    in another order of sums, two and more are not.
    """
    parts = np.array_split(np.array(seeds), ceil(len(seeds) / LANES))
    each = product(networks, INITIALIZATIONS, parts)
    return [
        Item(name, network, iterations, tuple(part.tolist()), tasks) for network, name, part in each
    ]
