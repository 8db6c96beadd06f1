"""From the start of a process to the end of its first inner step, in processes of one thread."""

import os
import subprocess
import sys
import time
from statistics import median

IMPORT = "import torch; torch.set_num_threads(1)"
PLAIN = f"""{IMPORT}
from torch import nn
layers = []
for channels in (1, 64, 64, 64):
    layers += [nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 5))
optimizer = torch.optim.SGD(model.parameters(), lr=0.003)
x, y = torch.zeros(25, 1, 28, 28), torch.arange(25) % 5
nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
optimizer.step()
"""
OURS = f"""{IMPORT}
from analysis.paper.figure_3 import configure
from reptile_core import training
from reptile_core.meta_gradients import sum_of
from reptile_core.tasks import ImagePool
run = configure(sum_of(1), seed=0)
pool = ImagePool(torch.zeros(20, 20, 28, 28, dtype=torch.uint8))
next(training.train(run, pool, training.start(run)))
"""
CASES = {
    "`import torch` alone": "import torch",
    "`import reptile_core.training`": "import reptile_core.training",
    "`import reproduce`": "import reproduce",
    "plain loop to its first step": PLAIN,
    "this core to its first step": OURS,
}


def rows(rounds: int) -> list[str]:
    """Return the table of all cases, timed in turns.

    The first round, which fills the file system's caches, is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for counted in [False] + [True] * rounds:
        for name, code in CASES.items():
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            if counted:
                seconds[name].append(time.perf_counter() - began)
    return [
        "| process | seconds |",
        "|---|---|",
        *(
            f"| {name} | {median(s):.2f} ({min(s):.2f} … {max(s):.2f}) |"
            for name, s in seconds.items()
        ),
    ]
