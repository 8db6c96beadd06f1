"""Section 5.2: Reptile as the search for a point near all solution manifolds.

Here that point is known in closed form. Task tau is under-determined linear regression. Its
solutions W_tau = {phi : A phi = b} are an affine manifold, onto which P phi = phi - A⁺ (A phi - b)
projects. The mean squared distance to all W_tau has its minimum where sum_tau A⁺ (A phi - b) = 0.
The inner loop replaces P by k steps of gradient descent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from analysis.theory.derivatives import Vector, derivative
from analysis.theory.losses import FLOAT


@dataclass(frozen=True)
class AffineTask:
    """The regression 1/2 |A phi - b|^2 with fewer rows than parameters."""

    a: Float[Tensor, "rows P"]
    b: Float[Tensor, " rows"]

    def loss(self, phi: Vector) -> Tensor:
        return (self.a @ phi - self.b).square().sum() / 2


def affine_tasks(
    count: int = 5, *, rows: int = 2, parameters: int = 6, seed: int = 0
) -> list[AffineTask]:
    """Return tasks with no common solution, and singular values of A in [0.6, 1.3].

    With these no step of size 1 diverges.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=FLOAT)

    def one() -> AffineTask:
        u, _, v = torch.linalg.svd(normal(rows, parameters), full_matrices=False)
        singular = 0.6 + 0.7 * torch.rand(rows, generator=generator, dtype=FLOAT)
        return AffineTask(u * singular @ v, normal(rows))

    return [one() for _ in range(count)]


def nearest_point(tasks: Sequence[AffineTask]) -> Vector:
    """Return the minimizer of the mean squared distance to all W_tau, in closed form."""
    inverses = [torch.linalg.pinv(task.a) for task in tasks]
    pairs = list(zip(inverses, tasks, strict=True))
    matrix = torch.stack([inverse @ task.a for inverse, task in pairs]).sum(0)
    vector = torch.stack([inverse @ task.b for inverse, task in pairs]).sum(0)
    return torch.linalg.solve(matrix, vector)


def reptile_fixed_point(tasks: Sequence[AffineTask], k: int, *, alpha: float = 1.0) -> Vector:
    """Return the phi where E[phi - phi_{k+1}] = 0.

    phi_{k+1} comes from k real steps of gradient descent on each task. The steps make an affine
    map, which is read off from where they take the origin and the unit vectors.
    """
    parameters = tasks[0].a.shape[1]
    starts = torch.cat(
        [torch.zeros(1, parameters, dtype=FLOAT), torch.eye(parameters, dtype=FLOAT)]
    )
    update = torch.zeros_like(starts)
    for task in tasks:
        points = starts
        for _ in range(k):
            points = points - alpha * vmap(partial(derivative, task.loss))(points)
        update += (starts - points) / len(tasks)
    constant, columns = update[0], (update[1:] - update[0]).T
    return torch.linalg.solve(columns, -constant)
