"""Derivatives of a scalar loss of one flat vector, of any order, along given directions: forward over reverse.

Theory code never sees a network: a loss is a function of phi (P,). No Hessian is ever formed; one more direction costs
one more forward-mode pass over what came before. `gradient` and `hessian_at` are for where nothing differentiates
further: they go by plain reverse mode, which alone has the core's compiled loops.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

Vector = Float[Tensor, " P"]
Loss = Callable[[Vector], Float[Tensor, ""]]


def derivative(loss: Loss, phi: Vector, *directions: Vector) -> Vector:
    """L'(phi), differentiated along each direction: () gives L', (v) the product L'' v, (u, v) L'''[u, v], …"""
    if not directions:
        return grad(loss)(phi)
    *before, last = directions
    return along(lambda point: derivative(loss, point, *before), phi, last)


def along(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """d/dt f(x + t direction) at t = 0."""
    return jvp(f, (x,), (direction,))[1]


def gradient(loss: Loss, phi: Vector) -> Vector:
    """L'(phi), as the core takes it; not to be differentiated again."""
    point = phi.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(loss(point), point)[0]


def hessian_at(loss: Loss, phi: Vector) -> Callable[[Vector], Vector]:
    """L''(phi) as the function v -> L''(phi) v; not to be differentiated again.

    Reverse over reverse: what does not depend on v, the gradient and its graph, is computed and held once, at the cost
    of a gradient; every product then runs back through it, which by flops are two gradients more.
    """
    point = phi.detach().requires_grad_()
    with torch.enable_grad():
        g = torch.autograd.grad(loss(point), point, create_graph=True)[0]
    if not g.requires_grad:  # a linear loss
        return torch.zeros_like
    return lambda v: torch.autograd.grad(g, point, v, retain_graph=True)[0]


def hessian_products(loss: Loss, phi: Vector, vectors: Float[Tensor, "n P"]) -> Float[Tensor, "n P"]:
    """L'' v for many vectors in one batched pass. `hessian_at` in turn needs less memory, and on a CPU no more time."""
    return vmap(lambda v: derivative(loss, phi, v))(vectors)


def coefficients_in(f: Callable[[Float[Tensor, ""]], Tensor], order: int, *, at: Float[Tensor, ""]) -> list[Tensor]:
    """f and its Taylor coefficients f^(n)(at) / n!, n = 0 … order, by nested forward mode: no formula is needed.

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
