"""The C loops against the tensor code that they replace; machines without a compiler work too.

Patches must agree to the bit.
Sums are taken in another order.
Round-off, 6e-8 in float32, grows at most with the root of the number of terms, and no result here
suffers from cancellation: 1e-5 of the largest number is ample.
Float64's is 2^29 times less.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pooch
import pytest
import torch

from reptile_core import convolutions, layers, native
from reptile_core.convolutions import Patches
from reptile_core.gradients import GradientByHand
from reptile_core.inner_loop import SGD, Adam, gradient
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.meta_gradients import maml
from reptile_core.native.functions import (
    Convolution,
    Correlation,
    NormalizeReLU,
    TransposedConvolution,
)
from reptile_core.networks import mini_imagenet, omniglot
from reptile_core.sizes import same_size
from tests.helpers.data import assert_close, generator, minibatch, minibatches, normal

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")
SUMS = 1e-5
TYPES = {torch.float32: SUMS, torch.float64: SUMS / 2**29}
DTYPES = pytest.mark.parametrize("dtype", TYPES, ids=str)
SIZES = [(28, 28), (14, 14), (7, 7), (4, 4), (1, 1), (2, 3), (11, 6)]


@pytest.fixture
def without_native(monkeypatch):
    """Return a function that switches the loops off."""
    return lambda: monkeypatch.setattr(native, "supports_tensor", lambda x: False)


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("size", SIZES)
@DTYPES
def test_patches_have_the_same_bits(size, channels, stride, dtype, without_native):
    x = torch.randn(2, 3, *size, channels, generator=generator(), dtype=dtype)
    patches = Patches.apply(x, stride)
    without_native()
    assert torch.equal(Patches.apply(x, stride), patches)


@needs_compiler
def test_takes_tensors_that_are_not_contiguous(without_native):
    x = torch.randn(2, 4, 6, 7, generator=generator()).transpose(1, 3)
    patches = Patches.apply(x, 2)
    without_native()
    assert torch.equal(Patches.apply(x, 2), patches)


def _trilinear(size, stride, lanes, batch, channels, filters):
    """Return x, w and g of <x * w, g>."""
    outputs = [same_size(side, stride) for side in size]
    return (
        normal(*lanes, batch, *size, channels, dtype=torch.float32),
        normal(*lanes, 9 * channels, filters, seed=1, dtype=torch.float32),
        normal(*lanes, batch, *outputs, filters, seed=2, dtype=torch.float32),
    )


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("lanes, batch", [((), 1), ((), 5), ((), 13), ((2, 3), 2)], ids=str)
@pytest.mark.parametrize("channels, filters", [(16, 16), (64, 64), (32, 112)])
@DTYPES
def test_convolutions_and_their_gradients(
    size, stride, lanes, batch, channels, filters, dtype, without_native
):
    """Convolutions and their gradients agree with tensor code, for tiles of all kinds.

    Tiles have every number of rows.
    The channels fill no tile, one, or several.
    """
    x, w, g = (part.to(dtype) for part in _trilinear(size, stride, lanes, batch, channels, filters))
    found = (
        Convolution.apply(x, w, stride),
        TransposedConvolution.apply(g, w, *size, stride),
        Correlation.apply(x, g, stride),
    )
    without_native()
    doubles = [part.double().requires_grad_() for part in (x, w)]
    out = convolutions.convolution(*doubles, stride)
    for part, expected in zip(
        found, (out.detach(), *torch.autograd.grad(out, doubles, g.double())), strict=True
    ):
        assert_close(part.double(), expected, TYPES[dtype])


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
def test_higher_derivatives_of_convolutions(stride, without_native):
    """Second and third derivatives of convolutions agree with tensor code.

    They pass through each of the three functions in each of its arguments.
    """
    parts = _trilinear((5, 4), stride, (2,), 3, 16, 32)
    results = []
    for dtype in (torch.float32, torch.float64):
        if dtype == torch.float64:
            without_native()
        x, w, g = (part.to(dtype).requires_grad_() for part in parts)
        out = convolutions.convolution(x, w, stride)
        for _ in range(3):
            scaled = out / out.detach().abs().max()
            found = torch.autograd.grad((scaled * scaled * g).sum(), (x, w, g), create_graph=True)
            out = convolutions.convolution(found[0], found[1], stride) + found[2]
            results.append((dtype, out.detach()))
    singles, doubles = (
        [out for kind, out in results if kind == dtype] for dtype in (torch.float32, torch.float64)
    )
    for found, expected in zip(singles, doubles, strict=True):
        assert_close(found.double(), expected, 10 * SUMS)


@needs_compiler
@pytest.mark.parametrize("x_lanes, w_lanes", [((2, 3), (2, 1)), ((), (2,)), ((3,), ())], ids=str)
def test_lanes_of_images_and_weights_may_differ(x_lanes, w_lanes, without_native):
    """Images and weights may differ in lanes.

    They do in classification, where copies of a batch share one set of weights.
    """
    x = torch.rand(*x_lanes, 4, 28, 28, generator=generator())
    phi = omniglot(5).initialize(0) + 0.01 * normal(
        *w_lanes, omniglot(5).n_parameters, dtype=torch.float32
    )
    fused = omniglot(5)(phi, x)
    without_native()
    assert_close(omniglot(5)(phi, x), fused, 10 * SUMS)


def _block(lanes, rows, channels):
    """Return inputs of the two fused functions, and a cotangent.

    x is far from centred, so that a careless variance would show.
    """
    x = 10 + normal(*lanes, rows, channels, dtype=torch.float32)
    scale, shift = (normal(*lanes, 1, channels, seed=seed, dtype=torch.float32) for seed in (1, 2))
    return x, scale, shift, normal(*lanes, rows, channels, seed=3, dtype=torch.float32)


def _weights(scale):
    return torch.cat([scale * row for row in range(-3, 4)], -2)


FUSED = {
    "normalize": (
        lambda x, scale, shift: NormalizeReLU.apply(x, scale, shift),
        lambda x, scale, shift: torch.relu(layers._normalize_affine(x, scale, shift)),
    ),
    "product": (
        lambda x, scale, shift: layers._product_relu((x - 10)[..., :7], _weights(scale), shift),
        lambda x, scale, shift: torch.relu((x - 10)[..., :7] @ _weights(scale) + shift),
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("extent", [((), 1225, 64), ((), 3, 16), ((2, 3), 70, 32), ((4,), 128, 64)])
def test_fused_epilogues_and_their_first_and_second_derivatives(name, extent):
    *inputs, cotangent = _block(*extent)
    results = []
    for f in FUSED[name]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = f(*leaves)
        first = torch.autograd.grad(out, leaves, cotangent, retain_graph=True)
        graph = torch.autograd.grad(out, leaves, cotangent, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in graph), leaves)
        results.append([out, *first, *graph, *second])
    for fused, tensor_code in zip(*results, strict=True):
        if tensor_code.any():
            # An x this far from 0 costs a digit.
            assert_close(fused.detach(), tensor_code.detach(), 10 * SUMS)
        else:
            assert not fused.any()  # 0 where the loss is linear, as in the shift


@needs_compiler
def test_third_derivatives_of_the_fused_normalization():
    """Third derivatives of the fused normalization agree with tensor code.

    Beyond the second order, results of C code must still be connected to the input.
    """
    *inputs, cotangent = _block((2,), 70, 8)
    results = []
    for f in FUSED["normalize"]:
        x, scale, shift, g = leaves = [
            tensor.clone().requires_grad_() for tensor in (*inputs, cotangent)
        ]
        first = torch.autograd.grad(f(x, scale, shift), leaves[:3], g, create_graph=True)
        # The shift enters through the ReLU alone, whose second derivative is 0.
        curved = (x, scale, g)
        second = torch.autograd.grad(
            sum(part.square().sum() for part in first), curved, create_graph=True
        )
        results.append(torch.autograd.grad(sum(part.square().sum() for part in second), curved))
    for fused, tensor_code in zip(*results, strict=True):
        assert_close(fused, tensor_code, 10 * SUMS)


@needs_compiler
def test_network_gradient_and_maml_with_and_without(without_native):
    network = omniglot(5)
    loss, phi = CrossEntropy(network, reduction="mean"), network.initialize(0)
    batches = minibatches(3, batch=10, dtype=torch.float32)
    fused = gradient(loss, phi, batches[0]), maml(loss, phi, batches, SGD(0.01))[0]
    without_native()
    for found, expected in zip(
        fused,
        (gradient(loss, phi, batches[0]), maml(loss, phi, batches, SGD(0.01))[0]),
        strict=True,
    ):
        # A ReLU may switch where it is within round-off of 0, so that norms are compared, not the
        # worst parameter.
        assert float((found - expected).norm() / expected.norm()) < 1e-3


BY_HAND = {
    "omniglot": (omniglot(5), (28, 28), 5, 10),
    "20-way": (omniglot(20), (28, 28), 20, 20),
    "one image": (omniglot(2), (28, 28), 2, 1),
    "mini-imagenet": (mini_imagenet(5), (84, 84, 3), 5, 3),
    "cifar-fs": (mini_imagenet(5, size=32, filters=64), (32, 32, 3), 5, 10),
    "softplus": (omniglot(5, activation="softplus"), (28, 28), 5, 10),
    "tanh": (omniglot(5, activation="tanh"), (28, 28), 5, 4),
}
# Float32 images differ from float64 ones by round-off too, which the kinks magnify most.
DERIVATIVES = {torch.float32: 1e-4, torch.float64: 1e-12}


def _phi(network, dtype):
    """Return phi: the initialization, in float64 with noise.

    The noise makes scales, shifts and biases differ; no kink is near.
    """
    start = network.initialize(1, dtype=dtype)
    return start + 0.03 * normal(network.n_parameters, seed=7) if dtype == torch.float64 else start


@needs_compiler
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("network, shape, n_way, batch", BY_HAND.values(), ids=BY_HAND)
@DTYPES
def test_gradient_by_hand(network, shape, n_way, batch, reduction, dtype, without_native):
    """The gradient by hand agrees with autograd in float64 without C.

    A ReLU may switch within round-off of 0, so that norms are compared.
    """
    loss, phi = CrossEntropy(network, reduction), _phi(network, dtype)
    extent = {"batch": batch, "n_way": n_way, "shape": shape}
    found = [loss.gradient(phi, minibatch(**extent, dtype=dtype, seed=seed)) for seed in (0, 1)]
    without_native()
    for seed, g in enumerate(found):  # both minibatches use the same buffers
        expected = gradient(loss, phi.double(), minibatch(**extent, seed=seed))
        if g is None:
            assert dtype == torch.float32 and network.blocks.activation != "relu"
        else:
            assert float((g - expected).norm() / expected.norm()) < DERIVATIVES[dtype]


@needs_compiler
def test_equal_maxima_share_the_gradient():
    """Equal maxima share the gradient.

    Images have one colour but for a corner, so that nearly all windows tie, as in saturated
    photographs.
    """
    network, batch = (
        mini_imagenet(5, size=32),
        minibatch(batch=4, shape=(32, 32, 3), dtype=torch.float32),
    )
    batch.x[:, 5:] = 1.0
    loss, phi = CrossEntropy(network, "sum"), network.initialize(0)
    leaf = phi.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, batch), leaf)
    found = loss.gradient(phi, batch)
    assert float((found - expected).norm() / expected.norm()) < 1e-3


@needs_compiler
def test_gradient_by_hand_keeps_lanes_of_one():
    loss, batch = CrossEntropy(omniglot(5), "sum"), minibatch(1, batch=5, dtype=torch.float32)
    phi = omniglot(5).initialize(0)
    found = loss.gradient(phi.expand(1, -1), batch)
    assert found.shape == (1, phi.numel())
    assert torch.equal(found[0], loss.gradient(phi, Minibatch(batch.x[0], batch.y[0])))


@needs_compiler
def test_gradient_by_hand_of_images_that_do_not_lie_one_after_the_other():
    loss, phi, batch = (
        CrossEntropy(omniglot(5), "sum"),
        omniglot(5).initialize(0),
        minibatch(dtype=torch.float32),
    )
    turned = Minibatch(batch.x.mT, batch.y)
    assert not turned.x.is_contiguous()
    assert torch.equal(
        loss.gradient(phi, turned), loss.gradient(phi, Minibatch(turned.x.contiguous(), batch.y))
    )


@needs_compiler
def test_gradient_by_hand_only_where_it_is_known():
    relu, phi, batch = omniglot(5), omniglot(5).initialize(0), minibatch(dtype=torch.float32)
    lanes = minibatch(2, dtype=torch.float32)
    assert CrossEntropy(relu, "sum").gradient(phi, batch) is not None
    assert CrossEntropy(relu, "sum").gradient(phi, lanes) is None
    assert CrossEntropy(relu, "sum").gradient(phi.expand(2, -1), lanes) is None
    assert CrossEntropy(relu, "sum").gradient(phi.double(), batch) is None
    assert CrossEntropy(relu, "sum").gradient(phi.double(), minibatch()) is not None
    for network in (omniglot(5, activation="softplus"), omniglot(5, activation="tanh")):
        assert CrossEntropy(network, "sum").gradient(phi, batch) is None  # float32 keeps its bits
        assert CrossEntropy(network, "sum").gradient(phi.double(), minibatch()) is not None
    pooled = CrossEntropy(mini_imagenet(5, size=32, activation="softplus"), "sum")
    start = pooled.network.initialize(0, dtype=torch.float64)
    assert pooled.gradient(start, minibatch(shape=(32, 32, 3))) is None


@needs_compiler
def test_each_thread_has_buffers_of_its_own():
    loss, phi, batch = (
        CrossEntropy(omniglot(5), "sum"),
        omniglot(5).initialize(0),
        minibatch(dtype=torch.float32),
    )
    expected = loss.gradient(phi, batch)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: loss.gradient(phi, batch), range(20)))
    assert all(torch.equal(g, expected) for g in found)
    assert all(isinstance(prepared, GradientByHand) for prepared in loss._prepared.values())


@needs_compiler
def test_adam_of_a_constant_gradient_is_differentiable():
    """Adam's step is differentiable where the gradient is constant.

    The gradient of a linear loss has no graph.
    What follows the step still depends on its start.
    """
    phi = normal(10, dtype=torch.float32).requires_grad_()
    after, _ = Adam(0.1).step(phi, torch.ones(10), Adam(0.1).start(phi.detach()))
    assert torch.equal(torch.autograd.grad(after.sum(), phi)[0], torch.ones(10))


@needs_compiler
def test_adam_in_one_pass(without_native):
    phi, *gradients = (normal(1000, seed=seed, dtype=torch.float32) for seed in range(4))
    courses = []
    for _ in range(2):
        at, state = phi, Adam(0.1).start(phi)
        for g in gradients:
            at, state = Adam(0.1).step(at, g, state)
        courses.append((at, *state))
        without_native()
    for fused, tensor_code in pairwise(courses):
        for found, expected in zip(fused, tensor_code, strict=True):
            assert_close(found, expected, SUMS)


@needs_compiler
@DTYPES
def test_adam_of_lanes_that_share_their_moments(dtype):
    phi, g = normal(3, 1000, dtype=dtype), normal(3, 1000, seed=1, dtype=dtype)
    shared = normal(1000, seed=2, dtype=dtype).square(), torch.ones((), dtype=torch.float64)
    after, (v, _) = Adam(0.1).step(phi, g, shared)
    for lane in range(3):
        alone, (v_alone, _) = Adam(0.1).step(phi[lane], g[lane], shared)
        assert_close(after[lane], alone, TYPES[dtype])
        assert_close(v[lane], v_alone, TYPES[dtype])


@needs_compiler
def test_lanes_with_shared_parameters(without_native):
    """Lanes may share parameters, as in evaluation: many batches, one set of weights."""
    network = omniglot(5)
    phi = network.initialize(0)
    x = torch.rand(3, 8, 28, 28, generator=generator())
    fused = network(phi, x)
    assert_close(torch.stack([network(phi, lane) for lane in x]), fused, SUMS)
    without_native()
    assert_close(network(phi, x), fused, SUMS)


def test_without_a_compiler_the_tensor_code_is_taken(monkeypatch):
    native.library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        with pytest.warns(UserWarning, match="native: expected a compiler in CC, found 'no-such-c"):
            assert native.library() is None
            assert not native.supports_tensor(torch.zeros(1))
    finally:
        native.library.cache_clear()


def _compiler(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_failing_compiler_falls_back_to_tensor_code(monkeypatch, tmp_path):
    broken = _compiler(tmp_path / "broken-cc", "echo shape.h is missing >&2; exit 1")
    native.library.cache_clear()
    monkeypatch.setenv("CC", broken)
    try:
        with pytest.warns(
            UserWarning, match=f"native: {broken} does not compile the loops, .* shape.h is missing"
        ):
            assert native.library() is None
    finally:
        native.library.cache_clear()


@pytest.fixture
def empty_library(monkeypatch, tmp_path):
    """Return a compiler with an option that makes an empty library, and counts that."""
    real, source = shutil.which("cc"), tmp_path / "empty.c"
    source.write_text("int answer(void) { return 42; }\n")
    body = f'while [ "$1" != -o ]; do echo "$1" >> {tmp_path}/met; shift; done\n'
    body += f'{real} -shared -fPIC {source} -o "$2"'
    monkeypatch.setenv("CC", _compiler(tmp_path / "cc", body) + " --option")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def _compiled(folder):
    return (folder / "met").read_text().count("--option")


@needs_compiler
def test_a_library_is_compiled_once_and_again_where_it_is_damaged(empty_library, monkeypatch):
    for _ in range(2):
        native.library.cache_clear()
        assert native.library().answer() == 42
    assert _compiled(empty_library) == 1
    (built,) = (empty_library / "cache").iterdir()
    # In another cache, as this process would take what it has loaded from the same path.
    damaged = empty_library / "other" / built.name
    damaged.parent.mkdir()
    damaged.write_bytes(b"no library")
    monkeypatch.setattr(pooch, "os_cache", lambda name: damaged.parent)
    native.library.cache_clear()
    with pytest.warns(UserWarning, match=f"native: {damaged} is damaged and will be rebuilt"):
        assert native.library().answer() == 42
    assert _compiled(empty_library) == 2


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(empty_library):
    (empty_library / "cache").write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="native: cannot write .*so every start compiles the loop"):
        library = native.library()
    assert library.answer() == 42 and Path(library._name).exists()


def test_serves_only_plain_floats_on_the_cpu():
    with torch.autograd.forward_ad.dual_level():
        assert not native.supports_tensor(torch.zeros(1))
    assert not native.supports_tensor(torch.zeros(1, dtype=torch.float16))
    assert not native.supports_tensor(torch.zeros(1, device="meta"))


@needs_compiler
def test_tensors_that_are_not_contiguous_are_refused():
    x = normal(6, 4, dtype=torch.float32).T
    with pytest.raises(
        ValueError, match=r"^product_relu: expected contiguous tensors, found strides \(1, 4\)"
    ):
        native.product_relu(x, torch.zeros(6, 16))
