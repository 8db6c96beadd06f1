"""Made-up data that the tests share: small pools of learnable binary images, minibatches, and how to compare."""

import torch
from torch import Tensor

from reptile_core.losses import Minibatch
from reptile_core.tasks import ImagePool
from tests.oracles import Batch

EPS32, EPS64 = 2.0**-23, 2.0**-52


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def image_pool(
    *, classes: int = 30, drawings: int = 20, dtype: torch.dtype = torch.float64, seed: int = 0
) -> ImagePool:
    """28 x 28 images of 0 and 1: a random pattern for each class, a fifth of its pixels flipped in each drawing."""
    g = generator(seed)
    patterns = torch.rand(classes, 1, 28, 28, generator=g) < 0.5
    flips = torch.rand(classes, drawings, 28, 28, generator=g) < 0.2
    return ImagePool((patterns ^ flips).to(torch.uint8), dtype)


def minibatch(
    *lanes: int,
    batch: int = 6,
    shape: tuple[int, ...] = (28, 28),
    n_way: int = 5,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Minibatch:
    """Images in [0, 1] and labels, both random."""
    g = generator(seed)
    x = torch.rand(*lanes, batch, *shape, generator=g, dtype=torch.float64).to(dtype)
    return Minibatch(x, torch.randint(n_way, (*lanes, batch), generator=g))


def minibatches(
    count: int,
    *lanes: int,
    batch: int = 6,
    shape: tuple[int, ...] = (28, 28),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Minibatch]:
    return [minibatch(*lanes, batch=batch, shape=shape, dtype=dtype, seed=1000 * seed + i) for i in range(count)]


def pairs(batches: list[Minibatch] | tuple[Minibatch, ...], *lane: int) -> list[Batch]:
    """Minibatches as the oracles take them, of one lane."""
    return [(batch.x[lane], batch.y[lane]) for batch in batches]


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest number expected: round-off is absolute within one reduction."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    difference = error(found, expected)
    assert difference <= tolerance, f"relative error {difference:.2e} exceeds {tolerance:.2e}"
