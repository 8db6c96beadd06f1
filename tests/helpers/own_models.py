"""Helpers for the tests of `analyse` on a user's own model.

They are small tasks, seeded models, and analyses without the long tables.
"""

import warnings

import torch
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
