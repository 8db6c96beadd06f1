"""The cost of an analysis in evaluations, and how surely it finds that a loss is random."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.theory.own_model.checks import evaluations_against_noise
from tests.helpers.own_models import quick, seeded, task


class Skipping(nn.Module):
    """A network with stochastic depth: by chance it skips a block once in ten calls.

    `draw` is the source of chance.
    """

    def __init__(self, draw):
        super().__init__()
        self.a, self.b, self.o, self.draw = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 4), draw

    def forward(self, x):
        h = self.a(x).tanh()
        return self.o(h if self.draw() < 0.1 else h + self.b(h).tanh() / 0.9)


@pytest.mark.parametrize("m", [2, 3, 10, 50])
def test_noise_of_one_block_in_ten_is_missed_less_than_once_in_a_thousand_calls(m):
    n = evaluations_against_noise(m)
    assert (0.9**n + 0.1**n) ** m < 1e-3
    assert m * n < 110  # the number of evaluations stays small


SOURCES = {
    "torch's": lambda: lambda: torch.rand(()),
    "a generator of its own": lambda: (lambda g: lambda: torch.rand((), generator=g))(
        torch.Generator().manual_seed(1)
    ),
    "Python's": lambda: random.random,
    "NumPy's": lambda: np.random.default_rng(3).random,
}


@pytest.mark.parametrize("name", SOURCES)
def test_noise_is_found(name):
    net = seeded(lambda: Skipping(SOURCES[name]()))
    for seed in range(10):
        torch.manual_seed(seed)
        random.seed(seed)
        with pytest.raises(ValueError, match="loss: expected the same value each time"):
            quick(net)


def test_a_loss_that_looks_whether_a_derivative_is_taken_is_found():
    def loss(outputs, labels):
        return F.cross_entropy(outputs, labels) * (1 if torch.is_grad_enabled() else 2)

    with pytest.raises(
        ValueError, match="loss: expected the same value without a graph as with gradients"
    ):
        quick(seeded(lambda: nn.Linear(3, 4)), loss)


def test_noise_in_training_steps_alone_is_found():
    net = seeded(lambda: Skipping(lambda: torch.rand(()) if torch.is_grad_enabled() else 1))
    with pytest.raises(ValueError, match="loss: expected the same value each time"):
        quick(net)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("m", [3, 8])
def test_a_certificate_takes_no_more_evaluations_than_what_it_certifies(order, m):
    calls = 0

    def loss(outputs, labels):
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, labels)

    counts = []
    for certify in (False, True):
        calls = 0
        quick(
            seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 4))),
            loss,
            task(m),
            order=order,
            certify=certify,
        )
        counts.append(calls)
    assert counts[0] < counts[1] <= 2 * counts[0], counts
