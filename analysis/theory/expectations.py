"""Section 5.1: AvgGrad and AvgGradInner, and how much of each an update contains in expectation.

The expectation over exchangeable minibatches of one task is made exact by a pool of m minibatches
and all ordered choices of k of them without repetition: no sampling noise is left. Then, to leading
orders,

    E[sum_i w_i g_i] = (sum w_i) AvgGrad - alpha (sum w_i (i - 1)) AvgGradInner,
    E[g_MAML]        = AvgGrad - 2 (k - 1) alpha AvgGradInner,

with AvgGrad = E[g_bar_1] and AvgGradInner = E[H_bar_2 g_bar_1] = 1/2 d/dphi E[g_bar_1 . g_bar_2].

Where a pool is too large to enumerate, the same expectations are sampled, with their standard
errors.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import nan, perm, sqrt

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from analysis.theory.derivatives import At, Loss, Vector, derivative, gradient
from analysis.theory.taylor import inner_gradients


@dataclass(frozen=True)
class Coefficients:
    """What an update contains of the two terms; nan where these are parallel or one is zero.

    avg_grad: the coefficient of AvgGrad.
    avg_grad_inner: the coefficient of AvgGradInner, per alpha.
    unexplained: the part of its first-order term along neither, as a multiple of AvgGradInner.
    error: what the last halving of alpha moved the coefficient of AvgGradInner by, at most. The
        extrapolation is nearer, unless round-off decides.
    """

    avg_grad: float
    avg_grad_inner: float
    unexplained: float
    error: float


@dataclass(frozen=True)
class SampleMean:
    """A number from a sample, and its standard error."""

    value: float
    standard_error: float


def average_gradient(pool: Sequence[Loss], phi: Vector) -> Vector:
    """Return AvgGrad = E[g_bar_1]."""
    return torch.stack([derivative(loss, phi) for loss in pool]).mean(0)


def average_gradient_inner(pool: Sequence[Loss], phi: Vector) -> Vector:
    """Return AvgGradInner = E[H_bar_2 g_bar_1] over ordered pairs of different minibatches.

    It takes m products: the sum is sum_a H_a (sum_b g_b - g_a).
    """
    _check_pool(pool)
    gradients = [derivative(loss, phi) for loss in pool]
    whole = torch.stack(gradients).sum(0)
    products = [derivative(loss, phi, whole - g) for loss, g in zip(pool, gradients, strict=True)]
    return torch.stack(products).sum(0) / perm(len(pool), 2)


def inner_product_gradient(pool: Sequence[Loss], phi: Vector) -> Vector:
    """Return 1/2 d/dphi E[g_bar_1 . g_bar_2] over pairs of different minibatches.

    The inner products themselves are differentiated.
    """
    _check_pool(pool)

    def mean_inner_product(point: Vector) -> Tensor:
        gradients = torch.stack([grad(loss)(point) for loss in pool])
        gram = gradients @ gradients.T
        return (gram.sum() - gram.diagonal().sum()) / perm(len(pool), 2)

    return grad(mean_inner_product)(phi) / 2


def predicted(weights: Sequence[float]) -> tuple[float, float]:
    """Return the theorem's coefficients of AvgGrad and of alpha AvgGradInner.

    They are (sum w_i, -sum w_i (i - 1)).
    """
    return sum(weights), -sum(w * i for i, w in enumerate(weights))


def predicted_maml(k: int) -> tuple[float, float]:
    """Return (1, -2 (k - 1)): the theorem's coefficients for MAML with k steps."""
    return 1.0, -2.0 * (k - 1)


def expected_inner_gradients(
    pool: Sequence[Loss], phi: Vector, alpha: float, k: int
) -> Float[Tensor, "k P"]:
    """Return E[g_1] … E[g_k], exactly, over all ordered k-subsets of the pool.

    Any E[sum_i w_i g_i] is a weighted sum of these. Orders that begin alike share their first
    steps: a tree with perm(m, 1) + … + perm(m, k) gradients in all.
    """
    _check_steps(k, len(pool))
    means = phi.new_zeros(k, phi.numel())
    for depth, g in _tree(pool, phi, alpha, k):
        means[depth] += g / perm(len(pool), depth + 1)
    return means


def expected_maml(pool: Sequence[Loss], phi: Vector, alpha: float, k: int) -> Vector:
    """Return E[g_MAML] with k steps, exactly, over all ordered k-subsets of the pool.

    Orders that begin alike share their first Hessian, and products are linear. So by equation 21
    this is the mean over the first minibatch a of

        (I - alpha H_a) E[g_MAML of k - 1 steps on the others, from phi - alpha g_a].

    This is a tree with perm(m, 1) + … + perm(m, k - 1) products, and perm(m, k) gradients at its
    leaves.
    """
    _check_steps(k, len(pool))
    updates = []
    for index, loss in enumerate(pool):
        if k == 1:
            updates.append(gradient(loss, phi))
            continue
        at = At(loss, phi)
        others = [*pool[:index], *pool[index + 1 :]]
        rest = expected_maml(others, phi - alpha * at.graph.detach(), alpha, k - 1)
        updates.append(rest - alpha * at.product(rest))
    return torch.stack(updates).mean(0)


def sampled_inner_gradients(
    pool: Sequence[Loss],
    phi: Vector,
    alpha: float,
    k: int,
    *,
    samples: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "k P"], Float[Tensor, "k P"]]:
    """Return E[g_1] … E[g_k] and their standard errors from random ordered k-subsets of the pool.

    There are `samples` subsets, of k gradients each. The errors of different i and parameters come
    from the same sample: they are dependent.
    """
    _check_steps(k, len(pool))

    def sample() -> Tensor:
        return torch.stack(inner_gradients(_draw(pool, k, generator), phi, alpha))

    return monte_carlo(sample, samples)


def sampled_terms(
    pool: Sequence[Loss], phi: Vector, *, samples: int, generator: torch.Generator
) -> tuple[Float[Tensor, "2 P"], Float[Tensor, "2 P"]]:
    """Return (AvgGrad, AvgGradInner) and their standard errors from random pairs of minibatches.

    There are `samples` ordered pairs, each of different minibatches.
    """
    _check_pool(pool)

    def one() -> Tensor:
        first, second = _draw(pool, 2, generator)
        g = derivative(first, phi)
        return torch.stack([g, derivative(second, phi, g)])

    return monte_carlo(one, samples)


def monte_carlo(draw: Callable[[], Tensor], samples: int) -> tuple[Tensor, Tensor]:
    """Return the mean of `samples` independent draws and its standard error, elementwise.

    Uses Welford's recurrence: it holds two tensors, and nothing cancels where the spread is small
    against the mean.
    """
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, for a standard error, found {samples}")
    mean = draw()
    squares = torch.zeros_like(mean)
    for n in range(2, samples + 1):
        value = draw()
        step = value - mean
        mean = mean + step / n
        squares = squares + step * (value - mean)
    return mean, (squares / (samples - 1)).sqrt() / sqrt(samples)


def measure(
    updates: Callable[[float], Float[Tensor, "n P"]],
    avg_grad: Vector,
    avg_grad_inner: Vector,
    *,
    alpha: float,
) -> list[Coefficients]:
    """Return the coefficients of n expected updates in the limit alpha -> 0.

    They come from the updates' values at ± alpha and ± alpha / 2. The even part in alpha holds
    order 0 and the odd part order 1, each with an error two orders higher. Richardson's
    extrapolation removes it, which leaves an error four orders higher. Then each part is projected
    on the two terms by least squares.
    """
    plus, minus, half_plus, half_minus = (
        updates(t) for t in (alpha, -alpha, alpha / 2, -alpha / 2)
    )
    orders_0 = (4 * (half_plus + half_minus) - (plus + minus)) / 6
    orders_1 = (8 * (half_plus - half_minus) - (plus - minus)) / (6 * alpha)
    moved = (2 * (half_plus - half_minus) - (plus - minus)) / (2 * alpha)
    own = avg_grad_inner - _share(avg_grad, avg_grad_inner) * avg_grad
    errors = (moved.norm(dim=-1) / own.norm()).tolist()
    results = []
    for order_0, order_1, error in zip(orders_0, orders_1, errors, strict=True):
        share_0, share_1 = (_project(part, avg_grad, avg_grad_inner) for part in (order_0, order_1))
        rest = order_1 - share_1[0] * avg_grad - share_1[1] * avg_grad_inner
        results.append(
            Coefficients(share_0[0], share_1[1], float(rest.norm() / avg_grad_inner.norm()), error)
        )
    return results


def are_independent(first: Vector, second: Vector) -> bool:
    """Return whether two vectors have coefficients of their own in a sum.

    They have none where both are parallel to half of the digits, or where one is zero.
    """
    own = second - _share(first, second) * first
    return float(own.norm()) > torch.finfo(own.dtype).eps ** 0.5 * float(second.norm())


def _project(vector: Vector, first: Vector, second: Vector) -> tuple[float, float]:
    """Return the coefficients of the least-squares combination of two vectors.

    It goes by Gram-Schmidt: the last bits of LAPACK's solution depend on the address of its
    workspace in memory.
    """
    if not are_independent(first, second):
        return nan, nan
    overlap, alone = _share(first, second), _share(first, vector)
    b = _share(second - overlap * first, vector - alone * first)
    return float(alone - b * overlap), float(b)


def _share(one: Vector, of: Vector) -> Tensor:
    return (one * of).sum() / one.square().sum()


def _tree(
    pool: Sequence[Loss], phi: Vector, alpha: float, k: int, used: tuple[int, ...] = ()
) -> Iterator[tuple[int, Vector]]:
    """Yield (i - 1, g_i) for the i-th step of every ordered choice, each prefix once."""
    for index in set(range(len(pool))) - set(used):
        g = gradient(pool[index], phi)
        yield len(used), g
        if len(used) + 1 < k:
            yield from _tree(pool, phi - alpha * g, alpha, k, (*used, index))


def _draw(pool: Sequence[Loss], k: int, generator: torch.Generator) -> list[Loss]:
    """Draw k different minibatches in random order."""
    return [pool[index] for index in torch.randperm(len(pool), generator=generator)[:k].tolist()]


def _check_steps(k: int, m: int) -> None:
    if not 1 <= k <= m:
        raise ValueError(f"k: expected 1 … {m} steps for a pool of {m} minibatches, found {k}")


def _check_pool(pool: Sequence[Loss]) -> None:
    if len(pool) < 2:
        raise ValueError(f"pool: expected at least 2 minibatches, found {len(pool)}")


def _check_case(case: str) -> None:
    if case not in CASES:
        raise ValueError(f"case: expected {', '.join(CASES)}, found {case}")


CASES = "independent", "disjoint", "repeated"


def pair_expectation(pool: Sequence[Loss], phi: Vector, case: str) -> Vector:
    """Return E[H_bar_2 g_bar_1] over pairs of minibatches from the pool.

    case: "independent" for independent draws, "disjoint" for different minibatches, "repeated" for
        the same one twice.
    """
    _check_pool(pool)
    _check_case(case)
    gradients = torch.stack([derivative(loss, phi) for loss in pool])
    other = {
        "independent": gradients.mean(0).expand_as(gradients),
        "disjoint": (gradients.sum(0) - gradients) / (len(pool) - 1),
        "repeated": gradients,
    }[case]
    products = [derivative(loss, phi, v) for loss, v in zip(pool, other, strict=True)]
    return torch.stack(products).mean(0)


def pair_prediction(pool: Sequence[Loss], phi: Vector, case: str) -> Vector:
    """Return 1/2 d/dphi (|E g|^2 + tr Cov(g_1, g_2)).

    The covariance is 0 in the case "independent", -Var / (m - 1) in "disjoint" and +Var in
    "repeated".
    """
    _check_pool(pool)
    _check_case(case)
    share = {"independent": 0.0, "disjoint": -1 / (len(pool) - 1), "repeated": 1.0}[case]

    def second_moment(point: Vector) -> Tensor:
        gradients = torch.stack([grad(loss)(point) for loss in pool])
        mean = gradients.mean(0)
        variance = (gradients - mean).square().sum(-1).mean()
        return mean @ mean + share * variance

    return grad(second_moment)(phi) / 2
