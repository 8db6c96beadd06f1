"""The GPU's checks: on a GPU where there is one, otherwise the part that a CPU can show.

On a GPU the captured graph is compared with the same run on the CPU, step by step, before chaos
drives them apart.
"""

import pytest
import torch

from tests.benchmarks import gpu_checks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_ANY = ("too little memory",)  # test_lanes.py tests lanes on a CPU
CHECKS = gpu_checks.CHECKS if DEVICE == "cuda" else ON_ANY


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_exceeds_its_limit(name):
    torch.backends.cuda.matmul.allow_tf32 = False
    found = list(gpu_checks.CHECKS[name](DEVICE))
    assert found
    assert [one for one in found if not one.passed] == []
