"""Derivatives of a scalar loss of one flat vector, of any order, along given directions: forward
over reverse.

Theory code never sees a network: a loss is a function of phi (P,). No Hessian is ever formed; one
more direction costs one more forward-mode pass over what came before. `At`, `gradient` and
`hessian_at` are for where nothing differentiates further: they go by reverse mode alone, as the
core's compiled loops do. So does `derivative` where the loss asks for it by an attribute `reverse`
that is true.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from reptile_core import native

Vector = Float[Tensor, " P"]
Loss = Callable[[Vector], Float[Tensor, ""]]


def derivative(loss: Loss, phi: Vector, *directions: Vector) -> Vector:
    """Return L'(phi), differentiated along each direction: () gives L', (v) the product L'' v, (u,
    v) L'''[u, v], …"""
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
    """Return L'(phi), as the core takes it; not to be differentiated again."""
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
    """A loss at phi: its gradient, and products with its higher derivatives; not to be
    differentiated again.

    Reverse over reverse: what does not depend on the vectors, the gradient and its graph, is
    computed and held once, at the cost of a gradient, when a product asks for it. A product then
    runs back through it, which by flops are two gradients more; one with 0 is free.
    """

    def __init__(self, loss: Loss, phi: Vector) -> None:
        self.loss, self.phi = loss, phi.detach().requires_grad_()

    @cached_property
    def graph(self) -> Vector:
        """Return the gradient, with its graph."""
        with torch.enable_grad():
            return torch.autograd.grad(self.loss(self.phi), self.phi, create_graph=True)[0]

    @property
    def gradient(self) -> Vector:
        """L'; without a graph where no product was asked for before."""
        return self.graph.detach() if "graph" in vars(self) else gradient(self.loss, self.phi)

    def product(self, v: Vector) -> Vector:
        """Return L'' v."""
        return _back(self.graph, self.phi, v)

    def products(self, u: Vector, v: Vector) -> tuple[Vector, Vector]:
        """Return L'' u and L'''[u, v]: the second is the gradient of v . L'' u, as all derivatives
        are symmetric."""
        product = _back(self.graph, self.phi, u, graph=True)
        return product.detach(), _back(product, self.phi, v)


def hessian_at(loss: Loss, phi: Vector) -> Callable[[Vector], Vector]:
    """Return L''(phi) as the function v -> L''(phi) v; not to be differentiated again."""
    return At(loss, phi).product


def hessian_products(
    loss: Loss, phi: Vector, vectors: Float[Tensor, "n P"]
) -> Float[Tensor, "n P"]:
    """Return L'' v for many vectors in one batched pass. `hessian_at` in turn needs less memory,
    and on a CPU no more time."""
    return vmap(lambda v: derivative(loss, phi, v))(vectors)


def coefficients_in(
    f: Callable[[Float[Tensor, ""]], Tensor], order: int, *, at: Float[Tensor, ""]
) -> list[Tensor]:
    """Return f and its Taylor coefficients f^(n)(at) / n!, n = 0 … order, by nested forward mode:
    no formula is needed.

    Cost grows as 2^order.
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
    """Take the gradient of v . f in phi: 0 where f has no graph, as the gradient of a linear
    loss."""
    if not (f.requires_grad and v.any()):
        return torch.zeros_like(phi)
    return torch.autograd.grad(
        f, phi, v, retain_graph=True, create_graph=graph, allow_unused=True, materialize_grads=True
    )[0]


def _constant(x: Tensor) -> bool:
    """Say whether nobody asks for derivatives in x from outside."""
    return native.plain(x) and not x.requires_grad
