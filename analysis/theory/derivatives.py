"""Derivatives of any order of a scalar loss of one flat vector, along given directions.

They are taken by forward over reverse mode. Theory code never sees a network: a loss is a function
of phi (P,). No Hessian is ever formed. Each further direction costs one more forward-mode pass over
what came before.

`At`, `gradient` and `hessian_at` are for results that nothing differentiates further. They use
reverse mode alone, as the core's compiled loops do. `derivative` does the same where the loss has a
true attribute `reverse` and no outer derivative is taken.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp

from reptile_core import native

Vector = Float[Tensor, " P"]
Loss = Callable[[Vector], Float[Tensor, ""]]


def derivative(loss: Loss, phi: Vector, *directions: Vector) -> Vector:
    """Return L'(phi), differentiated along each direction.

    No direction gives L', (v) gives the product L'' v, (u, v) gives L'''[u, v], and so on.
    """
    if getattr(loss, "reverse", False) and all(map(_constant, (phi, *directions))):
        return _by_reverse(loss, phi, *directions)
    if not directions:
        return grad(loss)(phi)
    *before, last = directions
    return along(lambda point: derivative(loss, point, *before), phi, last)


def along(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """Return d/dt f(x + t direction) at t = 0."""
    return jvp(f, (x,), (direction,))[1]


def gradient(loss: Loss, phi: Vector) -> Vector:
    """Return L'(phi) as the core takes it, not to be differentiated again."""
    point = phi.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(loss(point), point)[0]


class Products(Protocol):
    """A loss at a point: its gradient, and products with its higher derivatives."""

    @property
    def gradient(self) -> Vector: ...

    def product(self, v: Vector) -> Vector: ...

    def products(self, u: Vector, v: Vector) -> tuple[Vector, Vector]: ...


class At:
    """A loss at phi: its gradient, and products with its higher derivatives.

    Nothing here is to be differentiated again. Derivatives go by reverse over reverse mode. The
    gradient and its graph do not depend on the vectors. They are computed when the first product
    asks for them, at the cost of a gradient, and then held. Each product runs back through this
    graph, which by flops costs two more gradients. A product with 0 is free.
    """

    def __init__(self, loss: Loss, phi: Vector) -> None:
        self.loss, self.phi = loss, phi.detach().requires_grad_()

    @cached_property
    def graph(self) -> Vector:
        """The gradient, with its graph."""
        with torch.enable_grad():
            return torch.autograd.grad(self.loss(self.phi), self.phi, create_graph=True)[0]

    @property
    def gradient(self) -> Vector:
        """The gradient L'; taken without a graph where no product was asked for before."""
        return self.graph.detach() if "graph" in vars(self) else gradient(self.loss, self.phi)

    def product(self, v: Vector) -> Vector:
        """Return L'' v."""
        return _back(self.graph, self.phi, v)

    def products(self, u: Vector, v: Vector) -> tuple[Vector, Vector]:
        """Return L'' u and L'''[u, v].

        All derivatives are symmetric, so the second is the gradient of v . L'' u.
        """
        product = _back(self.graph, self.phi, u, graph=True)
        return product.detach(), _back(product, self.phi, v)


def hessian_at(loss: Loss, phi: Vector) -> Callable[[Vector], Vector]:
    """Return L''(phi) as the function v -> L''(phi) v, not to be differentiated again."""
    return At(loss, phi).product


def coefficients_in(
    f: Callable[[Float[Tensor, ""]], Tensor], order: int, *, at: Float[Tensor, ""]
) -> list[Tensor]:
    """Return f and its Taylor coefficients f^(n)(at) / n! for n = 0 … order.

    They are taken by nested forward mode: no formula is needed. The cost grows as 2^order.
    """
    terms, factorial = [f(at)], 1
    one = torch.ones_like(at)
    for n in range(1, order + 1):
        f = _differentiated(f, one)
        factorial *= n
        terms.append(f(at) / factorial)
    return terms


def _differentiated(f: Callable[[Tensor], Tensor], one: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: along(f, x, one)


def _by_reverse(loss: Loss, phi: Vector, *directions: Vector) -> Vector:
    if not directions:
        return gradient(loss, phi)
    at = At(loss, phi)
    product = at.graph
    for n, v in enumerate(directions, 1):
        product = _back(product, at.phi, v, graph=n < len(directions))
    return product.detach()


def _back(f: Vector, phi: Vector, v: Vector, *, graph: bool = False) -> Vector:
    """Return the gradient of v . f in phi.

    It is 0 where f has no graph, such as the gradient of a linear loss.
    """
    if not (f.requires_grad and v.any()):
        return torch.zeros_like(phi)
    return torch.autograd.grad(
        f, phi, v, retain_graph=True, create_graph=graph, allow_unused=True, materialize_grads=True
    )[0]


def _constant(x: Tensor) -> bool:
    """Return whether no outer derivative in x is being taken."""
    return native.plain(x) and not x.requires_grad
