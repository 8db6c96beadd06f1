"""Meta-iterations on a GPU: lanes in one captured graph beside the plain loop on the same device, in turns.

    python -m tests.benchmarks.gpu [--rounds N] [--lanes N …] [--tf32]

A row is a number of lanes; milliseconds are those of one run's meta-iteration, so that for ours the time of a step is
divided by the lanes. The share is that of the card's measured matrix product in the same precision. On a machine
without a GPU it says so: nothing of this has been measured.
"""

import argparse
import sys
import time
from dataclasses import replace

import torch

from analysis import cost
from reptile_core.lanes import train_lanes
from reptile_core.tasks import ImagePool
from reptile_core.training import Run, start
from tests.benchmarks import plain
from tests.benchmarks.measuring import HEADER, SETTINGS, Round, images, row

LANES = 1, 4, 16, 64, 256
ITERATIONS = 30  # of a turn


def our_seconds(run: Run, lanes: int) -> list[float]:
    """Seconds an iteration and lane, of some turns after the capture."""
    runs = [replace(run, seed=seed) for seed in range(lanes)]
    pool = ImagePool(images().cuda())
    stream = train_lanes(runs, [pool] * lanes, [start(one, "cuda") for one in runs])
    next(stream)

    def turn() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(ITERATIONS):
            next(stream)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / ITERATIONS / lanes

    turn()
    return [turn() for _ in range(3)]


def matrix_peak(size: int = 8192) -> float:
    """Floating-point operations a second of a float32 matrix product, in the precision that is set."""
    a = torch.randn(size, size, device="cuda")
    a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        a @ a
    torch.cuda.synchronize()
    return 10 * 2 * size**3 / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lanes", type=int, nargs="+", default=LANES)
    parser.add_argument("--tf32", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: expected a CUDA device, found none that torch can use: not measured", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {'TF32' if options.tf32 else 'float32'}\n")
    print("\n".join(HEADER))
    for name, run in SETTINGS.items():
        for lanes in options.lanes:
            rounds = []
            for _ in range(options.rounds):
                beside = plain.iterate(run, ITERATIONS, 1, device="cuda") / ITERATIONS
                rounds.append(Round(beside, min(our_seconds(run, lanes)), matrix_peak()))
            print(row(f"{name}, {lanes} lanes", rounds, cost.iteration(run).flops), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
