"""The series against dense Hessians, closed forms and a naive loop.

None of these shares anything with the formulas.
"""

import pytest
import torch
from torch.func import hessian

from analysis.theory.derivatives import At, derivative
from analysis.theory.losses import cubic, on_minibatch, quadratic, tanh_network
from analysis.theory.taylor import (
    evaluate_series,
    inner_gradient_series,
    inner_gradient_terms,
    inner_gradients,
    maml_gradient,
    maml_product,
    maml_series,
    maml_terms,
    remainder_slope,
    weighted_terms,
)
from reptile_core.losses import CrossEntropy
from reptile_core.networks import omniglot
from tests.helpers.data import generator, minibatches

ROUND_OFF = 1e-12  # float64, vectors of some ten numbers


def _close(found, expected, tolerance=ROUND_OFF):
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-300))
    assert error <= tolerance, f"relative error {error:.1e}"


def _dense(losses, phi):
    return [hessian(loss)(phi) for loss in losses], [torch.func.grad(loss)(phi) for loss in losses]


@pytest.mark.parametrize("make", [quadratic, cubic, tanh_network])
def test_first_order_terms_against_dense_hessians(make):
    pool = make()
    hessians, gradients = _dense(pool.losses, pool.phi)
    for i, terms in enumerate(inner_gradient_terms(pool.losses, pool.phi, 1)):
        _close(terms[0], gradients[i])
        _close(terms[1], -hessians[i] @ sum(gradients[:i], torch.zeros_like(pool.phi)))


def test_on_a_quadratic_two_steps_are_exact_and_the_third_leaves_one_term():
    pool, alpha = quadratic(), 0.1
    hessians, gradients = _dense(pool.losses, pool.phi)
    first_order = inner_gradient_terms(pool.losses, pool.phi, 1)
    exact = inner_gradients(pool.losses, pool.phi, alpha)
    _close(evaluate_series(first_order[1], alpha), exact[1])
    left = exact[2] - evaluate_series(first_order[2], alpha)
    # This is a difference of larger numbers.
    _close(left, alpha**2 * hessians[2] @ hessians[1] @ gradients[0], 1e-10)


def test_mamls_first_order_is_equation_24():
    pool, k = tanh_network(), 4
    hessians, gradients = _dense(pool.losses[:k], pool.phi)
    expected = -hessians[-1] @ sum(gradients[:-1]) - sum(h @ gradients[-1] for h in hessians[:-1])
    _close(maml_terms(pool.losses[:k], pool.phi, 1)[1], expected)


@pytest.mark.parametrize("make", [quadratic, cubic, tanh_network])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_formulas_equal_nested_forward_mode(make, k):
    pool = make()
    losses = pool.losses[:k]
    for formula, nested in zip(
        inner_gradient_terms(losses, pool.phi, 2)[-1],
        inner_gradient_series(losses, pool.phi, 2)[-1],
        strict=True,
    ):
        assert float((formula - nested).norm()) <= ROUND_OFF * max(float(nested.norm()), 1.0)
    for formula, nested in zip(
        maml_terms(losses, pool.phi, 2), maml_series(losses, pool.phi, 2), strict=True
    ):
        assert float((formula - nested).norm()) <= ROUND_OFF * max(float(nested.norm()), 1.0)


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_the_papers_network_by_hand_equals_nested_forward_mode(activation):
    """The paper's network by compiled loops equals nested forward mode, which uses none of them."""
    k, network = 3, omniglot(5, activation=activation)
    loss, phi = CrossEntropy(network, "mean"), network.initialize(0, dtype=torch.float64)
    losses = [on_minibatch(loss, batch) for batch in minibatches(k, batch=3)]
    found = [*inner_gradient_terms(losses, phi, 2), maml_terms(losses, phi, 2)]
    expected = [*inner_gradient_series(losses, phi, 2), maml_series(losses, phi, 2)]
    for series, nested in zip(found, expected, strict=True):
        for term, wanted in zip(series, nested, strict=True):
            # Round-off of sums of thousands of terms.
            assert float((term - wanted).norm()) <= 1e-11 * float(wanted.norm())


@pytest.mark.parametrize("reverse", [False, True])
def test_derivatives_in_both_modes(reverse):
    """Derivatives are right in both modes.

    A loss that asks for reverse mode gets it, except where a transform or autograd asks for more.
    """
    pool = tanh_network()
    loss, (u, v) = (
        pool.losses[0],
        torch.randn(2, len(pool.phi), generator=generator(), dtype=torch.float64),
    )

    class Loss:
        def __call__(self, phi):
            return loss(phi)

    Loss.reverse = reverse
    dense = hessian(loss)(pool.phi)
    _close(derivative(Loss(), pool.phi), torch.func.grad(loss)(pool.phi))
    _close(derivative(Loss(), pool.phi, u), dense @ u)
    _close(
        derivative(Loss(), pool.phi, u, v), torch.func.jvp(hessian(loss), (pool.phi,), (v,))[1] @ u
    )
    _close(torch.func.grad(lambda p: derivative(Loss(), p) @ u)(pool.phi), dense @ u)
    point = pool.phi.clone().requires_grad_()
    _close(torch.autograd.grad(derivative(Loss(), point) @ u, point)[0], dense @ u)
    many = torch.func.vmap(lambda v: derivative(Loss(), pool.phi, v))(torch.stack([u, v]))
    _close(many, torch.stack([u, v]) @ dense)


def test_products_with_zero_and_of_losses_without_curvature():
    phi, zero = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for at, curvature in (
        (At(lambda p: 2 * p.sum(), phi), 0.0),
        (At(lambda p: (p * p).sum(), phi), 2.0),
    ):
        assert torch.equal(at.products(phi, phi)[0], curvature * phi)
        assert torch.equal(at.products(phi, phi)[1], zero)
        assert torch.equal(at.product(zero), zero)


def test_inner_gradients_and_maml_against_a_naive_loop_and_central_differences():
    pool, alpha, k = tanh_network(), 0.05, 3
    phi = pool.phi.clone()
    for i, g in enumerate(inner_gradients(pool.losses[:k], pool.phi, alpha)):
        point = phi.clone().requires_grad_()
        pool.losses[i](point).backward()
        _close(g, point.grad)
        phi = phi - alpha * point.grad

    def adapted(start):
        for g in inner_gradients(pool.losses[: k - 1], start, alpha):
            start = start - alpha * g
        return pool.losses[k - 1](start)

    # Central differences of step 1e-5 in float64 err by some tens of 1e-10 (truncation) and of
    # 2e-16 / 1e-5 (round-off).
    step = 1e-5 * torch.eye(len(pool.phi), dtype=pool.phi.dtype)
    numeric = torch.stack([(adapted(pool.phi + e) - adapted(pool.phi - e)) / 2e-5 for e in step])
    _close(maml_gradient(pool.losses[:k], pool.phi, alpha), numeric, 1e-8)
    _close(maml_product(pool.losses[:k], pool.phi, alpha), numeric, 1e-8)


def test_third_derivative_of_a_cubic_form_by_hand():
    t = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, v, phi = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = derivative(lambda p: torch.einsum("ijk,i,j,k->", t, p, p, p), phi, u, v)
    orders = ["ijk", "ikj", "jik", "kij", "jki", "kji"]
    _close(found, sum(torch.einsum(f"{order},j,k->i", t, u, v) for order in orders))


def test_slope_of_a_known_remainder_and_of_round_off():
    ones = torch.ones(2, dtype=torch.float64)
    alphas = [0.1 * 2.0**-n for n in range(6)]
    slope, remainders = remainder_slope(lambda a: (1 + a**3) * ones, lambda a: ones, alphas)
    # 1 + a^3 sets the floor, but does not enter the fit.
    assert slope == pytest.approx(3, abs=1e-3)
    assert remainders[0] == pytest.approx(2**0.5 * 1e-3)
    slope, _ = remainder_slope(lambda a: ones, lambda a: ones, alphas)
    assert slope != slope  # nan: there is nothing to fit


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_step_sizes_are_named(alpha):
    with pytest.raises(ValueError, match="alphas: expected finite numbers above 0"):
        remainder_slope(lambda a: torch.ones(1), lambda a: torch.ones(1), [alpha])


def test_bad_order_and_weights_are_named():
    pool = quadratic()
    with pytest.raises(ValueError, match="order: expected 0 … 2"):
        inner_gradient_terms(pool.losses, pool.phi, 3)
    with pytest.raises(ValueError, match=r"weights: expected one per inner step \(5\), found 2"):
        weighted_terms(inner_gradient_terms(pool.losses, pool.phi, 1), [1.0, 1.0])
