"""Expectations by enumeration against dense algebra over explicit lists of orders."""

from itertools import permutations

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
    pair_expectation,
    pair_prediction,
    predicted,
    predicted_maml,
)
from analysis.theory.losses import cubic, tanh_network
from analysis.theory.taylor import inner_gradients, maml_gradient
from reptile_core.meta_gradients import average, last, total


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
    _close(pair_expectation(pool.losses, pool.phi, case), pair_prediction(pool.losses, pool.phi, case))


def test_expected_gradients_are_means_over_all_orders(pool):
    orders = list(permutations(pool.losses, 3))
    means = sum(torch.stack(inner_gradients(order, pool.phi, 0.1)) for order in orders) / len(orders)
    _close(expected_inner_gradients(pool.losses, pool.phi, 0.1, 3), means)
    maml = sum(maml_gradient(order, pool.phi, 0.1) for order in orders) / len(orders)
    _close(expected_maml(pool.losses, pool.phi, 0.1, 3), maml)


@pytest.mark.parametrize("k", [2, 3])
def test_coefficients_meet_the_theorem_and_miss_each_others(k):
    pool = cubic(4)
    terms = average_gradient(pool.losses, pool.phi), average_gradient_inner(pool.losses, pool.phi)
    weights = torch.tensor([total(k).weights, last(k).weights, average(k).weights], dtype=torch.float64)
    found = measure(lambda t: weights @ expected_inner_gradients(pool.losses, pool.phi, t, k), *terms, alpha=1e-3)
    found += measure(lambda t: expected_maml(pool.losses, pool.phi, t, k).unsqueeze(0), *terms, alpha=1e-3)
    expected = [*(predicted(w) for w in weights.tolist()), predicted_maml(k)]
    for measured, (avg_grad, avg_grad_inner) in zip(found, expected, strict=True):
        # Richardson leaves (alpha times curvature)^4, 1e-10 here, and round-off over alpha, 1e-12
        assert measured.avg_grad == pytest.approx(avg_grad, abs=1e-8)
        assert measured.avg_grad_inner == pytest.approx(avg_grad_inner, abs=1e-8)
        assert measured.unexplained < 1e-8
    assert abs(found[3].avg_grad_inner - found[1].avg_grad_inner) > 0.9  # MAML is not FOMAML


def test_the_papers_table():
    for k in range(1, 6):
        assert predicted(total(k).weights) == (k, -k * (k - 1) / 2)
        assert predicted(last(k).weights) == (1, -(k - 1))
        assert predicted_maml(k) == (1, -2 * (k - 1))


def test_too_many_steps_for_the_pool(pool):
    with pytest.raises(ValueError, match="k: expected 1 … 4 steps for a pool of 4 minibatches, found 5"):
        expected_inner_gradients(pool.losses, pool.phi, 0.1, 5)
