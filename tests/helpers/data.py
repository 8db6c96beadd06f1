"""Made-up data that the tests share, and how to compare numbers.

The data are small pools of learnable binary images, and minibatches.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from reptile_core.losses import Minibatch
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Inner, Outer, Run
from tests.helpers.oracles import Batch

EPS32, EPS64 = 2.0**-23, 2.0**-52
_SGD = Run(
    network="omniglot",
    sampling=Sampling(n_way=3, shots=4, batch=5, steps=2),
    weights=(1.0, 1.0),
    inner=Inner("sgd", 0.003),
    outer=Outer(0.25),
    iterations=3,
    seed=0,
    meta_batch=2,
    activation="softplus",  # no kinks, which round-off could move
    dtype="float64",
)
# One run of each kind that lanes tell apart.
LANE_RUNS = {
    "sgd": _SGD,
    "adam": replace(_SGD, inner=Inner("adam", 1e-3)),
    "adam, new for each task": replace(_SGD, inner=Inner("adam", 1e-3, moments="reset")),
    "outer adam": replace(_SGD, outer=Outer(1e-3, optimizer="adam")),
    "maml": replace(_SGD, weights="maml"),
    "tail": replace(_SGD, sampling=replace(_SGD.sampling, tail_shots=1)),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def image_pool(
    *, classes: int = 30, drawings: int = 20, dtype: torch.dtype = torch.float64, seed: int = 0
) -> ImagePool:
    """Return 28 x 28 images of 0 and 1, with a random pattern for each class.

    Each drawing has a fifth of its pixels flipped.
    """
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
    """Return images in [0, 1] and labels, both random."""
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
    return [
        minibatch(*lanes, batch=batch, shape=shape, dtype=dtype, seed=1000 * seed + i)
        for i in range(count)
    ]


def pairs(batches: list[Minibatch] | tuple[Minibatch, ...], *lane: int) -> list[Batch]:
    """Return minibatches as the oracles take them, of one lane."""
    return [(batch.x[lane], batch.y[lane]) for batch in batches]


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest number expected.

    Round-off is absolute within one reduction.
    """
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    difference = error(found, expected)
    assert difference <= tolerance, f"relative error {difference:.2e} exceeds {tolerance:.2e}"


def zipped(files: Mapping[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of these files, by name. kind: how they are compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=kind)
    return buffer.getvalue()
