"""Even powers of norms, under every name of both, against the sums under the roots.

They are tested at 0 too, in every order of nesting.
"""

from itertools import product

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

from analysis.theory.torch_fixes import right_derivatives
from tests.helpers.data import EPS64, assert_close, normal


def itself_times_itself(norm):
    return norm * norm


SQUARES = {
    "torch.norm(x) ** 2": lambda x: torch.norm(x) ** 2,
    "torch.norm(x, p=2) ** 2.0": lambda x: torch.norm(x, p=2) ** 2.0,
    "x.norm().pow(2)": lambda x: x.norm().pow(2),
    "x.norm(2).pow(exponent=2)": lambda x: x.norm(2).pow(exponent=2),
    "x.norm().square()": lambda x: x.norm().square(),
    "torch.square": lambda x: torch.square(torch.linalg.norm(x)),
    "torch.pow": lambda x: torch.pow(torch.linalg.norm(x, 2), 2),
    "n * n": lambda x: itself_times_itself(torch.linalg.vector_norm(x)),
    "torch.mul": lambda x: (lambda n: torch.mul(n, n))(torch.linalg.vector_norm(x, 2)),
    "matrix_norm": lambda x: torch.linalg.matrix_norm(x.reshape(2, 3)) ** 2,
    "linalg.norm of a matrix": lambda x: torch.linalg.norm(x.reshape(2, 3)) ** 2,
    "linalg.norm of a matrix, fro": lambda x: torch.linalg.norm(x.reshape(2, 3), "fro") ** 2,
    "linalg.norm of rows": lambda x: (torch.linalg.norm(x.reshape(2, 3), 2, (1,)) ** 2).sum(),
    "rows": lambda x: (x.reshape(2, 3).norm(dim=1, keepdim=True) ** 2).sum(),
    "two dimensions": lambda x: torch.linalg.vector_norm(x.reshape(2, 3), dim=(0, 1)) ** 2,
    "norm of norms": lambda x: x.reshape(2, 3).norm(dim=1).norm() ** 2,
    "norms of numbers": lambda x: sum(number.norm() ** 2 for number in x),
    "absolute values": lambda x: (x.abs() ** 2).sum(),
    "norm of absolute values": lambda x: torch.norm(abs(x)) ** 2,
    "torch.dist": lambda x: torch.dist(x, torch.zeros_like(x)) ** 2,
    "x.dist": lambda x: x.dist(torch.zeros_like(x)) ** 2,
}
MODES = {"F": jacfwd, "R": jacrev}


@pytest.mark.parametrize("name", SQUARES)
def test_the_square_of_a_norm_is_a_sum_of_squares(name):
    f, x = SQUARES[name], normal(6)
    with right_derivatives():
        assert_close(f(x), x.square().sum(), 10 * EPS64)
        for inner, outer in product(MODES.values(), repeat=2):
            at_zero = outer(inner(f))(torch.zeros(6, dtype=torch.float64))
            assert torch.equal(at_zero, 2 * torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("p", [2, 4])
def test_the_fourth_power_has_a_fourth_derivative(p):
    def f(number):
        return torch.linalg.vector_norm(torch.stack([number, 0 * number]), p) ** 4

    fourth = f
    for _ in range(4):
        fourth = grad(fourth)
    with right_derivatives():
        assert float(fourth(torch.zeros((), dtype=torch.float64))) == 24


OTHERS = {
    "an odd power": lambda x: torch.norm(x, 3) ** 3,
    "a root": lambda x: torch.norm(x, 4) ** 2,
    "a negative power": lambda x: torch.norm(x) ** -2,
    "the norm as exponent": lambda x: 2 ** torch.norm(x),
    "the largest": lambda x: torch.norm(x, float("inf")) ** 2,
    "how many are not 0": lambda x: torch.norm(x, 0) ** 2,
    "the largest singular value": lambda x: torch.linalg.norm(x.reshape(2, 3), 2) ** 2,
    "the same by matrix_norm": lambda x: torch.linalg.matrix_norm(x.reshape(2, 3), 2) ** 2,
    "the nuclear norm": lambda x: torch.norm(x.reshape(2, 3), "nuc") ** 2,
    "complex numbers": lambda x: torch.norm(x * (1 + 2j)) ** 2,
    "another dtype": lambda x: torch.norm(x.float(), dtype=torch.float64) ** 2,
    "what was altered in place": lambda x: torch.norm(x).add_(1) ** 2,
    "another number": lambda x: torch.norm(x) * torch.norm(2 * x),
}


@pytest.mark.parametrize("dim", [(), []])
def test_no_dimensions_are_all_of_them(dim):
    x = normal(6)
    with right_derivatives():
        for keepdim in (False, True):
            norm = torch.linalg.vector_norm(x, 2, dim, keepdim)
            assert_close(norm**2, x.square().sum().reshape(norm.shape), 10 * EPS64)


def test_a_norm_that_is_detached_in_place_is_a_constant():
    x = normal(6).requires_grad_()
    with right_derivatives():
        n = x.norm()
        n.detach_()
        found = torch.autograd.grad(n**2 * x.sum(), x)[0]
    assert_close(found, x.detach().square().sum().expand(6), 10 * EPS64)


@pytest.mark.parametrize("name", OTHERS)
def test_all_else_is_torchs(name):
    f, x = OTHERS[name], normal(6)
    with right_derivatives():
        found = f(x)
    assert found.dtype == f(x).dtype
    assert_close(found, f(x), 10 * EPS64)


def test_a_power_that_is_altered_in_place_leaves_the_norm_as_it_was():
    x = normal(6)
    with right_derivatives():
        norm = torch.norm(x)
        (norm**2).add_(1)
        assert_close(norm**2, x.square().sum(), 10 * EPS64)
        squares = vmap(lambda row: row.norm() ** 2)(x.reshape(2, 3))
    assert_close(squares, x.reshape(2, 3).square().sum(1), 10 * EPS64)
