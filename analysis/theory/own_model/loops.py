"""SGD's loop on one's own losses, and two ways to higher derivatives that share no rule.

Gradients go by torch's plain reverse mode, as in training. Where the model stops gradients, such a
gradient is not that of the loss: it holds the stopped values constant. What SGD meets is this
field. From one point to another the field moves as a whole, also with what is stopped. So does
`forward`, a derivative of the field along a direction. `reverse` goes through backward passes
alone, as autograd through the loop does, and holds constant what is stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.theory.derivatives import Loss, Vector, derivative, gradient
from analysis.theory.own_model.losses import evaluated

Way = Callable[..., Vector]  # of (loss, phi, *directions), as `derivative`


def forward(loss: Loss, phi: Vector, *directions: Vector) -> Vector:
    """Return L', L'' v or L'''[u, v] by forward over reverse mode.

    The directions are (), (v) or (u, v).
    """
    return derivative(loss, phi, *directions) if directions else gradient(loss, phi)


def reverse(loss: Loss, phi: Vector, *directions: Vector) -> Vector:
    """Return the same derivatives as `forward`, by reverse over reverse mode."""
    point = phi.detach().requires_grad_()
    with torch.enable_grad():
        field = torch.autograd.grad(loss(point), point, create_graph=bool(directions))[0]
        for left, direction in zip(range(len(directions) - 1, -1, -1), directions, strict=True):
            if not field.requires_grad:  # it is constant
                return torch.zeros_like(phi)
            field = torch.autograd.grad(
                field,
                point,
                direction,
                create_graph=left > 0,
                allow_unused=True,
                materialize_grads=True,
            )[0]
    return field.detach()


@dataclass(frozen=True)
class Along:
    """A loss at phi, differentiated in one of these ways, for `taylor.ProductsAt`.

    Products with 0 are free.
    """

    way: Way
    loss: Loss
    phi: Vector

    @cached_property
    def gradient(self) -> Vector:
        return self.way(self.loss, self.phi)

    def product(self, v: Vector) -> Vector:
        return self._along(v)

    def products(self, u: Vector, v: Vector) -> tuple[Vector, Vector]:
        return self._along(u), self._along(u, v)

    def _along(self, *directions: Vector) -> Vector:
        zero = not all(bool(v.any()) for v in directions)
        return torch.zeros_like(self.phi) if zero else self.way(self.loss, self.phi, *directions)


def gradients_met(
    losses: Sequence[Loss], phi: Vector, alpha: float
) -> tuple[list[Vector], list[Vector]]:
    """Run SGD, and return phi_1 … phi_{k+1} and g_1 … g_k."""
    points, gradients = [phi], []
    for loss in losses:
        gradients.append(gradient(loss, points[-1]))
        points.append(points[-1] - alpha * gradients[-1])
    return points, gradients


def by_products(
    losses: Sequence[Loss], phi: Vector, alpha: float, way: Way
) -> Float[Tensor, "u P"]:
    """Return g_1 … g_k, and MAML's gradient as the product of equation 21."""
    points, gradients = gradients_met(losses, phi, alpha)
    v = gradients[-1]
    for loss, point in reversed(list(zip(losses[:-1], points, strict=False))):
        v = v - alpha * way(loss, point, v)
    return torch.stack([*gradients, v])


def through_the_loop(losses: Sequence[Loss], phi: Vector, alpha: float) -> Float[Tensor, "u P"]:
    """Return g_1 … g_k, and MAML's gradient by one backward pass through all steps."""
    start = phi.detach().requires_grad_()
    point, gradients = start, []
    with torch.enable_grad():
        for loss in losses[:-1]:
            gradients.append(torch.autograd.grad(loss(point), point, create_graph=True)[0])
            point = point - alpha * gradients[-1]
        last, maml = torch.autograd.grad(losses[-1](point), [point, start])
    return torch.stack([*(g.detach() for g in gradients), last, maml])


def adapted_loss(losses: Sequence[Loss], alpha: float) -> Callable[[Vector], Tensor]:
    """Return L_k(phi_k) as a function of phi_1: what MAML differentiates."""

    def value(phi: Vector) -> Tensor:
        points, _ = gradients_met(losses[:-1], phi, alpha)
        return evaluated(losses[-1], points[-1])

    return value
