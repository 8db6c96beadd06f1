"""Torch's functions written out: they have torch's values, and right derivatives.

The derivatives do not depend on the order of nesting.
"""

from itertools import product

import pytest
import torch
from torch import nn
from torch.func import grad, jvp
from torch.nn import functional as F

from analysis.theory.torch_fixes import right_derivatives
from tests.helpers.data import EPS64, assert_close, normal

SCALE, SHIFT, TARGET = 1 + normal(4, seed=1) / 3, normal(4, seed=2), normal(6, 4, seed=7)
FUNCTIONS = {
    "layer_norm": lambda x: F.layer_norm(x, (4,), SCALE, SHIFT),
    "layer_norm, two dimensions": lambda x: F.layer_norm(x.reshape(3, 4, 2), (4, 2)),
    "batch_norm": lambda x: F.batch_norm(
        x.reshape(3, 4, 2), None, None, SCALE, SHIFT, training=True
    ),
    "batch_norm of vectors": lambda x: F.batch_norm(x, None, None, training=True),
    "instance_norm": lambda x: F.instance_norm(x.reshape(1, 4, 6), weight=SCALE, bias=SHIFT),
    "torch.layer_norm": lambda x: torch.layer_norm(x, (4,), SCALE, SHIFT),
    "torch.batch_norm": lambda x: torch.batch_norm(
        x, SCALE, SHIFT, None, None, True, 0.1, 1e-5, False
    ),
    "aten.native_layer_norm": lambda x: torch.ops.aten.native_layer_norm.default(
        x, (4,), SCALE, SHIFT, 1e-5
    )[0],
}
OTHERS = {
    "mse_loss": lambda x: F.mse_loss(x, TARGET),
    "mse_loss, summed": lambda x: F.mse_loss(x, TARGET, reduction="sum"),
    "mse_loss, weighted": lambda x: F.mse_loss(x, TARGET, weight=TARGET.square()),
    "batch_norm in evaluation": lambda x: F.batch_norm(
        x.reshape(3, 4, 2), SHIFT, SCALE, SCALE, SHIFT
    ),
    "instance_norm in evaluation": lambda x: F.instance_norm(
        x.reshape(1, 4, 6), SHIFT, SCALE, use_input_stats=False
    ),
    "native_batch_norm": lambda x: torch.native_batch_norm(
        x, SCALE, SHIFT, None, None, True, 0.1, 1e-5
    )[0],
    "glu": F.glu,
    "weight_norm": lambda x: torch._weight_norm(x, x[:, :1] + 2, 0),
    "embedding": lambda x: F.embedding(torch.tensor([0, 2, 2]), x, padding_idx=1, sparse=True),
    "attention": lambda x: F.scaled_dot_product_attention(
        *torch.stack([x, x.sin(), x.cos()]).reshape(3, 2, 3, 4)
    ),
}
SECOND, THIRD = (["".join(modes) for modes in product("FR", repeat=n)] for n in (2, 3))
A, B, C, PHI = normal(4, 24, seed=3)
MIX, WEIGHTS = normal(24, 24, seed=4) / 3, normal(24, seed=5)


def scalar(f):
    """Return a function of a vector that has derivatives of all orders along all directions."""

    def loss(phi):
        y = f((MIX @ phi).tanh().reshape(6, 4)).flatten()
        return (y.sin() * WEIGHTS[: len(y)]).sum()

    return loss


def nested(f, modes):
    """Return derivatives along A, B, …, the innermost first, by the given modes.

    Each letter of `modes` is F (forward) or R (reverse).
    """
    for mode, v in zip(modes, (A, B, C), strict=False):
        f = _forward(f, v) if mode == "F" else _reverse(f, v)
    return f


def _forward(f, v):
    return lambda phi: jvp(f, (phi,), (v,))[1]


def _reverse(f, v):
    return lambda phi: grad(f)(phi) @ v


def central(f, v):
    """Return central differences of fourth order at step 2e-3.

    Truncation is 1e-11 and, twice nested, round-off 1e-16 / 4e-6, with room below.
    """
    h = 2e-3
    return lambda phi: (
        (8 * (f(phi + h * v) - f(phi - h * v)) - f(phi + 2 * h * v) + f(phi - 2 * h * v)) / (12 * h)
    )


@pytest.mark.parametrize("name", [*FUNCTIONS, *OTHERS])
def test_values_are_torchs(name):
    f, x = {**FUNCTIONS, **OTHERS}[name], normal(6, 4, seed=6)
    with right_derivatives():
        found = f(x)
    assert_close(found, f(x), 50 * EPS64)  # sums in another order


@pytest.mark.parametrize("name", [*FUNCTIONS, *OTHERS])
def test_second_and_third_derivatives_in_every_order_of_nesting(name):
    f = scalar({**FUNCTIONS, **OTHERS}[name])
    with right_derivatives():
        by_differences = {
            2: central(nested(f, "R"), B)(PHI),
            3: central(central(nested(f, "R"), B), C)(PHI),
        }
        for modes in SECOND + THIRD:
            found, expected = float(nested(f, modes)(PHI)), float(by_differences[len(modes)])
            assert found == pytest.approx(expected, rel=1e-6), modes


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torchs_own_are_wrong_where_the_module_says(name):
    """Torch's own derivatives are wrong where the module says so.

    When torch mends this (the requirement is below 2.14), torch_fixes is no longer needed.
    """
    f = scalar(FUNCTIONS[name])
    with right_derivatives():
        right = {n: float(nested(f, "R" * n)(PHI)) for n in (2, 3)}
    wrong = [m for m in SECOND + THIRD if abs(float(nested(f, m)(PHI)) / right[len(m)] - 1) > 1e-4]
    assert wrong == ["FF", "FR", *THIRD]


@pytest.mark.parametrize(
    "stop", [torch.detach, lambda x: x.detach(), lambda x: x.data], ids=["torch", "method", "data"]
)
def test_a_stopped_value_is_constant_backwards_and_moves_forwards(stop):
    f = scalar(lambda x: x * stop(x.sin()) + x**3)
    with right_derivatives():
        field = grad(f)
        for modes in ("RF", "RFF"):
            found = float(nested(f, modes)(PHI))
            expected = {
                2: central(lambda p: field(p) @ A, B),
                3: central(central(lambda p: field(p) @ A, B), C),
            }
            assert found == pytest.approx(float(expected[len(modes)](PHI)), rel=1e-6), modes


def test_outside_nothing_is_replaced_and_inside_nothing_is_updated():
    layer, x = nn.BatchNorm1d(4).double(), normal(6, 4)
    with right_derivatives():
        layer(x)
    assert torch.equal(layer.running_mean, torch.zeros(4, dtype=torch.float64))
    layer(x)
    assert layer.running_mean.abs().min() > 0


@pytest.mark.parametrize(
    "layer, shape", [(nn.BatchNorm1d(4), (1, 4)), (nn.InstanceNorm1d(4), (2, 4, 1))]
)
def test_statistics_of_one_value_are_refused_as_in_torch(layer, shape):
    with (
        right_derivatives(),
        pytest.raises(ValueError, match="input: expected more than one value"),
    ):
        layer(torch.ones(shape))
