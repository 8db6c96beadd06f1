"""Curvature against dense Hessians of a tiny network and closed forms on quadratics, in float64.

ROUND_OFF: sums of some tens of numbers of size about 1, each off by 2^-52.
Eigenvalue solvers add a few digits' worth of constants.
"""

from dataclasses import replace

import pytest
import torch
from torch.func import grad, hessian

from analysis.theory.curvature import SpectralDensity, extreme_eigenvalues, spectral_density, trace
from analysis.theory.derivatives import derivative, gradient, hessian_at
from analysis.theory.losses import cubic, quadratic, tanh_network
from reptile_core.losses import CrossEntropy
from reptile_core.networks import omniglot
from tests.helpers.data import assert_close, generator, minibatch, normal

ROUND_OFF = 1e-12
EIGENVALUES = torch.tensor([-2.0, -0.5, 0.0, 0.0, 0.25, 1.0, 1.0, 4.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    """Return a minibatch's loss, the point and its dense Hessian.

    There are 17 parameters, and eigenvalues of both signs.
    """
    pool = tanh_network(1)
    return pool.losses[0], pool.phi, hessian(pool.losses[0])(pool.phi)


@pytest.fixture(scope="module")
def known():
    """Return a quadratic with EIGENVALUES, a point and its Hessian.

    Two eigenvalues are double, so that Lanczos' method ends early.
    """
    q = torch.linalg.qr(normal(8, 8)).Q
    a = q @ EIGENVALUES.diag() @ q.T
    return (lambda phi: phi @ a @ phi / 2), normal(8, seed=1), a


# Products, once linearized


@pytest.mark.parametrize("make", [quadratic, cubic, tanh_network])
def test_products_equal_the_dense_hessians(make):
    pool = make(1)
    product, dense = hessian_at(pool.losses[0], pool.phi), hessian(pool.losses[0])(pool.phi)
    for v in normal(2, len(pool.phi)):
        assert_close(product(v), dense @ v, ROUND_OFF)
    assert_close(gradient(pool.losses[0], pool.phi), grad(pool.losses[0])(pool.phi), ROUND_OFF)


def test_a_linear_loss_has_no_curvature():
    product = hessian_at(lambda phi: 3 * phi.sum(), normal(4))
    assert torch.equal(product(normal(4, seed=1)), torch.zeros(4, dtype=torch.float64))


def test_the_caller_may_be_without_gradients(known):
    loss, phi, a = known
    with torch.no_grad():
        assert_close(hessian_at(loss, phi)(phi), a @ phi, ROUND_OFF)
        assert_close(gradient(loss, phi), a @ phi, ROUND_OFF)
    assert not phi.requires_grad


@pytest.mark.parametrize(
    "activation, dtype, tolerance",
    [("relu", torch.float32, 1e-4), ("softplus", torch.float64, 1e-10)],
)
def test_products_of_the_omniglot_network_equal_forward_over_reverse(activation, dtype, tolerance):
    """Products of the Omniglot network equal forward-over-reverse ones.

    The modes are nested differently, and in float32 compiled loops meet tensor code.
    Round-off grows through four batch norms.
    Where a ReLU's input is within round-off of 0, the two may differ.
    """
    network, batch = omniglot(5, activation=activation), minibatch(dtype=dtype)
    loss, phi = CrossEntropy(network, reduction="mean"), network.initialize(0, dtype=dtype)
    v = normal(len(phi), dtype=dtype)
    found = hessian_at(lambda point: loss(point, batch), phi)(v)
    expected = derivative(lambda point: loss(point, batch), phi, v)
    assert float((found - expected).norm() / expected.norm()) < tolerance


# Trace


def test_the_trace_is_within_its_standard_errors_and_a_wrong_one_is_not(network):
    loss, phi, dense = network
    found = trace(loss, phi, samples=400, generator=generator())
    assert abs(found.value - dense.trace()) < 4 * found.standard_error
    # For random signs the variance is twice the sum of squares off the diagonal. The spread of 400
    # samples is known to 1 / sqrt(800).
    off_diagonal = dense - dense.diagonal().diag()
    assert found.standard_error == pytest.approx(
        float((2 * off_diagonal.square().sum() / 400).sqrt()), rel=0.2
    )
    assert abs(found.value - torch.linalg.eigvalsh(dense).abs().sum()) > 4 * found.standard_error


def test_the_trace_of_a_diagonal_hessian_is_exact():
    a = normal(9)
    found = trace(
        lambda phi: (a * phi * phi).sum() / 2, normal(9, seed=1), samples=3, generator=generator()
    )
    assert found.value == pytest.approx(float(a.sum()), rel=ROUND_OFF)
    assert found.standard_error < ROUND_OFF


# Eigenvalues


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_eigenvalues_of_the_dense_hessian(network, which):
    loss, phi, dense = network
    found = extreme_eigenvalues(loss, phi, count=3, which=which, generator=generator())
    every = torch.linalg.eigvalsh(dense)
    order = {"LA": -every, "SA": every, "LM": -every.abs()}[which].argsort()
    assert_close(found.values, every[order[:3]].sort(descending=True).values, 1e-10)
    assert_close(found.vectors @ found.vectors.T, torch.eye(3, dtype=torch.float64), 1e-10)
    # Errors of eigenvectors grow with the inverse gap between eigenvalues.
    assert_close(found.vectors @ dense, found.values.unsqueeze(-1) * found.vectors, 1e-8)
    assert found.residuals.max() < 1e-8 * dense.norm()


def test_eigenvalues_in_float32_and_from_any_start(known):
    _, phi, a = known
    for seed in range(3):
        found = extreme_eigenvalues(
            lambda p: p @ a.float() @ p / 2, phi.float(), count=2, generator=generator(seed)
        )
        # Each of some tens of products is off by 2^-24.
        assert_close(found.values, torch.tensor([4.0, 1.0]), 1e-5)


# Spectral density


def test_full_lanczos_finds_every_eigenvalue_with_the_weight_its_vector_gives_it(known):
    loss, phi, a = known
    g = generator()
    density = spectral_density(loss, phi, steps=8, samples=3, generator=generator())
    values, vectors = torch.linalg.eigh(a)
    for points, weights in zip(density.points, density.weights, strict=True):
        shares = (
            vectors.T @ (2 * torch.randint(2, phi.shape, generator=g) - 1).to(phi)
        ) ** 2 / len(phi)
        for value in EIGENVALUES.unique():
            near, own = (at.sub(value).abs() < 1e-6 for at in (points, values))
            assert float(weights[near].sum()) == pytest.approx(float(shares[own].sum()), abs=1e-10)


def test_moments_of_each_vector_are_its_own(network):
    """Each vector's moments below degree 2 steps are exact: z . H^n z / P.

    That is Gauss quadrature's degree; z are the signs that the generator gives.
    """
    loss, phi, dense = network
    steps, samples, g = 3, 4, generator()
    density = spectral_density(loss, phi, steps=steps, samples=samples, generator=generator())
    for row in range(samples):
        z = 2.0 * torch.randint(2, phi.shape, generator=g) - 1
        z = z.to(phi)
        one = replace(
            density,
            points=density.points[row : row + 1].repeat(2, 1),
            weights=density.weights[row].repeat(2, 1),
        )
        for order in range(2 * steps + 1):
            expected = float(z @ torch.linalg.matrix_power(dense, order) @ z) / len(z)
            if order < 2 * steps:
                assert one.moment(order).value == pytest.approx(expected, rel=1e-10)
            else:
                assert one.moment(order).value != pytest.approx(expected, rel=1e-6)


def test_moments_are_traces(network):
    loss, phi, dense = network
    density = spectral_density(loss, phi, steps=6, samples=100, generator=generator())
    assert density.weights.sum(-1) == pytest.approx(torch.ones(100), abs=ROUND_OFF)
    # Both use the same signs, so that the numbers are the same.
    hutchinson = trace(loss, phi, samples=100, generator=generator())
    assert density.moment(1).value == pytest.approx(hutchinson.value / len(phi), rel=1e-10)
    assert density.moment(1).standard_error == pytest.approx(
        hutchinson.standard_error / len(phi), rel=1e-10
    )
    for order in range(1, 5):
        exact = float(torch.linalg.matrix_power(dense, order).trace()) / len(phi)
        found = density.moment(order)
        assert abs(found.value - exact) < 4 * found.standard_error
        assert abs(found.value - 2 * exact) > 4 * found.standard_error


def test_no_ghosts_where_one_eigenvalue_dominates():
    """A dominating eigenvalue appears once, without ghosts.

    Without reorthogonalization it would come back some steps after it has converged.
    """
    values = torch.cat(
        [torch.linspace(0, 1, 199, dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)]
    )
    density = spectral_density(
        lambda phi: (values * phi * phi).sum() / 2,
        normal(200),
        steps=60,
        samples=2,
        generator=generator(),
    )
    assert ((density.points > 50).sum(-1) == 1).all()
    assert density.weights[density.points > 50] == pytest.approx(
        torch.full((2,), 1 / 200, dtype=torch.float64), abs=ROUND_OFF
    )


def test_smoothed_density_is_a_sum_of_bells(known):
    loss, phi, _ = known
    density = spectral_density(loss, phi, steps=8, samples=3, generator=generator())
    at = torch.linspace(-6, 8, 2001, dtype=torch.float64)
    curve = density.smoothed(at, width=0.2)
    # The trapezoidal rule errs by less than round-off for bells far from the ends, at 28 points a
    # width.
    assert float(torch.trapezoid(curve, at)) == pytest.approx(1, abs=1e-10)
    assert float(torch.trapezoid(curve * at, at)) == pytest.approx(
        density.moment(1).value, abs=1e-10
    )
    single = SpectralDensity(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    # The bell's height is 2 / sqrt(2 pi).
    assert float(single.smoothed(torch.tensor([1.0]), width=0.5)) == pytest.approx(0.7978846)


def test_a_loss_without_curvature():
    density = spectral_density(
        lambda phi: phi.sum(), normal(5), steps=3, samples=2, generator=generator()
    )
    assert torch.equal(density.points, torch.zeros(2, 3, dtype=torch.float64))
    assert density.moment(0).value == 1


def test_bad_arguments_are_named(known):
    loss, phi, _ = known
    with pytest.raises(ValueError, match="count: expected 1 … 7 eigenvalues of 8, found 8"):
        extreme_eigenvalues(loss, phi, count=8, generator=generator())
    with pytest.raises(ValueError, match=r"which: expected .* found 'BE'"):
        extreme_eigenvalues(loss, phi, count=2, which="BE", generator=generator())
    with pytest.raises(
        ValueError, match="steps: expected 1 … 8, the parameters there are, found 9"
    ):
        spectral_density(loss, phi, steps=9, samples=2, generator=generator())
    for function in (trace, lambda *a, **k: spectral_density(*a, steps=2, **k)):
        with pytest.raises(
            ValueError, match="samples: expected at least 2, for a standard error, found 1"
        ):
            function(loss, phi, samples=1, generator=generator())


def test_a_flat_loss_has_eigenvalues_of_0_and_one_without_derivatives_is_named():
    phi = torch.ones(6, dtype=torch.float64)
    found = extreme_eigenvalues(
        lambda p: p.sum(), phi, count=2, generator=torch.Generator().manual_seed(0)
    )
    assert found.values.tolist() == found.residuals.tolist() == [0.0, 0.0]
    assert torch.equal(found.vectors @ found.vectors.T, torch.eye(2, dtype=torch.float64))
    for loss, message in (
        (lambda p: (p * float("nan")).sum() ** 2, "loss: expected finite derivatives"),
        (
            lambda p: p.detach().sum(),
            "loss: expected a function of phi, found one that does not depend on it",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            extreme_eigenvalues(loss, phi, count=2, generator=torch.Generator().manual_seed(0))


def test_signs_that_a_hessian_takes_to_0_hide_no_eigenvalue():
    """Signs that a Hessian maps to 0 hide no eigenvalue.

    The Hessian of (phi_1 - phi_2)^2 maps every vector with two equal first numbers to 0.
    These are half of all sign vectors.
    """
    phi = torch.ones(6, dtype=torch.float64)
    for seed in range(4):
        found = extreme_eigenvalues(
            lambda p: (p[0] - p[1]) ** 2, phi, count=2, generator=generator(seed)
        )
        assert_close(found.values, torch.tensor([4.0, 0.0], dtype=torch.float64), 1e-12)
        assert float(found.residuals.max()) < 1e-12


@pytest.mark.parametrize("which", ["LA", "LM", "SA"])
def test_signs_that_a_hessian_maps_into_a_part_hide_no_eigenvalue(which):
    """Signs with two equal first numbers are orthogonal to the eigenvector of (phi_1 - phi_2)^2.

    The others have eigenvalues of 0.1 to 1, so that the first run finds some of these.
    """
    sharp = -5.0 if which == "SA" else 5.0
    small = torch.linspace(0.1, 1, 10, dtype=torch.float64)

    def loss(p):
        return sharp * (p[0] - p[1]) ** 2 + (small * p[2:] ** 2).sum() / 2

    for seed in range(4):
        found = extreme_eigenvalues(
            loss, torch.ones(12, dtype=torch.float64), count=1, which=which,
            generator=generator(seed),
        )  # fmt: skip
        assert float(found.values[0]) == pytest.approx(4 * sharp, rel=1e-12)
