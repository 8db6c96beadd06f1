"""Pools of minibatch losses to test theorems on.

They are exact polynomials, a smooth network, and real minibatches. All are in float64, with mean
losses and smooth activations: rates hold only where the loss is smooth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from analysis.theory.derivatives import At, Loss, Vector
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.networks import mlp, omniglot
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool, Sampling

FLOAT = torch.float64


@dataclass(frozen=True)
class Pool:
    """The m exchangeable minibatch losses of one task, and the point phi at which they are studied.

    degree: of losses that are polynomials; None for others.
    """

    name: str
    losses: tuple[Loss, ...]
    phi: Vector
    degree: int | None = None

    @cached_property
    def curvature(self) -> float:
        """The largest |H g| / |g| of the losses at phi; alpha must be small against its inverse."""
        return max(_along_gradient(At(loss, self.phi)) for loss in self.losses)


@dataclass(frozen=True)
class OnMinibatch:
    """The core's loss of (phi, minibatch) on one minibatch, as the theory's loss of phi alone.

    In reverse mode it may use compiled loops.
    """

    loss: Callable[[Vector, Minibatch], Tensor]
    minibatch: Minibatch
    reverse: ClassVar[bool] = True

    def __call__(self, phi: Vector) -> Tensor:
        return self.loss(phi, self.minibatch)


def on_minibatch(loss: Callable[[Vector, Minibatch], Tensor], minibatch: Minibatch) -> Loss:
    """Return the core's loss of (phi, minibatch) as the theory's loss of phi alone."""
    return OnMinibatch(loss, minibatch)


def quadratic(m: int = 5, *, parameters: int = 6, seed: int = 0) -> Pool:
    """Return quadratic losses L(phi) = 1/2 (phi - c) . A (phi - c) with positive definite A.

    For these the k = 2 expansions are exact.
    """
    generator = torch.Generator().manual_seed(seed)

    def one() -> Loss:
        root = torch.randn(parameters, parameters, generator=generator, dtype=FLOAT)
        a = root @ root.T / parameters
        centre = torch.randn(parameters, generator=generator, dtype=FLOAT)
        return lambda phi: (phi - centre) @ a @ (phi - centre) / 2

    losses = tuple(one() for _ in range(m))
    return Pool("quadratic", losses, _point(parameters, generator), degree=2)


def cubic(m: int = 5, *, parameters: int = 6, seed: int = 0) -> Pool:
    """Return losses of a quadratic plus a cubic form, with third derivatives and none beyond."""
    generator = torch.Generator().manual_seed(seed + 1)
    base = quadratic(m, parameters=parameters, seed=seed)

    def one(loss: Loss) -> Loss:
        shape = 3 * (parameters,)
        t = torch.randn(shape, generator=generator, dtype=FLOAT) / parameters
        return lambda phi: loss(phi) + torch.einsum("ijk,i,j,k->", t, phi, phi, phi) / 6

    return Pool("cubic", tuple(one(loss) for loss in base.losses), base.phi, degree=3)


def tanh_network(m: int = 5, *, seed: int = 0) -> Pool:
    """Return the squared error of a 2-4-1 tanh network on random points of one task."""
    generator = torch.Generator().manual_seed(seed)
    network = mlp((2, 4, 1), activation="tanh")
    teacher, phi = (_point(network.n_parameters, generator) for _ in range(2))

    def one() -> Loss:
        x = torch.randn(6, 2, generator=generator, dtype=FLOAT)
        y = network(teacher, x) + 0.3 * torch.randn(6, 1, generator=generator, dtype=FLOAT)
        return lambda phi: (network(phi, x) - y).square().mean()

    return Pool("tanh network", tuple(one() for _ in range(m)), phi)


def omniglot_softplus(images: ImagePool, m: int = 5, *, batch: int = 10, seed: int = 0) -> Pool:
    """Return the losses of the paper's Omniglot network on m disjoint minibatches of a 5-way task.

    The network has softplus in place of ReLU.
    """
    sampling = Sampling(n_way=5, shots=batch * m // 5, batch=batch, steps=m)
    task = images.sample(sampling, seed=seed, purpose=Purpose.TRAINING, iteration=0, task=0)
    network = omniglot(5, activation="softplus")
    loss = CrossEntropy(network, reduction="mean")

    losses = tuple(on_minibatch(loss, images.minibatch(examples)) for examples in task.minibatches)
    return Pool("Omniglot network, softplus", losses, network.initialize(seed, dtype=FLOAT))


def _along_gradient(at: At) -> float:
    g = at.graph.detach()
    return float(at.product(g).norm() / g.norm())


SMALL_POOLS: dict[str, Callable[[], Pool]] = {
    "quadratic": quadratic,
    "cubic": cubic,
    "tanh network": tanh_network,
}


def _point(parameters: int, generator: torch.Generator) -> Vector:
    return 0.7 * torch.randn(parameters, generator=generator, dtype=FLOAT)
