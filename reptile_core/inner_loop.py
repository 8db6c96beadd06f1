"""The inner loop: k steps of SGD or Adam on the minibatches of one task.

It goes from phi_1 to phi_{k+1} and gives g_1 … g_k. Everything is a function of its arguments:
losses take (phi, minibatch), optimizers take (phi, g, state). Leading axes of phi are lanes, and a
loss gives one number per lane. Lanes share nothing, so the gradient of the sum over lanes is each
lane's own gradient.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from reptile_core import native
from reptile_core.losses import Minibatch

Phi = Float[Tensor, "*lanes P"]
State = tuple[Tensor, ...]
Loss = Callable[[Phi, Minibatch], Float[Tensor, "*lanes"]]


class InnerOptimizer(Protocol):
    """An optimizer of the inner loop, which takes one step phi_i -> phi_{i+1} at a time.

    `state` is whatever it carries from step to step, as tensors.
    """

    @property
    def learning_rate(self) -> float: ...

    def start(self, phi: Phi) -> State: ...

    def step(self, phi: Phi, g: Phi, state: State) -> tuple[Phi, State]: ...


@dataclass(frozen=True)
class SGD:
    """SGD: phi_{i+1} = phi_i - alpha g_i."""

    learning_rate: float

    def __post_init__(self) -> None:
        _check_learning_rate(self.learning_rate)

    def start(self, phi: Phi) -> State:
        return ()

    def step(self, phi: Phi, g: Phi, state: State) -> tuple[Phi, State]:
        return torch.add(phi, g, alpha=-self.learning_rate), state


@dataclass(frozen=True)
class Adam:
    """Adam with beta1 = 0, as the authors use it in the inner loop.

    A step is the gradient over the root of its running second moment. The state is v, the second
    moments, shaped like phi, and t, the number of steps, in float64 as its powers need it. The
    formula is that of torch.optim.Adam, where eps is added after the bias correction. TensorFlow's
    formula differs only by a factor on eps.
    """

    learning_rate: float
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_learning_rate(self.learning_rate)
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2: expected a number in [0, 1), found {self.beta2}")

    def start(self, phi: Phi) -> State:
        return torch.zeros_like(phi), torch.zeros((), dtype=torch.float64, device=phi.device)

    def step(self, phi: Phi, g: Phi, state: State) -> tuple[Phi, State]:
        v, t = state
        parts = phi, g, v
        plain = all(
            native.supports_tensor(p) and p.is_contiguous() and not p.requires_grad for p in parts
        )
        # Lanes may share the moments that they start from.
        if plain and phi.numel() == g.numel() == v.numel():
            correction = 1 - self.beta2 ** (t.item() + 1)
            after, v = native.adam(
                *parts,
                beta2=self.beta2,
                correction=correction,
                learning_rate=self.learning_rate,
                eps=self.eps,
            )
            return after, (v, t + 1)
        v = self.beta2 * v + (1 - self.beta2) * g * g
        t = t + 1
        corrected = v / (1 - self.beta2**t)
        return phi - self.learning_rate * g / (_root(corrected) + self.eps), (v, t)


@dataclass(frozen=True)
class Step:
    """Step i of the inner loop: phi_i, g_i = L_i'(phi_i), phi_{i+1} and the optimizer's state.

    The state is the one after the step.
    """

    before: Phi
    gradient: Phi
    after: Phi
    state: State


def gradient(loss: Loss, phi: Phi, batch: Minibatch, *, differentiable: bool = False) -> Phi:
    """Return L'(phi), lane by lane.

    differentiable: keep the graph, so that the result can be differentiated in phi.

    Without `differentiable`, a loss's own `gradient` method is used where it has one, as it is
    faster. Autograd is used where it has none, or where the method returns None.
    """
    if not differentiable:
        phi = phi.detach()
        by_hand = getattr(loss, "gradient", None)
        if by_hand is not None and (g := by_hand(phi, batch)) is not None:
            return g
        phi = phi.requires_grad_()
    with torch.enable_grad():
        total = loss(phi, batch).sum()
    return torch.autograd.grad(total, phi, create_graph=differentiable)[0]


def hessian_product(loss: Loss, phi: Phi, batch: Minibatch, v: Phi) -> Phi:
    """Return L''(phi) v, lane by lane."""
    point = phi.detach().requires_grad_()
    g = gradient(loss, point, batch, differentiable=True)
    if not g.requires_grad:  # a linear loss
        return torch.zeros_like(v)
    return torch.autograd.grad(g, point, v)[0]


def inner_loop(
    loss: Loss,
    phi: Phi,
    minibatches: Iterable[Minibatch],
    optimizer: InnerOptimizer,
    state: State | None = None,
    *,
    differentiable: bool = False,
) -> Iterator[Step]:
    """Run one step per minibatch and yield each as it is done.

    Nothing is kept that the caller does not keep.

    state: Adam's moments from an earlier task; None starts with fresh ones.
    """
    state = optimizer.start(phi) if state is None else state
    for batch in minibatches:
        g = gradient(loss, phi, batch, differentiable=differentiable)
        after, state = optimizer.step(phi, g, state)
        yield Step(before=phi, gradient=g, after=after, state=state)
        phi = after


def _root(v: Tensor) -> Tensor:
    """Return the square root, with derivative 0 at 0.

    The true derivative at 0 is infinite, and would meet a gradient that is 0 throughout.
    """
    if not v.requires_grad:
        return v.sqrt()
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


def _check_learning_rate(learning_rate: float) -> None:
    if not (isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate: expected a finite number above 0, found {learning_rate}")
