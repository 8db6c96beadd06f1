"""Update directions of the outer loop: Reptile, FOMAML, any sum of inner steps, and MAML.

MAML's direction has its second derivatives. All directions are displacements. Under SGD, the step
phi_i - phi_{i+1} is alpha g_i. So Reptile's phi_1 - phi_{k+1} is alpha (g_1 + … + g_k), FOMAML's
direction is alpha g_k and MAML's is alpha g_MAML. One outer step size serves them all. The authors'
code does the same under Adam, where a step is not its gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from reptile_core.inner_loop import (
    InnerOptimizer,
    Loss,
    Phi,
    State,
    gradient,
    hessian_product,
    inner_loop,
)
from reptile_core.losses import Minibatch


@dataclass(frozen=True)
class Variant:
    """A sum w_1 g_1 + … + w_k g_k, given by its weights.

    label: its name in the figures, in LaTeX without dollars.
    """

    name: str
    weights: tuple[float, ...]
    label: str

    @property
    def k(self) -> int:
        return len(self.weights)

    @property
    def kind(self) -> str:
        """The kind among variants of one k: "joint" (k = 1), "sum", "average", "last", "other"."""
        if self.k == 1:
            return "joint"
        kinds = {"sum": sum_of(self.k), "average": average(self.k), "last": last(self.k)}
        return next(
            (kind for kind, variant in kinds.items() if variant.weights == self.weights), "other"
        )


def sum_of(k: int) -> Variant:
    """Return g_1 + … + g_k: Reptile with k steps."""
    return Variant("+".join(f"g{i}" for i in range(1, k + 1)), (1.0,) * k, _sum_label(k))


def average(k: int) -> Variant:
    """Return (g_1 + … + g_k) / k."""
    return Variant(
        f"({sum_of(k).name})/{k}", (1.0 / k,) * k, rf"\frac{{1}}{{{k}}}({_sum_label(k)})"
    )


def last(k: int) -> Variant:
    """Return g_k: first-order MAML with k steps."""
    return Variant(f"g{k}", (0.0,) * (k - 1) + (1.0,), f"g_{k}")


def own(name: str, weights: Sequence[float]) -> Variant:
    """Return your own sum w_1 g_1 + … + w_k g_k, under a name."""
    return Variant(name, tuple(map(float, weights)), rf"\mathrm{{{name.replace(' ', '~')}}}")


def figure_3(k_max: int = 4) -> tuple[Variant, ...]:
    """Return g_1 and, for each further k, the sum, its average and the last gradient.

    With k_max = 4 these are the ten variants of the paper's figure 3.
    """
    if k_max < 1:
        raise ValueError(f"k_max: expected at least 1 inner step, found {k_max}")
    each = product(range(2, k_max + 1), (sum_of, average, last))
    return (last(1), *(make(k) for k, make in each))


def weighted_sum(
    loss: Loss,
    phi: Phi,
    minibatches: Sequence[Minibatch],
    optimizer: InnerOptimizer,
    weights: Sequence[float | Float[Tensor, "lanes 1"]],
    state: State | None = None,
) -> tuple[Phi, State]:
    """Return sum_i w_i (phi_i - phi_{i+1}), and the optimizer's state after the task.

    Under SGD the sum is alpha sum_i w_i g_i. A weight is a number, or one for each lane.
    """
    if len(weights) != len(minibatches):
        raise ValueError(
            f"weights: expected one per inner step ({len(minibatches)}), found {len(weights)}"
        )
    direction = torch.zeros_like(phi)
    for weight, step in zip(
        weights, inner_loop(loss, phi, minibatches, optimizer, state), strict=True
    ):
        if isinstance(weight, Tensor):
            direction += weight * (step.before - step.after)
        elif weight:
            direction.add_(step.before - step.after, alpha=weight)
        state = step.state
    assert state is not None  # at least one weight: a Variant has k >= 1
    return direction, state


def maml(
    loss: Loss,
    phi: Phi,
    minibatches: Sequence[Minibatch],
    optimizer: InnerOptimizer,
    state: State | None = None,
) -> tuple[Phi, State]:
    """Return alpha d/dphi_1 L_k(phi_k), and the optimizer's state after the k - 1 inner steps.

    The derivative goes from g_k back through one step after the other. Under SGD, a step back is v
    <- v - alpha L_j''(phi_j) v. Of each earlier step only phi_j, g_j and the state are kept; apart
    from these, memory does not grow with k. The state that comes in from earlier tasks is a
    constant of the derivative.
    """
    state, steps = optimizer.start(phi) if state is None else state, []
    for batch in minibatches[:-1]:
        step = _begin(loss, phi, batch, state)
        phi, state = optimizer.step(phi, step.gradient, state)
        steps.append(step)
    v = gradient(loss, phi, minibatches[-1])
    along_state = tuple(map(torch.zeros_like, state))
    while steps:
        v, along_state = _back_through(optimizer, steps.pop(), v, along_state)
    return optimizer.learning_rate * v, state


@dataclass(frozen=True)
class _Begun:
    """An inner step before it is taken, and the product of its Hessian with a vector."""

    phi: Phi
    gradient: Phi
    state: State
    product: Callable[[Phi], Phi]


def _begin(loss: Loss, phi: Phi, batch: Minibatch, state: State) -> _Begun:
    by_hand = getattr(loss, "point", None)
    if by_hand is not None and (point := by_hand(phi, batch)) is not None:
        return _Begun(phi, point.gradient, state, point.product)
    return _Begun(
        phi, gradient(loss, phi, batch), state, lambda v: hessian_product(loss, phi, batch, v)
    )


def _back_through(
    optimizer: InnerOptimizer, step: _Begun, v: Phi, along_state: State
) -> tuple[Phi, State]:
    """Turn the gradient in a step's results, phi and state, into the gradient in its inputs."""
    inputs = [part.detach().requires_grad_() for part in (step.phi, step.gradient, *step.state)]
    with torch.enable_grad():
        after, state = optimizer.step(inputs[0], inputs[1], tuple(inputs[2:]))
    found = torch.autograd.grad(
        (after, *state), inputs, (v, *along_state), allow_unused=True, materialize_grads=True
    )
    return found[0] + step.product(found[1]), found[2:]


def _sum_label(k: int) -> str:
    terms = [f"g_{i}" for i in range(1, k + 1)]
    return " + ".join(terms if k <= 4 else [terms[0], r"\ldots", terms[-1]])
