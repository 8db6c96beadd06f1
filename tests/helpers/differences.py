"""Derivatives of a model by differences.

They come from nothing but the model's losses and the gradients of plain torch. Nothing here imports
what it is to judge. A model is made for each evaluation, so that none depends on another.
All stencils are of fourth order: at ± h and ± 2 h for the first derivative, and at 0 too for the
second.
"""

import copy
from dataclasses import dataclass

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

# Truncation is STEP^4 ~ 2e-11 times some tens. Round-off in third derivatives is
# 1e-16 / STEP^3 ~ 1e-8 times some. The shorter step is for losses that change much within the
# parameters' own length.
STEPS = 2e-3, 4e-4


@dataclass(frozen=True)
class Numbers:
    """Derivatives by differences.

    Slopes along one direction are numbers, terms of g_2 vectors, per power of alpha.
    """

    direction: torch.Tensor
    g_bar: list  # of each minibatch, along the direction
    g_2: torch.Tensor  # as SGD meets it at alpha
    g_2_terms: list  # of order 1 and 2
    maml: float  # at alpha, along the direction
    maml_terms: list  # of order 1 and 2, along the direction
    sizes: dict  # what errors are compared with


def by_differences(make, loss, pairs, alpha, step):
    """Return the derivatives by differences for two steps over two minibatches."""
    net = make()
    phi = parameters_to_vector(p for p in net.parameters() if p.requires_grad).detach()
    g = torch.Generator().manual_seed(3)
    d = torch.randn(len(phi), generator=g, dtype=phi.dtype)
    d = d / d.norm()

    def at(point):
        own = make()
        vector_to_parameters(point, [p for p in own.parameters() if p.requires_grad])
        return own

    def value(point, i):
        x, y = copy.deepcopy(pairs[i])
        with torch.no_grad():
            return float(loss(at(point)(x), y))

    def gradient(point, i):
        own, (x, y) = at(point), copy.deepcopy(pairs[i])
        parameters = [p for p in own.parameters() if p.requires_grad]
        parts = torch.autograd.grad(loss(own(x), y), parameters, allow_unused=True)
        return torch.cat(
            [
                torch.zeros_like(p).flatten() if q is None else q.to_dense().flatten()
                for p, q in zip(parameters, parts, strict=True)
            ]
        )

    first = gradient(phi, 0)
    unit = float(phi.norm()) / float(first.norm())  # the alpha that moves phi by its own length
    h, e = step * unit, step * float(phi.norm())
    g_2 = {n: gradient(phi - n * h * first, 1) for n in (-2, -1, 0, 1, 2)}
    moved = {n: (phi + n * e * d, gradient(phi + n * e * d, 0)) for n in (-2, -1, 1, 2)}

    def maml(a):
        """Return the slope of L_2(phi - a L_1') along d."""
        return _first({n: value(point - a * start, 1) for n, (point, start) in moved.items()}, e)

    slopes = {n: maml(n * h) for n in (-2, -1, 0, 1, 2)}
    return Numbers(
        direction=d,
        g_bar=[_first({n: value(phi + n * e * d, i) for n in (-2, -1, 1, 2)}, e) for i in range(2)],
        g_2=gradient(phi - alpha * first, 1),
        g_2_terms=[_first(g_2, h), _second(g_2, h) / 2],
        maml=maml(alpha),
        maml_terms=[_first(slopes, h), _second(slopes, h) / 2],
        sizes={"phi": float(phi.norm()), "unit": unit, "g": float(g_2[0].norm())},
    )


def _first(f, h):
    return (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)


def _second(f, h):
    return (16 * (f[1] + f[-1]) - (f[2] + f[-2]) - 30 * f[0]) / (12 * h**2)
