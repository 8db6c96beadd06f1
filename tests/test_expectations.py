"""Expectations by enumeration against dense algebra over explicit lists of orders."""

from itertools import permutations
from math import isnan

import pytest
import torch
from torch.func import grad, hessian

from analysis.theory.expectations import (
    average_gradient,
    average_gradient_inner,
    expected_inner_gradients,
    expected_maml,
    inner_product_gradient,
    measure,
    monte_carlo,
    pair_expectation,
    pair_prediction,
    predicted,
    predicted_maml,
    sampled_inner_gradients,
    sampled_terms,
)
from analysis.theory.losses import cubic, tanh_network
from analysis.theory.taylor import inner_gradients, maml_gradient
from reptile_core.meta_gradients import average, last, sum_of
from tests.helpers.data import generator


@pytest.fixture(scope="module")
def pool():
    return tanh_network(4)


def _close(found, expected, tolerance=1e-12):
    assert float((found - expected).norm() / expected.norm()) <= tolerance


def test_the_two_terms_by_dense_algebra(pool):
    gradients = [grad(loss)(pool.phi) for loss in pool.losses]
    hessians = [hessian(loss)(pool.phi) for loss in pool.losses]
    pairs = [hessians[b] @ gradients[a] for a, b in permutations(range(4), 2)]
    _close(average_gradient(pool.losses, pool.phi), sum(gradients) / 4)
    _close(average_gradient_inner(pool.losses, pool.phi), sum(pairs) / 12)
    _close(inner_product_gradient(pool.losses, pool.phi), sum(pairs) / 12)
    _close(pair_expectation(pool.losses, pool.phi, "disjoint"), sum(pairs) / 12)


@pytest.mark.parametrize("case", ["independent", "disjoint", "repeated"])
def test_covariance_cases_agree(pool, case):
    _close(
        pair_expectation(pool.losses, pool.phi, case), pair_prediction(pool.losses, pool.phi, case)
    )


def test_expected_gradients_are_means_over_all_orders(pool):
    orders = list(permutations(pool.losses, 3))
    means = sum(torch.stack(inner_gradients(order, pool.phi, 0.1)) for order in orders) / len(
        orders
    )
    _close(expected_inner_gradients(pool.losses, pool.phi, 0.1, 3), means)
    maml = sum(maml_gradient(order, pool.phi, 0.1) for order in orders) / len(orders)
    _close(expected_maml(pool.losses, pool.phi, 0.1, 3), maml)


@pytest.mark.parametrize("k", [2, 3])
def test_coefficients_meet_the_theorem_and_miss_each_others(k):
    pool = cubic(4)
    terms = average_gradient(pool.losses, pool.phi), average_gradient_inner(pool.losses, pool.phi)
    weights = torch.tensor(
        [sum_of(k).weights, last(k).weights, average(k).weights], dtype=torch.float64
    )
    found = measure(
        lambda t: weights @ expected_inner_gradients(pool.losses, pool.phi, t, k),
        *terms,
        alpha=1e-3,
    )
    found += measure(
        lambda t: expected_maml(pool.losses, pool.phi, t, k).unsqueeze(0), *terms, alpha=1e-3
    )
    expected = [*(predicted(w) for w in weights.tolist()), predicted_maml(k)]
    for measured, (avg_grad, avg_grad_inner) in zip(found, expected, strict=True):
        # Richardson's method leaves (alpha times curvature)^4, 1e-10 here, and round-off / alpha,
        # 1e-12.
        assert measured.avg_grad == pytest.approx(avg_grad, abs=1e-8)
        assert measured.avg_grad_inner == pytest.approx(avg_grad_inner, abs=1e-8)
        assert measured.unexplained < 1e-8
    assert abs(found[3].avg_grad_inner - found[1].avg_grad_inner) > 0.9  # MAML is not FOMAML


def test_coefficients_are_those_of_least_squares_and_the_same_bits_each_time():
    first, second, zeroth, slope = (
        torch.randn(23, dtype=torch.float64, generator=generator(n)) for n in range(4)
    )
    columns = torch.stack([first, second + 3 * first], -1)  # far from orthogonal
    found = [
        measure(lambda t: (zeroth + t * slope).unsqueeze(0), *columns.T, alpha=0.1)[0]
        for _ in range(20)
    ]
    assert len(set(found)) == 1
    expected = [
        torch.linalg.lstsq(columns, part.unsqueeze(-1)).solution for part in (zeroth, slope)
    ]
    assert found[0].avg_grad == pytest.approx(expected[0][0].item(), rel=1e-12)
    assert found[0].avg_grad_inner == pytest.approx(expected[1][1].item(), rel=1e-12)


def test_the_error_is_what_the_last_halving_moves():
    """With third order c alpha^3 the odd part is b + c alpha^2: halving moves it by 3/4 of that."""
    first, second, third = torch.eye(3, dtype=torch.float64)
    (found,) = measure(
        lambda t: (first + t * second + 5 * t**3 * third).unsqueeze(0), first, second, alpha=0.1
    )
    assert found.error == pytest.approx(0.75 * 5 * 0.1**2, rel=1e-9)
    assert found.avg_grad_inner == pytest.approx(1.0, rel=1e-12)


def test_unusable_pools_and_cases_are_named(pool):
    few = pool.losses[:1]
    for call in (
        lambda: average_gradient_inner(few, pool.phi),
        lambda: inner_product_gradient(few, pool.phi),
        lambda: pair_expectation(few, pool.phi, "repeated"),
        lambda: pair_prediction(few, pool.phi, "independent"),
        lambda: sampled_terms(few, pool.phi, samples=2, generator=generator()),
    ):
        with pytest.raises(ValueError, match="pool: expected at least 2 minibatches, found 1"):
            call()
    for function in (pair_expectation, pair_prediction):
        with pytest.raises(
            ValueError, match="case: expected independent, disjoint, repeated, found other"
        ):
            function(pool.losses, pool.phi, "other")


def isotropic(width, m=4):
    """Return losses |phi - c|^2 / 2 and a point: AvgGradInner is AvgGrad."""
    g = generator(width)
    centres, phi = (torch.randn(n, width, dtype=torch.float64, generator=g) for n in (m, 1))
    return [lambda p, c=c: (p - c).square().sum() / 2 for c in centres], phi[0]


@pytest.mark.parametrize("width", [1, 6])
def test_no_coefficients_of_parallel_terms(width):
    """With one parameter, or H = I, no least squares can tell the two terms apart."""
    losses, phi = isotropic(width)
    terms = average_gradient(losses, phi), average_gradient_inner(losses, phi)
    _close(*terms)
    for first, second in (terms, (0 * terms[0], terms[1]), (terms[0], 0 * terms[1])):
        (found,) = measure(
            lambda t: expected_inner_gradients(losses, phi, t, 3)[-1:], first, second, alpha=0.01
        )
        assert isnan(found.avg_grad) and isnan(found.avg_grad_inner) and isnan(found.unexplained)


def test_the_papers_table():
    for k in range(1, 6):
        assert predicted(sum_of(k).weights) == (k, -k * (k - 1) / 2)
        assert predicted(last(k).weights) == (1, -(k - 1))
        assert predicted_maml(k) == (1, -2 * (k - 1))


# Sampled. The largest of some tens of dependent deviations exceeds 4.5 standard errors about once
# in some thousand draws; with the seeds fixed, the result never changes.


def _standard_errors(found, expected, standard_error):
    """Return the largest deviation, in standard errors."""
    return float(((found - expected).abs() / standard_error).max())


def test_sampled_inner_gradients_are_within_their_standard_errors(pool):
    alpha, k = 0.3, 3
    mean, error = sampled_inner_gradients(
        pool.losses, pool.phi, alpha, k, samples=400, generator=generator()
    )
    expected = expected_inner_gradients(pool.losses, pool.phi, alpha, k)
    assert mean.shape == error.shape == expected.shape
    assert _standard_errors(mean, expected, error) < 4.5
    other_rate = expected_inner_gradients(pool.losses, pool.phi, alpha / 2, k)
    assert _standard_errors(mean, other_rate, error) > 4.5  # the check can fail
    orders = torch.stack(
        [torch.stack(inner_gradients(o, pool.phi, alpha)) for o in permutations(pool.losses, k)]
    )
    true_error = orders.std(0, correction=0) / 400**0.5
    # 4.5 / sqrt(800), and some room for heavier tails.
    assert ((error / true_error - 1).abs() < 0.25).all()


def test_sampled_minibatches_do_not_repeat(pool):
    """A sampled order holds no minibatch twice.

    All m of m minibatches are drawn, so that every order holds each once.
    The gradients of linear losses then have the same sum in every order.
    """
    linear = [lambda phi, c=c: c * phi.sum() for c in range(4)]
    mean, error = sampled_inner_gradients(
        linear, pool.phi, 0.1, 4, samples=50, generator=generator()
    )
    assert mean.sum(0) == pytest.approx(torch.full_like(pool.phi, 6.0))
    assert (error > 0).all()


def test_sampled_terms_are_within_their_standard_errors(pool):
    mean, error = sampled_terms(pool.losses, pool.phi, samples=400, generator=generator())
    expected = torch.stack(
        [average_gradient(pool.losses, pool.phi), average_gradient_inner(pool.losses, pool.phi)]
    )
    assert _standard_errors(mean, expected, error) < 4.5
    repeated = torch.stack([expected[0], pair_expectation(pool.losses, pool.phi, "repeated")])
    # Pairs of the same minibatch would show.
    assert _standard_errors(mean, repeated, error) > 4.5


def test_samples_follow_from_the_generator_alone(pool):
    first, again, other = (
        sampled_terms(pool.losses, pool.phi, samples=5, generator=generator(s))[0]
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_means_and_standard_errors_of_known_numbers():
    numbers = 1e8 + torch.arange(10.0, dtype=torch.float64)  # their squares would cancel
    draws = iter(numbers)
    mean, error = monte_carlo(lambda: next(draws), 10)
    assert float(mean) == 1e8 + 4.5
    assert float(error) == pytest.approx(float(numbers.std()) / 10**0.5, rel=1e-12)


def test_too_many_steps_for_the_pool(pool):
    with pytest.raises(
        ValueError, match="k: expected 1 … 4 steps for a pool of 4 minibatches, found 5"
    ):
        expected_inner_gradients(pool.losses, pool.phi, 0.1, 5)
    with pytest.raises(
        ValueError, match="k: expected 1 … 4 steps for a pool of 4 minibatches, found 5"
    ):
        sampled_inner_gradients(pool.losses, pool.phi, 0.1, 5, samples=2, generator=generator())
    with pytest.raises(
        ValueError, match="samples: expected at least 2, for a standard error, found 1"
    ):
        sampled_terms(pool.losses, pool.phi, samples=1, generator=generator())
