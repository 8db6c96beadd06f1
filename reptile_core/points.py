"""The loss of a minibatch at one phi, by hand, for autograd to differentiate again and again.

Autograd would walk through a long graph. Here each derivative along directions, up to the third, is
one node, which `gradients` computes from the point alone. Beyond the third, torch.func goes on with
the tensor code.
"""

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.func import grad, jvp

from reptile_core.gradients import GradientByHand

HELD = 3  # points of one kind with buffers of their own
Vector = Float[Tensor, "*one P"]


class Point:
    """A loss at phi on the minibatch (x, y): value, gradient, and products with higher derivatives.

    loss: the same loss as a function of phi, in tensor code.

    Where another point has since taken the buffers, they are filled again.
    """

    def __init__(
        self,
        by_hand: GradientByHand,
        loss: Callable[[Vector], Tensor],
        phi: Vector,
        x: Tensor,
        y: Tensor,
    ):
        self.by_hand, self.loss, self.at = by_hand, loss, (phi.detach().clone(), x, y)
        self.gradient = self._fill()
        self.value = by_hand.value()

    def product(self, v: Vector) -> Vector:
        """Return L''(phi) v."""
        return self._coefficients(v, 1)[0]

    def third(self, u: Vector, v: Vector) -> Vector:
        """Return L'''(phi)[u, v].

        Where u and v differ, both are scaled to length 1 and (u + v)^2 - (u - v)^2 = 4 u v is used.
        """
        if torch.equal(u, v):
            return 2 * self._coefficients(v, 2)[1]
        lengths = u.norm() * v.norm()
        if not lengths > 0:
            return torch.zeros_like(u)
        u, v = u / u.norm(), v / v.norm()
        return (self._coefficients(u + v, 2)[1] - self._coefficients(u - v, 2)[1]) * (lengths / 2)

    def _coefficients(self, v: Vector, order: int) -> list[Vector]:
        if self.by_hand.holder is None or self.by_hand.holder() is not self:
            self._fill()
        return self.by_hand.coefficients(v, order)

    def _fill(self) -> Vector:
        gradient = self.by_hand(*self.at)
        self.by_hand.holder = ref(self)
        return gradient


def take(held: list[GradientByHand], make: Callable[[], GradientByHand]) -> GradientByHand:
    """Return buffers that no point needs, or new ones, or those taken first once there are HELD."""
    free = next((one for one in held if one.holder is None or one.holder() is None), None)
    if free is None:
        free = held[0] if len(held) == HELD else make()
    held[:] = [one for one in held if one is not free] + [free]
    return free


class Value(Function):
    """L(phi)."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, point: Point) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.point = point
        return point.value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        return cotangent[0] * First.apply(*ctx.saved_tensors, ctx.point), None


class First(Function):
    """L'(phi)."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, point: Point) -> Tensor:
        ctx.save_for_backward(phi)
        ctx.point = point
        return point.gradient.clone()

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        return Second.apply(*ctx.saved_tensors, cotangent[0], ctx.point), None


class Second(Function):
    """L''(phi) v."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, v: Tensor, point: Point) -> Tensor:
        ctx.save_for_backward(phi, v)
        ctx.point = point
        return point.product(v)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        (phi, v), (u,) = ctx.saved_tensors, cotangent
        in_phi, in_v, _ = ctx.needs_input_grad
        return (
            Third.apply(phi, u, v, ctx.point) if in_phi else None,
            Second.apply(phi, u, ctx.point) if in_v else None,
            None,
        )


class Third(Function):
    """L'''(phi)[u, v]."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, u: Tensor, v: Tensor, point: Point) -> Tensor:
        ctx.save_for_backward(phi, u, v)
        ctx.point = point
        return point.third(u, v)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        (phi, u, v), (w,) = ctx.saved_tensors, cotangent
        in_phi, in_u, in_v, _ = ctx.needs_input_grad
        fourth = along(along(along(grad(ctx.point.loss), u), v), w)
        return (
            fourth(phi) if in_phi else None,
            Third.apply(phi, w, v, ctx.point) if in_u else None,
            Third.apply(phi, w, u, ctx.point) if in_v else None,
            None,
        )


def along(f: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the derivative of f in this direction, as a function."""
    return lambda x: jvp(f, (x,), (direction,))[1]
