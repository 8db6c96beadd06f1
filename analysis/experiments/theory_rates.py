"""The rate tests of the theorems: how fast the remainder of a truncated series falls with alpha."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from analysis.results.evidence import CHECK, CONTROL
from analysis.theory import modified_loss
from analysis.theory.derivatives import Loss, Vector, derivative
from analysis.theory.losses import Pool
from analysis.theory.taylor import (
    Series,
    evaluate_series,
    inner_gradient_series,
    inner_gradient_terms,
    inner_gradients,
    maml_gradient,
    maml_series,
    maml_terms,
    remainder_slope,
    weighted_terms,
)
from reptile_core.meta_gradients import last, sum_of

HALVINGS = 7


@dataclass(frozen=True)
class Rate:
    """A rate test: the remainder of `truncated` against `exact` should fall as alpha^order."""

    claim: str
    case: str
    role: str
    order: int
    exact: Callable[[float], Tensor]
    truncated: Callable[[float], Tensor]


def step_sizes(pool: Pool, *, order: int = 0) -> list[float]:
    """Return halvings of the alpha at which alpha |H g| / |g| is 0.01 for the sharpest minibatch.

    From order 4 on they begin at 0.03: 0.01^5 is too near to round-off to be halved.
    """
    largest = 0.01 if order < 4 else 0.03
    return [largest / pool.curvature * 2.0**-n for n in range(HALVINGS)]


def rate_rows(rate: Rate, pool: Pool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the measurement (slope less the order) and the remainders behind it."""
    alphas = step_sizes(pool, order=rate.order)
    slope, remainders = remainder_slope(rate.exact, rate.truncated, alphas)
    common = {"claim": rate.claim, "case": f"{pool.name}: {rate.case}", "role": rate.role}
    points = [
        common | {"order": rate.order, "alpha": alpha, "remainder": remainder, "slope": slope}
        for alpha, remainder in zip(alphas, remainders, strict=True)
    ]
    return common | {"value": slope - rate.order}, points


def gradient_rates(pool: Pool) -> Iterator[Rate]:
    """Yield the rates of taylor-gradient, and of g_i in taylor-second-order."""
    losses, phi = pool.losses, pool.phi
    series = inner_gradient_terms(losses, phi, 2)
    inner = cache(lambda alpha: inner_gradients(losses, phi, alpha))
    s = torch.zeros_like(phi)
    for i, loss in enumerate(losses):
        terms, g_bar = series[i], series[i][0]

        def exact(alpha: float, i: int = i) -> Tensor:
            return inner(alpha)[i]

        wrong_sum: Series = [terms[0], -derivative(loss, phi, s + g_bar)]
        no_third: Series = [*terms[:2], terms[2] - derivative(loss, phi, s, s) / 2]
        case = f"g_{i + 1}"
        if i >= 1 and not _vanishes(terms[2]):
            yield Rate("taylor-gradient", case, CHECK, 2, exact, _polynomial(terms, 1))
            yield Rate("taylor-gradient", case, CONTROL, 2, exact, _polynomial(wrong_sum, 1))
        if i >= 1 and pool.degree is None:
            yield Rate("taylor-second-order", case, CHECK, 3, exact, _polynomial(terms, 2))
            yield Rate("taylor-second-order", case, CONTROL, 3, exact, _polynomial(no_third, 2))
        s = s + g_bar


def update_rates(pool: Pool, k: int) -> Iterator[Rate]:
    """Yield the rates of taylor-maml, and of the meta-gradients in taylor-second-order."""
    losses, phi = pool.losses[:k], pool.phi
    series = inner_gradient_terms(losses, phi, 2)
    maml = maml_terms(losses, phi, 2)
    inner = cache(lambda alpha: torch.stack(inner_gradients(losses, phi, alpha)))
    exact = cache(lambda alpha: maml_gradient(losses, phi, alpha))

    if not _vanishes(maml[2]):
        yield Rate("taylor-maml", f"k = {k}", CHECK, 2, exact, _polynomial(maml, 1))
        yield Rate("taylor-maml", f"k = {k}", CONTROL, 2, exact, _polynomial(series[-1], 1))
    if pool.degree is not None:
        return
    case = f"MAML, k = {k}"
    yield Rate("taylor-second-order", case, CHECK, 3, exact, _polynomial(maml, 2))
    if k > 2:  # with two steps, T_1 meets no earlier step
        third = _third_derivatives_in_maml(losses, phi, [terms[0] for terms in series])
        no_third: Series = [*maml[:2], maml[2] - third]
        yield Rate("taylor-second-order", case, CONTROL, 3, exact, _polynomial(no_third, 2))
    for variant in (sum_of(k), last(k)):
        terms = weighted_terms(series, variant.weights)

        def summed(alpha: float, weights: tuple[float, ...] = variant.weights) -> Tensor:
            return phi.new_tensor(weights) @ inner(alpha)

        case = f"{variant.name}, k = {k}"
        yield Rate("taylor-second-order", case, CHECK, 3, summed, _polynomial(terms, 2))


def _third_derivatives_in_maml(
    losses: Sequence[Loss], phi: Vector, g_bar: Sequence[Vector]
) -> Vector:
    """Return sum_{j<k} T_j[g_bar_k, s_j], which the product over j < k adds to MAML's gradient."""
    total = s = torch.zeros_like(phi)
    for loss, g in zip(losses[:-1], g_bar[:-1], strict=True):
        if s.any():
            total = total + derivative(loss, phi, g_bar[-1], s)
        s = s + g
    return total


def any_order_rates(pool: Pool, k: int = 3) -> Iterator[Rate]:
    """Yield the rates of taylor-any-order, on g_k and on MAML."""
    losses, phi = pool.losses[:k], pool.phi

    def last_gradient(alpha: float) -> Tensor:
        return inner_gradients(losses, phi, alpha)[-1]

    def of_maml(alpha: float) -> Tensor:
        return maml_gradient(losses, phi, alpha)

    cases: tuple[tuple[str, Callable[[float], Tensor], Series], ...] = (
        (f"g_{k}", last_gradient, inner_gradient_series(losses, phi, 4)[-1]),
        (f"MAML, k = {k}", of_maml, maml_series(losses, phi, 4)),
    )
    for name, gradient_at, series in cases:
        exact = cache(gradient_at)
        for n in range(1, 5):
            wrong = [*series[:n], 1.01 * series[n]]
            case, order = f"{name}, n = {n}", n + 1
            yield Rate("taylor-any-order", case, CHECK, order, exact, _polynomial(series, n))
            yield Rate("taylor-any-order", case, CONTROL, order, exact, _polynomial(wrong, n))


def sgd_rates(pool: Pool, m: int = 4) -> Iterator[Rate]:
    """Yield the rates of implicit-sgd and minibatch-order."""
    losses, phi = pool.losses[:m], pool.phi

    epoch = cache(lambda eps: modified_loss.shuffled_displacement(losses, phi, eps))

    def flow(eps: float, correction: float) -> Tensor:
        field = modified_loss.modified_gradient(losses, correction * eps)
        return modified_loss.flow_displacement(field, phi, m * eps)

    yield Rate("implicit-sgd", f"m = {m}", CHECK, 3, epoch, lambda eps: flow(eps, 1.0))
    yield Rate("implicit-sgd", f"m = {m}", CONTROL, 3, epoch, lambda eps: flow(eps, 0.0))

    a, b = losses[:2]

    def difference(alpha: float) -> Tensor:
        return modified_loss.order_difference(a, b, phi, alpha)

    def prediction(alpha: float, sign: float = 1.0) -> Tensor:
        return sign * modified_loss.predicted_order_difference(a, b, phi, alpha)

    opposite = partial(prediction, sign=-1.0)
    yield Rate("minibatch-order", "two steps", CHECK, 3, difference, prediction)
    yield Rate("minibatch-order", "two steps", CONTROL, 3, difference, opposite)


def _polynomial(series: Series, order: int) -> Callable[[float], Tensor]:
    return lambda alpha: evaluate_series(series, alpha, order)


def _vanishes(term: Tensor) -> bool:
    """Return whether this coefficient is zero.

    The expansion before it is then exact, and leaves no slope to fit.
    """
    return float(term.norm()) == 0.0
