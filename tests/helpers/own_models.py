"""Helpers for the tests of `analyse` on a user's own model.

They are small tasks, seeded models, and analyses without the long tables.
"""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

from analysis.theory.own_model import analyse
from tests.helpers.data import generator, normal


def task(m=3, batch=6, width=3, seed=0):
    x = normal(m, batch, width, seed=seed)
    return list(zip(x, torch.randint(4, (m, batch), generator=generator(seed)), strict=True))


def quick(model, loss=F.cross_entropy, minibatches=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return analyse(model, loss, minibatches or task(), 1e-3, **{"most_orders": 0, **options})


def seeded(make):
    torch.manual_seed(0)
    return make().double()


def near_start(penalty):
    """Return a model with a penalty on its distance from the start, its loss, and the start."""
    net = seeded(lambda: nn.Linear(3, 4))
    start = {name: p.detach().clone() for name, p in net.named_parameters()}

    def model(p, x):
        d = torch.cat([(p[name] - start[name]).flatten() for name in p])
        return F.linear(x, p["weight"], p["bias"]).tanh(), penalty(d)

    return model, lambda outputs, labels: F.cross_entropy(outputs[0], labels) + outputs[1], start


class Recurrent(nn.Module):
    """A recurrent layer over the 3 numbers of an input, and a linear one on its last state."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.inner, self.out = kind(1, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.inner(x[..., None])[0][:, -1])
