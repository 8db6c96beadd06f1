"""Derivatives by hand up to the fourth order, against autograd of the tensor code.

They are also compared with differences of each other.
In float64 with sums of thousands of terms, 1e-12 of the largest is ample.
The fourth derivative and mixed third ones are differences and lose a digit more.
"""

import gc

import pytest
import torch

from reptile_core import native, points
from reptile_core.inner_loop import gradient, hessian_product
from reptile_core.losses import CrossEntropy
from reptile_core.networks import mini_imagenet, omniglot
from tests.helpers.data import minibatch, normal

pytestmark = pytest.mark.skipif(native.library(torch.float64) is None, reason="no C compiler here")
ROUND_OFF = 1e-12
CASES = {
    "relu": (omniglot(5), (28, 28), 7),
    "softplus": (omniglot(5, activation="softplus"), (28, 28), 6),
    "tanh": (omniglot(3, activation="tanh"), (28, 28), 5),
    "pooled": (mini_imagenet(5, size=32, filters=64), (32, 32, 3), 4),
    "odd sides": (mini_imagenet(2, size=21), (21, 21, 3), 2),
    "one image": (omniglot(2), (28, 28), 1),
}
EACH = pytest.mark.parametrize("case", CASES)


def setting(case, dtype=torch.float64):
    network, shape, batch = CASES[case]
    phi = network.initialize(0, dtype=torch.float64) + 0.05 * normal(network.n_parameters)
    n_way = network.shapes["linear.bias"][0]
    return (
        CrossEntropy(network, "mean"),
        phi.to(dtype),
        minibatch(batch=batch, shape=shape, n_way=n_way, dtype=dtype),
    )


def directions(phi, count):
    return [normal(*phi.shape, seed=10 + n, dtype=phi.dtype) for n in range(count)]


def course(loss, phi, batch, along):
    """Return the loss, its gradient, and the gradient's derivatives along the given directions.

    Each direction differentiates the result before it once more, in reverse mode.
    """
    point = phi.clone().requires_grad_()
    found = [loss(point, batch)]
    found.append(torch.autograd.grad(found[-1], point, create_graph=True)[0])
    for v in along:
        found.append(torch.autograd.grad(found[-1], point, v, create_graph=True)[0])
    return [part.detach() for part in found]


def close(found, expected, tolerance=ROUND_OFF):
    difference = float((found - expected).norm() / expected.norm())
    assert difference < tolerance, f"relative error {difference:.1e}"


@pytest.fixture
def tensor_code(monkeypatch):
    """Return a function that calls another one without the compiled loops."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(native, "supports_tensor", lambda x: False)
            return function(*arguments)

    return call


@EACH
def test_every_derivative_equals_the_tensor_codes(case, tensor_code):
    """Every derivative equals the tensor code's, along different directions.

    A single direction is a special case with a test of its own.
    """
    loss, phi, batch = setting(case)
    along = directions(phi, 3)
    assert isinstance(loss.point(phi, batch), points.Point)
    found, expected = course(loss, phi, batch, along), tensor_code(course, loss, phi, batch, along)
    for order, parts in enumerate(zip(found, expected, strict=True)):
        close(*parts, 10 * ROUND_OFF if order > 3 else ROUND_OFF)


@EACH
def test_twice_along_one_direction(case, tensor_code):
    loss, phi, batch = setting(case)
    v = directions(phi, 1)[0]
    for found, expected in zip(
        course(loss, phi, batch, [v, v]), tensor_code(course, loss, phi, batch, [v, v]), strict=True
    ):
        close(found, expected)


@EACH
def test_float32(case, tensor_code):
    """Float32 derivatives agree with float64 ones in norm.

    A ReLU may switch within round-off of 0, where derivatives jump.
    """
    loss, phi, batch = setting(case, torch.float32)
    v = directions(phi, 1)[0]
    double = setting(case)[2]
    found = course(loss, phi, batch, [v, v])
    for part, expected in zip(
        found, tensor_code(course, loss, phi.double(), double, [v.double()] * 2), strict=True
    ):
        close(part.double(), expected, 1e-3)


@pytest.mark.parametrize("case", ["softplus", "tanh"])
def test_central_differences(case):
    """Derivatives equal central differences of step 1e-4.

    Truncation is 1e-8 times third differences; round-off is 1e-12 and less.
    """
    loss, phi, batch = setting(case)
    v, step = directions(phi, 1)[0], 1e-4
    v = v / v.norm()
    plus, minus = (course(loss, phi + h * v, batch, [v]) for h in (step, -step))
    at = course(loss, phi, batch, [v, v])
    assert float((plus[0] - minus[0]) / (2 * step)) == pytest.approx(float(at[1] @ v), rel=1e-6)
    close((plus[1] - minus[1]) / (2 * step), at[2], 1e-5)
    close((plus[2] - minus[2]) / (2 * step), at[3], 1e-5)


def test_derivatives_are_linear_and_symmetric():
    loss, phi, batch = setting("softplus")
    point, (u, v, w) = loss.point(phi, batch), directions(phi, 3)
    close(point.product(2 * u - 3 * v), 2 * point.product(u) - 3 * point.product(v))
    assert float(point.product(u) @ v) == pytest.approx(float(point.product(v) @ u), rel=1e-11)
    close(point.third(u, v), point.third(v, u))
    close(point.third(u, 1e6 * v), 1e6 * point.third(u, v), 10 * ROUND_OFF)
    assert float(point.third(u, v) @ w) == pytest.approx(float(point.third(w, v) @ u), rel=1e-9)
    assert not point.third(u, torch.zeros_like(u)).any()


def test_what_is_no_number_shows():
    loss, phi, batch = setting("softplus")
    phi[-1000] = torch.nan  # a weight behind the last activation
    assert loss(phi.requires_grad_(), batch).isnan()
    phi = setting("softplus")[1]
    phi[0] = torch.nan
    assert (
        loss.gradient(phi, batch).isnan().any()
        and loss.point(phi, batch).product(torch.ones_like(phi)).isnan().any()
    )


def test_a_product_between_two_derivatives_along_one_direction_does_no_harm():
    loss, phi, batch = setting("softplus")
    point, (u, v) = loss.point(phi, batch), directions(phi, 2)
    expected = point.third(v, v)
    point.product(v)
    assert torch.equal(point.third(v, v), expected)
    point.product(u)
    assert torch.equal(point.third(v, v), expected)
    point.product(torch.zeros_like(v))
    assert torch.equal(point.third(v, v), expected)


def test_points_that_share_buffers_do_not_meet():
    """Points that share buffers do not disturb each other.

    There are more points than buffers, and each is used again after all others.
    """
    loss, phi, _ = setting("softplus")
    batches = [minibatch(batch=3, seed=seed) for seed in range(points.HELD + 2)]
    v = directions(phi, 1)[0]
    alone = [hessian_product(loss, phi, batch, v) for batch in batches]
    held = [loss.point(phi, batch) for batch in batches]
    for _ in range(2):
        for point, batch, expected in zip(held, batches, alone, strict=True):
            assert torch.equal(point.product(v), expected)
            assert torch.equal(point.gradient, gradient(loss, phi, batch))
            point.third(v, v)
    (buffers,) = loss._held.values()
    assert len(buffers) == points.HELD


def test_one_point_at_a_time_needs_one_set_of_buffers():
    loss, phi, batch = setting("softplus")
    for v in directions(phi, 3):
        hessian_product(loss, phi, batch, v)
    gc.collect()
    hessian_product(loss, phi, batch, v)
    assert [len(buffers) for buffers in loss._held.values()] == [1]


def test_a_point_keeps_its_phi():
    loss, phi, batch = setting("relu")
    v = directions(phi, 1)[0]
    point = loss.point(phi, batch)
    expected = point.product(v)
    phi += 1
    loss.point(phi, batch).product(v)
    assert torch.equal(point.product(v), expected)


def test_lanes_of_one_keep_their_shape():
    loss, phi, batch = setting("relu")
    point = phi.expand(1, -1).clone().requires_grad_()
    value = loss(point, batch)
    assert value.shape == (1,)
    g = torch.autograd.grad(value.sum(), point, create_graph=True)[0]
    v = directions(phi, 1)[0]
    assert g.shape == (1, phi.numel())
    close(
        torch.autograd.grad(g, point, v.expand(1, -1))[0][0], hessian_product(loss, phi, batch, v)
    )


def test_derivatives_in_the_images_are_the_tensor_codes():
    loss, phi, batch = setting("softplus")
    batch.x.requires_grad_()
    value = loss(phi.requires_grad_(), batch)
    assert all(part.any() for part in torch.autograd.grad(value, (phi, batch.x)))
