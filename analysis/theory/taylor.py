"""Section 5.1: inner gradients and meta-gradients as series in the inner learning rate alpha.

The notation is the paper's, with L_i the loss of minibatch i and all bars at the initialization
phi_1:

    g_bar_i = L_i'(phi_1),  H_bar_i = L_i''(phi_1),  T_bar_i = L_i'''(phi_1)
    s_i = sum_{j<i} g_bar_j

    g_i = g_bar_i - alpha H_bar_i s_i
          + alpha^2 (H_bar_i sum_{j<i} H_bar_j s_j + 1/2 T_bar_i[s_i, s_i]) + O(alpha^3)

A series is a list of coefficients, [order 0, order 1, …]. Sums over j < i are carried along with i,
so that all terms of a k-step loop cost O(k) products.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from analysis.theory.derivatives import At, Loss, Products, Vector, coefficients_in, derivative

Series = list[Vector]
# Takes the derivatives of a loss at a point: `At`, or a class of one's own.
ProductsAt = Callable[[Loss, Vector], Products]
# Beyond it the terms have no short formula; `inner_gradient_series` goes to any order.
HIGHEST_FORMULA = 2


def inner_gradients(
    losses: Sequence[Loss], phi: Vector, alpha: Float[Tensor, ""] | float
) -> list[Vector]:
    """Return g_1 … g_k of k steps of SGD, phi_{i+1} = phi_i - alpha g_i.

    They are differentiable in phi and in alpha.
    """
    gradients = []
    for loss in losses:
        gradients.append(derivative(loss, phi))
        phi = phi - alpha * gradients[-1]
    return gradients


def maml_gradient(losses: Sequence[Loss], phi: Vector, alpha: Float[Tensor, ""] | float) -> Vector:
    """Return d/dphi_1 L_k(phi_k), differentiated through the k - 1 inner steps."""

    def adapted_loss(start: Vector) -> Tensor:
        point = start
        for g in inner_gradients(losses[:-1], start, alpha):
            point = point - alpha * g
        return losses[-1](point)

    return grad(adapted_loss)(phi)


def maml_product(losses: Sequence[Loss], phi: Vector, alpha: float) -> Vector:
    """Return MAML's gradient as the product of equation 21, which is exact.

    The product is (I - alpha L_1''(phi_1)) … (I - alpha L_{k-1}''(phi_{k-1})) g_k.
    """
    points, gradients = [phi], inner_gradients(losses, phi, alpha)
    for g in gradients[:-1]:
        points.append(points[-1] - alpha * g)
    v = gradients[-1]
    for loss, point in reversed(list(zip(losses[:-1], points[:-1], strict=True))):
        v = v - alpha * derivative(loss, point, v)
    return v


def inner_gradient_terms(
    losses: Sequence[Loss], phi: Vector, order: int, *, products_at: ProductsAt = At
) -> list[Series]:
    """Return the series of each g_i to `order` 0, 1 or 2 in alpha, by the formulas above.

    products_at: takes the gradient and the products L'' v and L'''[u, v]; `At` uses reverse mode.

    The series are not to be differentiated again.
    """
    _check_order(order)
    s, firsts = torch.zeros_like(phi), torch.zeros_like(phi)
    series = []
    for loss in losses:
        terms = _terms(products_at(loss, phi), s, firsts, order)
        series.append(terms)
        s = s + terms[0]
        firsts = firsts + (terms[1] if order >= 1 else 0)
    return series


def _terms(at: Products, s: Vector, firsts: Vector, order: int) -> Series:
    """Return the series of one g_i to `order`.

    s: the sum over j < i of g_bar_j, which is s_i. firsts: the same sum of the order-1 terms of
        g_j.

    All orders share one graph of the gradient, and T_i[s_i, s_i] comes from the product H_i s_i.
    """
    if order == 0:
        return [at.gradient]
    if order == 1:
        product = at.product(s)  # before the gradient, which then costs nothing
        return [at.gradient, -product]
    product, bend = at.products(s, s)
    # sum_{j<i} H_j s_j is minus the sum of the earlier order-1 terms
    return [at.gradient, -product, at.product(-firsts) + bend / 2]


def maml_terms(
    losses: Sequence[Loss], phi: Vector, order: int, *, products_at: ProductsAt = At
) -> Series:
    """Return the series of MAML's gradient to `order` 0, 1 or 2 in alpha.

    Order 1 (equation 24) is -H_k s_k - sum_{j<k} H_j g_bar_k. Order 2 is the gradient in phi_1 of
    the order-2 term of L_k(phi_k), which is g_bar_k . sum_{j<k} H_j s_j + 1/2 s_k . H_k s_k:

        (order 2 of g_k) + sum_{j<k} ( T_j[g_bar_k, s_j] + H_j (H_k s_k + sum_{j<l<k} H_l g_bar_k) )

    products_at: as in `inner_gradient_terms`.

    The series is not to be differentiated again.
    """
    _check_order(order)
    before = inner_gradient_terms(losses[:-1], phi, max(order - 1, 0), products_at=products_at)
    partial_sums = _partial_sums([terms[0] for terms in before], phi)
    firsts = torch.zeros_like(phi)
    if order >= 2:
        firsts = _partial_sums([terms[1] for terms in before], phi)[-1]
    terms = _terms(products_at(losses[-1], phi), partial_sums[-1], firsts, order)
    if order == 0:
        return terms
    g_bar_k, minus_h_k_s_k = terms[0], terms[1]
    later = torch.zeros_like(phi)  # sum over j < l < k of H_l g_bar_k
    for loss, s_j in reversed(list(zip(losses[:-1], partial_sums[:-1], strict=True))):
        at = products_at(loss, phi)
        if order == 1:
            product = at.product(g_bar_k)
        else:
            product, bend = at.products(g_bar_k, s_j)
            terms[2] = terms[2] + bend + at.product(later - minus_h_k_s_k)
        terms[1] = terms[1] - product
        later = later + product
    return terms


def weighted_terms(series: Sequence[Series], weights: Sequence[float]) -> Series:
    """Return the series of sum_i w_i g_i from the series of the g_i."""
    if len(weights) != len(series):
        raise ValueError(
            f"weights: expected one per inner step ({len(series)}), found {len(weights)}"
        )
    found = []
    for n in range(len(series[0])):
        of_order_n = [terms[n] for terms in series]
        found.append(sum_of(weights, of_order_n))
    return found


def inner_gradient_series(losses: Sequence[Loss], phi: Vector, order: int) -> list[Series]:
    """Return the series of each g_i to any order, by nested automatic differentiation.

    The coefficients are derivatives in alpha at 0: an independent check of the formulas.
    """
    zero = torch.zeros((), dtype=phi.dtype, device=phi.device)

    def stacked(alpha: Tensor) -> Tensor:
        return torch.stack(inner_gradients(losses, phi, alpha))

    coefficients = coefficients_in(stacked, order, at=zero)
    found = []
    for i in range(len(losses)):
        found.append([coefficient[i] for coefficient in coefficients])
    return found


def maml_series(losses: Sequence[Loss], phi: Vector, order: int) -> Series:
    """Return the series of MAML's gradient to any order, as derivatives in alpha at 0."""
    zero = torch.zeros((), dtype=phi.dtype, device=phi.device)
    return coefficients_in(lambda alpha: maml_gradient(losses, phi, alpha), order, at=zero)


def evaluate_series(series: Series, alpha: float, order: int | None = None) -> Vector:
    """Return the polynomial in alpha, truncated after `order`."""
    kept = series if order is None else series[: order + 1]
    return sum_of([alpha**n for n in range(len(kept))], kept)


def sum_of(weights: Sequence[float], vectors: Sequence[Vector]) -> Vector:
    """Return sum_i w_i v_i."""
    return torch.einsum("i,ip->p", vectors[0].new_tensor(weights), torch.stack(list(vectors)))


def remainder_slope(
    exact: Callable[[float], Vector], truncated: Callable[[float], Vector], alphas: Sequence[float]
) -> tuple[float, list[float]]:
    """Return the log-log slope of |exact - truncated| against alpha, and the remainders themselves.

    The slope is fitted by least squares. A truncation after order n should give n + 1. Remainders
    within a hundredfold of round-off, eps |exact|, say nothing about the rate and are left out of
    the fit. The slope is nan where fewer than three are left.
    """
    remainders, kept = [], []
    for alpha in alphas:
        if not (isfinite(alpha) and alpha > 0):
            raise ValueError(f"alphas: expected finite numbers above 0, found {alpha}")
        value = exact(alpha)
        remainder = float((value - truncated(alpha)).norm())
        remainders.append(remainder)
        if remainder > 100 * torch.finfo(value.dtype).eps * float(value.norm()):
            kept.append((alpha, remainder))
    if len(kept) < 3:
        return float("nan"), remainders
    x, y = torch.tensor(kept, dtype=torch.float64).log().unbind(-1)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x)), remainders


def _partial_sums(vectors: Sequence[Vector], like: Vector) -> list[Vector]:
    """Return s_1 = 0, s_2 = v_1, s_3 = v_1 + v_2, …: one more than there are vectors."""
    sums = [torch.zeros_like(like)]
    for vector in vectors:
        sums.append(sums[-1] + vector)
    return sums


def _check_order(order: int) -> None:
    if order not in range(HIGHEST_FORMULA + 1):
        raise ValueError(
            f"order: expected 0 … {HIGHEST_FORMULA} for the formulas, found {order}; "
            "inner_gradient_series and maml_series go to any order"
        )
