"""What only a GPU can show: the captured graph against the same run on the CPU, to float32's round-off.

Kinks and float32 make courses drift apart, so that only the first iterations are compared, by norm.
"""

from dataclasses import replace

import pytest
import torch

from reptile_core.lanes import lane, train_lanes
from reptile_core.tasks import ImagePool
from reptile_core.training import start, train
from tests.cases import image_pool
from tests.test_lanes import RUNS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_captured_lanes_follow_their_runs(name, dtype):
    torch.backends.cuda.matmul.allow_tf32 = False
    runs = [replace(RUNS[name], dtype=dtype, seed=seed) for seed in (0, 1)]
    pool = ImagePool(image_pool(classes=6).images, runs[0].torch_dtype)
    resident = replace(pool, images=pool.images.cuda())
    together = list(train_lanes(runs, [resident] * 2, [start(run, "cuda") for run in runs]))
    for index, run in enumerate(runs):
        for found, expected in zip(together, train(run, pool, start(run)), strict=True):
            moved = (expected.phi - start(run).phi).norm()
            off = (lane(found, index).phi.cpu() - expected.phi).norm()
            assert off <= (1e-9 if dtype == "float64" else 1e-3) * moved
