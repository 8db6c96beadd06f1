"""The C loops against the tensor code they stand in for; a machine without a compiler is served too.

Patches and their transpose must agree to the bit. Sums are taken in another order: float32 round-off, 6e-8, grows at
most with the root of the rows, and cancels in no result here, so that 1e-5 of the largest number is ample.
"""

import pytest
import torch

from reptile_core import layers, native
from reptile_core.inner_loop import SGD, gradient
from reptile_core.meta_gradients import maml
from reptile_core.networks import CrossEntropy, omniglot
from tests.cases import assert_close, generator, minibatches, normal

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler here")
SUMS = 1e-5
SIZES = [(28, 28), (14, 14), (7, 7), (4, 4), (1, 1), (2, 3), (11, 6)]


@pytest.fixture
def without_native(monkeypatch):
    """Switch the loops off when called."""
    return lambda: monkeypatch.setattr(native, "serves", lambda x: False)


@needs_compiler
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("size", SIZES)
def test_same_bits_as_tensor_code(size, channels, stride, without_native):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, channels, generator=generator)
    patches = layers._patches(x, stride)
    cotangent = torch.randn(patches.shape, generator=generator)
    folded = layers._fold(cotangent, *size, stride)
    without_native()
    assert torch.equal(layers._patches(x, stride), patches)
    assert torch.equal(layers._fold(cotangent, *size, stride), folded)


@needs_compiler
def test_takes_tensors_that_are_not_contiguous(without_native):
    x = torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0)).transpose(1, 3)
    patches = layers._patches(x, 2)
    without_native()
    assert torch.equal(layers._patches(x, 2), patches)


def _block(lanes, rows, channels):
    """Inputs of the two epilogues, and a cotangent: x far from centred, so that a careless variance would show."""
    x = 10 + normal(*lanes, rows, channels, dtype=torch.float32)
    scale, shift = (normal(*lanes, 1, channels, seed=seed, dtype=torch.float32) for seed in (1, 2))
    return x, scale, shift, normal(*lanes, rows, channels, seed=3, dtype=torch.float32)


FUSED = {
    "normalize": (
        lambda x, scale, shift: layers.NormalizeReLU.apply(x, scale, shift),
        lambda x, scale, shift: torch.relu(layers._normalize_affine(x, scale, shift)),
    ),
    "shift": (
        lambda x, scale, shift: layers.ShiftReLU.apply(x - 10, shift) * scale,
        lambda x, scale, shift: torch.relu(x - 10 + shift) * scale,
    ),
}


@needs_compiler
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("extent", [((), 1225, 64), ((), 3, 5), ((2, 3), 70, 8), ((4,), 128, 64)])
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
            assert_close(fused.detach(), tensor_code.detach(), 10 * SUMS)  # x, as far from 0 as here, costs a digit
        else:
            assert not fused.any()  # where the loss is linear, as in the shift


@needs_compiler
def test_third_derivatives_of_the_fused_normalization():
    """Beyond the second, what C computed must be connected to the input again."""
    *inputs, cotangent = _block((2,), 70, 8)
    results = []
    for f in FUSED["normalize"]:
        x, scale, shift, g = leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, cotangent)]
        first = torch.autograd.grad(f(x, scale, shift), leaves[:3], g, create_graph=True)
        curved = (x, scale, g)  # the shift enters through the ReLU alone, whose second derivative is 0
        second = torch.autograd.grad(sum(part.square().sum() for part in first), curved, create_graph=True)
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
        fused, (gradient(loss, phi, batches[0]), maml(loss, phi, batches, SGD(0.01))[0]), strict=True
    ):
        # ReLU may switch where it is within round-off of 0: compare in the mean, not at the worst parameter
        assert float((found - expected).norm() / expected.norm()) < 1e-3


@needs_compiler
def test_lanes_with_shared_parameters(without_native):
    """As in evaluation: many batches, one set of weights."""
    network = omniglot(5)
    phi = network.initialize(0)
    x = torch.rand(3, 8, 28, 28, generator=generator())
    fused = network(phi, x)
    assert_close(torch.stack([network(phi, lane) for lane in x]), fused, SUMS)
    without_native()
    assert_close(network(phi, x), fused, SUMS)


def test_without_a_compiler_the_tensor_code_serves(monkeypatch):
    native.library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    try:
        assert native.library() is None
        assert not native.serves(torch.zeros(1))
    finally:
        native.library.cache_clear()


def test_a_compiler_that_fails_is_done_without(monkeypatch, tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    native.library.cache_clear()
    monkeypatch.setenv("CC", str(broken))
    try:
        assert native.library() is None
    finally:
        native.library.cache_clear()


def test_serves_only_plain_float32_on_the_cpu():
    with torch.autograd.forward_ad.dual_level():
        assert not native.serves(torch.zeros(1))
    assert not native.serves(torch.zeros(1, dtype=torch.float64))
    assert not native.serves(torch.zeros(1, device="meta"))


@needs_compiler
def test_tensors_that_are_not_contiguous_are_refused():
    x = normal(6, 4, dtype=torch.float32).T
    with pytest.raises(ValueError, match=r"^shift_relu: expected contiguous tensors, found strides \(1, 4\)"):
        native.shift_relu(x, torch.zeros(1, 6))
