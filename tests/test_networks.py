"""The flat-vector networks against nn.Modules with the same weights, and their initialization.

Logits, losses, gradients and lanes are compared.
Float64 tolerance: sums of up to a few thousand terms at 2^-52 each stay below 1e-12.
The gradient of a batch norm loses two digits more where a channel's variance is small.
Float32's tolerance is the same in units of its own round-off, 2^-23 / 2^-52 = 5e8 times larger, but
agreement in the gradient is never asked beyond 1e-3.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.networks import Network, mini_imagenet, mlp, omniglot
from tests.helpers import oracles
from tests.helpers.data import assert_close, minibatch, normal

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3}

CASES = {
    "omniglot relu": (omniglot(5), lambda d: oracles.omniglot_module(5, dtype=d), 6, (28, 28)),
    "omniglot softplus": (
        omniglot(20, activation="softplus"),
        lambda d: oracles.omniglot_module(20, activation="softplus", dtype=d),
        25,
        (28, 28),
    ),
    "mini_imagenet 84": (
        mini_imagenet(5),
        lambda d: oracles.mini_imagenet_module(5, size=84, dtype=d),
        3,
        (84, 84, 3),
    ),
    "mini_imagenet 32": (
        mini_imagenet(3, size=32),
        lambda d: oracles.mini_imagenet_module(3, size=32, dtype=d),
        4,
        (32, 32, 3),
    ),
    "mini_imagenet 32, 64 filters": (
        mini_imagenet(5, size=32, filters=64),
        lambda d: oracles.mini_imagenet_module(5, size=32, filters=64, dtype=d),
        5,
        (32, 32, 3),
    ),
    "mlp tanh": (
        mlp((4, 7, 6, 3)),
        lambda d: oracles.mlp_module((4, 7, 6, 3), activation="tanh", dtype=d),
        10,
        (4,),
    ),
    "mlp relu": (
        mlp((4, 9, 3), activation="relu"),
        lambda d: oracles.mlp_module((4, 9, 3), activation="relu", dtype=d),
        10,
        (4,),
    ),
}


def random_phi(network: Network, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return an initialization with scales and shifts off their trivial values."""
    noise = 0.1 * normal(network.n_parameters, seed=seed)
    return (network.initialize(seed, dtype=torch.float64) + noise).to(dtype)


def setting(case: str, dtype: torch.dtype) -> tuple[Network, nn.Module, Tensor, Minibatch]:
    network, make, batch, shape = CASES[case]
    n_way = next(reversed(network.shapes.values()))[0]
    phi = random_phi(network, dtype)
    return (
        network,
        oracles.load(make(dtype), phi),
        phi,
        minibatch(batch=batch, shape=shape, n_way=n_way, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_module(case: str, dtype: torch.dtype) -> None:
    network, module, phi, batch = setting(case, dtype)
    with torch.no_grad():
        assert_close(network(phi, batch.x), module(batch.x), TOLERANCES[dtype])
    for reduction in ("sum", "mean"):
        leaf = phi.clone().requires_grad_()
        loss = CrossEntropy(network, reduction=reduction)(leaf, batch)
        expected_loss, expected_gradient = oracles.loss_and_gradient(
            module, (batch.x, batch.y), reduction=reduction
        )
        assert_close(loss.detach(), expected_loss, TOLERANCES[dtype])
        assert_close(torch.autograd.grad(loss, leaf)[0], expected_gradient, TOLERANCES[dtype])


@pytest.mark.parametrize("case", ["omniglot relu", "mini_imagenet 32", "mlp tanh"])
@pytest.mark.parametrize("on_phi, on_x", [(True, True), (True, False), (False, True)])
def test_lanes_equal_one_at_a_time(case: str, on_phi: bool, on_x: bool) -> None:
    network, _, size, shape = CASES[case]
    lanes = 3
    phi = torch.stack([random_phi(network, torch.float64, seed) for seed in range(lanes)])
    batch = minibatch(lanes, batch=size, shape=shape, n_way=3)
    phi, x = phi if on_phi else phi[0], batch.x if on_x else batch.x[0]
    loss = CrossEntropy(network, reduction="sum")
    leaf = phi.clone().requires_grad_()
    together = loss(leaf, Minibatch(x, batch.y))
    (g,) = torch.autograd.grad(together.sum(), leaf)
    alone = []
    for lane in range(lanes):
        own = (phi[lane] if on_phi else phi).clone().requires_grad_()
        value = loss(own, Minibatch(x[lane] if on_x else x, batch.y[lane]))
        alone.append(torch.autograd.grad(value, own)[0])
        assert_close(together[lane].detach(), value.detach(), TOLERANCES[torch.float64])
    expected = torch.stack(alone) if on_phi else torch.stack(alone).sum(0)
    assert_close(g, expected, TOLERANCES[torch.float64])


def test_two_lane_axes() -> None:
    network = mlp((2, 5, 3))
    phi, x = normal(4, 3, network.n_parameters), normal(4, 3, 6, 2, seed=1)
    found = network(phi, x)
    assert found.shape == (4, 3, 6, 3)
    assert_close(found[2, 1], network(phi[2, 1], x[2, 1]), 1e-13)  # some ten additions of float64


@pytest.mark.parametrize(
    "network, expected",
    [
        # Convolutions have 9·c_in·filters numbers and two a channel; the linear layer has 2·2·64 or
        # 6·6·32 features.
        (omniglot(5), 9 * 64 + 3 * 9 * 64**2 + 4 * 2 * 64 + 256 * 5 + 5),
        (omniglot(20), 9 * 64 + 3 * 9 * 64**2 + 4 * 2 * 64 + 256 * 20 + 20),
        (mini_imagenet(5), 27 * 32 + 3 * 9 * 32**2 + 4 * 2 * 32 + 36 * 32 * 5 + 5),
        (
            mini_imagenet(5, size=32, filters=64),
            27 * 64 + 3 * 9 * 64**2 + 4 * 2 * 64 + 4 * 64 * 5 + 5,
        ),
        (mlp(), 64 + 64 + 64 * 64 + 64 + 64 + 1),
    ],
)
def test_number_of_parameters(network: Network, expected: int) -> None:
    assert network.n_parameters == expected == network.initialize(0).numel()


def fans(name: str, shape: tuple[int, ...]) -> int:
    """Return fan in + fan out as TensorFlow counts them: 9 c_in and 9 c_out for a convolution."""
    return shape[0] + (9 if name.startswith("conv") else 1) * shape[1]


@pytest.mark.parametrize(
    "network", [omniglot(5), mini_imagenet(5), mlp((40, 64, 50))], ids=lambda n: n.name
)
def test_initialization(network: Network) -> None:
    for name, values in network.unflatten(network.initialize(11)).items():
        if name.endswith("weight"):
            bound = sqrt(6 / fans(name, network.shapes[name]))
            n = values.numel()
            assert values.abs().max() <= bound
            # The largest of n uniform |w| is below the bound by bound / n in the mean, and by more
            # than 20 times that with probability e^-20.
            assert values.abs().max() >= bound * (1 - 20 / n)
            # The mean is 0 and the variance bound^2 / 3, to five standard errors.
            assert abs(values.mean()) < 5 * bound / sqrt(3 * n)
            assert abs(values.square().mean() / bound**2 - 1 / 3) < 5 * sqrt(4 / 45 / n)
        else:
            assert torch.equal(values, torch.full_like(values, float(name.endswith("scale"))))


def test_initialization_is_a_function_of_the_seed() -> None:
    network = omniglot(5)
    torch.manual_seed(0)
    first = network.initialize(3)
    torch.manual_seed(1)
    assert torch.equal(first, network.initialize(3))
    assert first.dtype == torch.float32
    assert torch.equal(first, network.initialize(3, dtype=torch.float64).float())
    weights = [network.unflatten(network.initialize(seed))["conv1.weight"] for seed in (3, 4)]
    assert not (weights[0] == weights[1]).any()


def test_unflatten_gives_every_parameter_once() -> None:
    network = omniglot(5)
    phi = torch.arange(2 * network.n_parameters).view(2, -1)
    parts = network.unflatten(phi)
    assert {name: part.shape[1:] for name, part in parts.items()} == network.shapes
    assert torch.equal(torch.cat([part.flatten(1) for part in parts.values()], 1), phi)


def test_wrong_length_of_phi() -> None:
    network = mlp((1, 2, 1))
    with pytest.raises(ValueError, match=r"^phi: expected 7 parameters for mlp, found 8"):
        network(torch.zeros(8), torch.zeros(1, 1))


@pytest.mark.parametrize("make", [omniglot, mini_imagenet])
@pytest.mark.parametrize("n_way", [1, 0, -5])
def test_wrong_n_way(make: Callable[..., Network], n_way: int) -> None:
    with pytest.raises(ValueError, match=rf"^n_way: expected at least 2 classes, found {n_way}"):
        make(n_way)


@pytest.mark.parametrize("make", [partial(omniglot, 5), partial(mini_imagenet, 5), mlp])
def test_wrong_activation(make: Callable[..., Network]) -> None:
    with pytest.raises(ValueError, match=r"^activation: expected one of .*'relu'.*, found 'gelu'"):
        make(activation="gelu")


@pytest.mark.parametrize("widths", [(), (3,), (1, 0, 1)])
def test_wrong_widths(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^widths: expected at least two positive widths, found"):
        mlp(widths)


def test_wrong_reduction() -> None:
    with pytest.raises(ValueError, match=r'^reduction: expected "sum" or "mean", found \'none\''):
        CrossEntropy(omniglot(5), reduction="none")
