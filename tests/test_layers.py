"""Layers against loops and torch's layers; their derivatives against central differences.

The layers are nn.Conv2d and nn.BatchNorm2d; derivatives are tested in every order.
Central differences of step h in float64 err by truncation, about h^2, and by round-off, about
2^-52 / h.
Both are 1e-10 at h = 1e-5 on functions whose values and derivatives are about 1.
TOLERANCE leaves a factor 1,000 for constants (third derivatives, sums over parameters).
A wrong term is off by far more: 1e-2 and above here.
"""

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, vmap

from reptile_core.convolutions import Fold, Patches
from reptile_core.layers import convolution_batch_norm, max_pool
from reptile_core.normalization import Normalize
from reptile_core.sizes import same_padding, same_size
from tests.helpers.data import EPS32, EPS64, assert_close, normal
from tests.helpers.oracles import naive_patches

STEP, TOLERANCE = 1e-5, 1e-7
ROUND_OFF = 1e-12  # float64, a few thousand additions: at most 4,000 · 2^-52

SIZES = [(28, 28), (14, 14), (7, 7), (4, 4), (5, 5), (2, 2), (1, 1), (3, 3), (5, 4), (1, 6), (7, 2)]
ROUTES = {
    "covariance": (1, 10),
    "normalize": (2, 3),
}  # c_in, c_out: 9 c_in < c_out takes the covariance's route


@pytest.fixture
def garbage_shows() -> Iterator[None]:
    """Fill uninitialized memory with nan, as `fold` must not read what it has not written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


# Patches and Fold

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.mark.parametrize("size", range(1, 30))
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows(size: int, stride: int) -> None:
    before, after = same_padding(size, stride)
    assert 0 <= before <= after <= before + 1
    assert (
        (size + before + after - 3) // stride + 1
        == same_size(size, stride)
        == (size + stride - 1) // stride
    )
    if stride == 2:
        assert (before, after) == ((0, 1) if size % 2 == 0 else (1, 1))


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@DTYPES
def test_patches_equal_loops(height: int, width: int, stride: int, dtype: torch.dtype) -> None:
    x = normal(2, height, width, 3, dtype=dtype)
    found = Patches.apply(x, stride)
    for image, patches in zip(x, found, strict=True):
        assert torch.equal(patches, naive_patches(image, stride))


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@DTYPES
def test_fold_is_the_transpose_of_patches(
    height: int, width: int, stride: int, dtype: torch.dtype, garbage_shows: None
) -> None:
    """Fold's output at a pixel is the sum of what that pixel's patches take from y.

    At most the last 30 pixels are tested.
    """
    rows = min(height * width, 30)
    x = torch.eye(height * width, dtype=dtype)[-rows:].view(rows, height, width, 1)
    y = normal(1, same_size(height, stride), same_size(width, stride), 9, dtype=dtype)
    inner = torch.stack([(naive_patches(pixel, stride) * y[0]).sum() for pixel in x])
    # Up to nine numbers are added, in any order.
    found = Fold.apply(y, height, width, stride).flatten()[-rows:]
    assert_close(found, inner, 9 * (EPS64 if dtype == torch.float64 else EPS32))


@pytest.mark.parametrize(
    "height, width, stride", [(28, 28, 2), (7, 7, 2), (5, 4, 1), (2, 3, 2), (1, 1, 2)]
)
@pytest.mark.parametrize("channels", [1, 4, 64])
@DTYPES
def test_fold_is_adjoint_with_lanes_and_channels(
    height: int, width: int, stride: int, channels: int, dtype: torch.dtype, garbage_shows: None
) -> None:
    """<Patches x, y> = <x, Fold y> holds for inputs that are not contiguous in memory."""
    x = normal(3, 2, channels, height, width, dtype=dtype).movedim(2, -1).transpose(0, 1)
    y = normal(
        2, 3, same_size(height, stride), same_size(width, stride), 9 * channels, seed=1, dtype=dtype
    )
    left = (Patches.apply(x, stride) * y).double().flatten(2).sum(-1)
    right = (x * Fold.apply(y, height, width, stride)).double().flatten(2).sum(-1)
    # Each product is off by one to nine roundings of numbers about 1 to 10; float64 adds them here.
    size = 9 * y[0, 0].numel()
    assert (left - right).abs().max() <= 10 * size**0.5 * (
        EPS64 if dtype == torch.float64 else EPS32
    )


@pytest.mark.parametrize("height, width, stride", [(4, 5, 2), (3, 2, 1), (1, 1, 2)])
def test_derivatives_of_patches_and_fold(height: int, width: int, stride: int) -> None:
    x = normal(1, height, width, 2).requires_grad_()
    y = normal(*Patches.apply(x, stride).shape).requires_grad_()
    for function, at in (
        (lambda a: Patches.apply(a, stride), x),
        (lambda a: Fold.apply(a, height, width, stride), y),
    ):
        assert gradcheck(function, (at,), check_forward_ad=True)
        assert gradgradcheck(lambda a, f=function: f(a) * f(a), (at,), check_fwd_over_rev=True)


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_vmap_over_any_axis(axis: int) -> None:
    x = normal(3, 2, 4, 5, 2)
    found = vmap(lambda a: Patches.apply(a, 2), in_dims=axis)(x.movedim(0, axis))
    assert torch.equal(found, Patches.apply(x, 2))
    folded = vmap(lambda a: Fold.apply(a, 4, 5, 2), in_dims=axis)(found.movedim(0, axis))
    assert torch.equal(folded, Fold.apply(found, 4, 5, 2))
    normalized = vmap(lambda a: Normalize.apply(a, 1e-3), in_dims=axis)(x.movedim(0, axis))
    for part, expected in zip(normalized, Normalize.apply(x, 1e-3), strict=True):
        assert_close(part, expected, ROUND_OFF)


# Normalize


def test_normalize_is_its_definition() -> None:
    x = 3 + normal(2, 50, 4)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    normalized, rstd = Normalize.apply(x, 1e-3)
    assert_close(rstd, 1 / (variance + 1e-3).sqrt(), ROUND_OFF)
    assert_close(normalized, (x - mean) / (variance + 1e-3).sqrt(), ROUND_OFF)


OUTPUTS: dict[str, Callable[[tuple[Tensor, Tensor]], Tensor | tuple[Tensor, Tensor]]] = {
    "both": lambda both: both,
    "normalized": lambda both: both[0],
    "rstd": lambda both: both[1],
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_derivatives_of_normalize(output: str, eps: float) -> None:
    x = normal(2, 5, 2).requires_grad_()

    def function(x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return OUTPUTS[output](Normalize.apply(x, eps))

    assert gradcheck(function, (x,), check_forward_ad=True)
    assert gradgradcheck(function, (x,), check_fwd_over_rev=True, check_rev_over_rev=True)


# Convolution and batch norm


def naive_convolution_batch_norm(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, stride: int
) -> Tensor:
    c_in, c_out = x.shape[-1], weight.shape[-1]
    before_h, before_w = (0 if stride == 2 and size % 2 == 0 else 1 for size in x.shape[1:3])
    convolution = nn.Conv2d(c_in, c_out, 3, stride=stride, bias=True, dtype=x.dtype)
    norm = nn.BatchNorm2d(c_out, eps=1e-3, track_running_stats=False, dtype=x.dtype)
    with torch.no_grad():
        convolution.weight.copy_(weight.view(3, 3, c_in, c_out).permute(3, 2, 0, 1))
        norm.weight.copy_(scale)
        norm.bias.copy_(shift)
        padded = nn.ZeroPad2d((before_w, 1, before_h, 1))(x.permute(0, 3, 1, 2))
        return norm(convolution(padded)).permute(0, 2, 3, 1)


# Lanes of x and of phi. With (2, 3) and (2, 1) evaluation shares one task's phi among its test
# examples.
LANES = [((), ()), ((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 3), (2, 1)), ((2, 3), (2, 3))]


def layer_arguments(
    route: str, x_lanes: tuple[int, ...], phi_lanes: tuple[int, ...], dtype: torch.dtype
) -> tuple:
    c_in, c_out = ROUTES[route]
    x = normal(*x_lanes, 4, 6, 5, c_in, dtype=dtype)
    shapes = ((9 * c_in, c_out), (c_out,), (c_out,))
    return x, *(
        normal(*phi_lanes, *shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes, 1)
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("x_lanes, phi_lanes", LANES)
@DTYPES
def test_convolution_batch_norm_equals_torchs(
    route: str, stride: int, x_lanes: tuple, phi_lanes: tuple, dtype: torch.dtype
) -> None:
    arguments = layer_arguments(route, x_lanes, phi_lanes, dtype)
    found = convolution_batch_norm(*arguments, stride=stride)
    lanes = torch.broadcast_shapes(x_lanes, phi_lanes)
    assert found.shape[: len(lanes)] == lanes
    own_lanes = (len(x_lanes), *[len(phi_lanes)] * 3)
    x, *phi = (
        a.expand(*lanes, *a.shape[own:]) for a, own in zip(arguments, own_lanes, strict=True)
    )
    for lane in product(*map(range, lanes)):
        expected = naive_convolution_batch_norm(x[lane], *(p[lane] for p in phi), stride)
        # Sums over at most 120 samples and 18 products, each off by half a unit of round-off: 100
        # units are generous.
        assert_close(found[lane], expected, 100 * (EPS64 if dtype == torch.float64 else EPS32))


@pytest.mark.parametrize("route", ROUTES)
def test_constant_images_stay_finite(route: str) -> None:
    """Constant images give finite outputs and gradients, with only eps under batch norm's root."""
    x, weight, scale, shift = layer_arguments(route, (), (), torch.float64)
    x = torch.zeros_like(x).requires_grad_()
    out = convolution_batch_norm(x, weight, scale, shift, stride=2)
    assert_close(out, shift.expand_as(out), ROUND_OFF)
    assert torch.autograd.grad(out.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("route", ROUTES)
def test_derivatives_of_convolution_batch_norm(route: str) -> None:
    c_in, c_out = ROUTES[route]
    shapes = ((2, 3, 2, c_in), (9 * c_in, c_out), (c_out,), (c_out,))
    arguments = tuple(normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes))

    def function(*arguments: Tensor) -> Tensor:
        return convolution_batch_norm(*arguments, stride=2)

    # Fast mode checks one random direction of each Jacobian; full Jacobians take minutes.
    assert gradcheck(function, arguments, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, arguments, check_fwd_over_rev=True, fast_mode=True)


# Nested derivatives of a small network that takes both routes


SHAPES = ((9, 10), (10,), (10,), (90, 2), (2,), (2,))
NUMBERS = [torch.Size(shape).numel() for shape in SHAPES]
IMAGES, READ_OUT = normal(3, 6, 6, 1, seed=9), normal(3, 3, 3, 2, seed=10)


def network_loss(phi: Tensor) -> Tensor:
    """Return a scalar from two blocks of convolution, batch norm and softplus.

    It is about 1 at random weights.
    """
    parts = zip(phi.split(NUMBERS), SHAPES, strict=True)
    w0, a0, b0, w1, a1, b1 = (part.view(shape) for part, shape in parts)
    x = F.softplus(convolution_batch_norm(IMAGES, w0, a0, b0, stride=2))
    x = F.softplus(convolution_batch_norm(x, w1, a1, b1, stride=1))
    return (x * READ_OUT).sum()


@pytest.fixture(scope="module")
def directions() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    phi, u, v, w = (normal(sum(NUMBERS), seed=seed) for seed in range(4))
    return phi, u / u.norm(), v / v.norm(), w / w.norm()


def along(function: Callable[[Tensor], Tensor], v: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function's derivative along v, by forward mode."""
    return lambda phi: jvp(function, (phi,), (v,))[1]


def difference(function: Callable[[Tensor], Tensor], phi: Tensor, v: Tensor) -> Tensor:
    return (function(phi + STEP * v) - function(phi - STEP * v)) / (2 * STEP)


def assert_derivative(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3  # a wrong 0 would show
    assert (found - expected).abs().max() < TOLERANCE


def test_gradient_in_both_modes(directions: tuple[Tensor, ...]) -> None:
    phi, u, *_ = directions
    expected = difference(network_loss, phi, u)
    assert_derivative(grad(network_loss)(phi) @ u, expected)
    assert_derivative(along(network_loss, u)(phi), expected)


def reverse_twice(phi: Tensor, v: Tensor) -> Tensor:
    return grad(lambda p: grad(network_loss)(p) @ v)(phi)


NESTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward over reverse": lambda phi, v: along(grad(network_loss), v)(phi),
    "reverse over forward": lambda phi, v: grad(along(network_loss, v))(phi),
    "reverse over reverse": reverse_twice,
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_hessian_vector_products(nesting: str, directions: tuple[Tensor, ...]) -> None:
    phi, _, v, _ = directions
    assert_derivative(NESTINGS[nesting](phi, v), difference(grad(network_loss), phi, v))


def test_forward_over_forward(directions: tuple[Tensor, ...]) -> None:
    phi, u, v, _ = directions
    assert_derivative(
        along(along(network_loss, u), v)(phi), difference(grad(network_loss), phi, v) @ u
    )


def test_double_backward_without_functorch(directions: tuple[Tensor, ...]) -> None:
    phi, _, v, _ = directions
    phi = phi.clone().requires_grad_()
    (g,) = torch.autograd.grad(network_loss(phi), phi, create_graph=True)
    (hessian_v,) = torch.autograd.grad(g @ v, phi)
    assert_derivative(hessian_v, difference(grad(network_loss), phi.detach(), v))


THIRD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "forward over forward over reverse": lambda phi, v, w: along(along(grad(network_loss), v), w)(
        phi
    ),
    "reverse over forward over forward": lambda phi, v, w: grad(along(along(network_loss, v), w))(
        phi
    ),
    "reverse over reverse over reverse": lambda phi, v, w: grad(lambda p: reverse_twice(p, v) @ w)(
        phi
    ),
    "forward over reverse over forward": lambda phi, v, w: along(grad(along(network_loss, v)), w)(
        phi
    ),
}


@pytest.mark.parametrize("nesting", THIRD)
def test_third_derivatives(nesting: str, directions: tuple[Tensor, ...]) -> None:
    phi, _, v, w = directions
    expected = difference(lambda p: reverse_twice(p, v), phi, w)
    assert_derivative(THIRD[nesting](phi, v, w), expected)


def test_third_derivative_all_forward(directions: tuple[Tensor, ...]) -> None:
    """Nested forward mode alone gives third derivatives, as the expansion in alpha takes them."""
    phi, u, v, w = directions
    expected = difference(lambda p: reverse_twice(p, v), phi, w) @ u
    assert_derivative(along(along(along(network_loss, u), v), w)(phi), expected)


def test_dense_jacobians_and_hessians(directions: tuple[Tensor, ...]) -> None:
    phi, _, v, _ = directions
    dense = hessian(network_loss)(phi)
    assert_close(dense, dense.mT, 1e-10)  # symmetric to round-off, magnified by some 1e4 additions
    assert_derivative(dense @ v, difference(grad(network_loss), phi, v))
    assert_close(jacrev(grad(network_loss))(phi), dense, 1e-10)
    assert_close(jacrev(network_loss)(phi), grad(network_loss)(phi), ROUND_OFF)


def test_vmap_of_hessian_vector_products(directions: tuple[Tensor, ...]) -> None:
    phi, *vs = directions
    phis = torch.stack([phi, -phi, 0.5 * phi])
    together = vmap(NESTINGS["forward over reverse"])(phis, torch.stack(vs))
    for found, p, v in zip(together, phis, vs, strict=True):
        assert_close(found, reverse_twice(p, v), 1e-10)


# Max-pooling


@pytest.mark.parametrize("height, width", [(4, 4), (5, 5), (4, 7), (1, 1), (21, 2)])
def test_max_pool_equals_torchs(height: int, width: int) -> None:
    x = -1 - normal(2, 3, height, width, 2).abs()  # negative: padding with zeros would win
    found = max_pool(x)
    for image, expected in zip(found.flatten(0, 1), x.flatten(0, 1), strict=True):
        pooled = nn.MaxPool2d(2, ceil_mode=True)(expected.permute(2, 0, 1)[None])[0].permute(
            1, 2, 0
        )
        assert torch.equal(image, pooled)


def test_derivatives_of_max_pool() -> None:
    x = normal(1, 5, 4, 2).requires_grad_()
    assert gradcheck(max_pool, (x,), check_forward_ad=True)
    assert gradgradcheck(lambda x: max_pool(x) ** 2, (x,), check_fwd_over_rev=True)
