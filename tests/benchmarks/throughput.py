"""Whole-machine throughput of meta-training, sampling included, beside a plain PyTorch loop in the same run.

    python -m tests.benchmarks.throughput [--rounds N] [--threads N]

Both do the ablation's meta-iteration (4 steps of 25, SGD) on made-up images. The plain loop is what one would write
first: torch.nn modules, torch.optim, weights copied out and back, all threads on one task. Ours runs as the script
runs it: a process of one thread per core. The two take turns, and the ratio is taken round by round, since machines
are noisy. The peak is the float32 matrix product of all processes at once.
"""

import argparse
import copy
import random
import statistics
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F

from analysis.experiments.ablation import BATCH, LEARNING_RATE, N_WAY, OUTER_STEP, SCALES, configure
from analysis.workers import available_cores, local_executor
from reptile_core import training
from reptile_core.meta_gradients import total
from reptile_core.tasks import ImagePool

K = 4
CLASSES, DRAWINGS = 400, 20
# Multiplications and additions of one inner step per example: forward, and twice that for the two gradients.
FLOPS_PER_EXAMPLE = 3 * 2 * (14 * 14 * 9 * 64 + (7 * 7 + 4 * 4 + 2 * 2) * 9 * 64 * 64)


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (CLASSES, DRAWINGS, 28, 28), dtype=torch.uint8, generator=generator)


def plain_model() -> torch.nn.Module:
    layers: list[torch.nn.Module] = []
    for block, size in enumerate((28, 14, 7, 4)):
        before = size % 2
        layers += [
            torch.nn.ZeroPad2d((before, 1, before, 1)),
            torch.nn.Conv2d(64 if block else 1, 64, 3, stride=2),
            torch.nn.BatchNorm2d(64, eps=1e-3, track_running_stats=False),
            torch.nn.ReLU(),
        ]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(256, N_WAY))


def plain_loop(iterations: int, threads: int) -> float:
    """Seconds for so many meta-iterations of the plain loop on `threads` threads."""
    torch.set_num_threads(threads)
    pool, model = images().float(), plain_model()
    began = time.perf_counter()
    for _ in range(iterations):
        old = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        samples = [
            (c, d, label)
            for label, c in enumerate(random.sample(range(CLASSES), N_WAY))
            for d in random.sample(range(DRAWINGS), 5 * K)
        ]
        random.shuffle(samples)
        for step in range(K):
            batch = samples[step * BATCH : (step + 1) * BATCH]
            x = torch.stack([pool[c, d] for c, d, _ in batch]).unsqueeze(1)
            y = torch.tensor([label for _, _, label in batch])
            optimizer.zero_grad()
            F.cross_entropy(model(x), y, reduction="sum").backward()
            optimizer.step()
        new = model.state_dict()
        model.load_state_dict({name: old[name] + OUTER_STEP * (new[name] - old[name]) for name in old})
    return time.perf_counter() - began


def our_loop(iterations: int) -> float:
    """Seconds for so many meta-iterations of this project's core in this process."""
    run = configure(total(K), SCALES["paper"], seed=0)
    pool, state = ImagePool(images()), training.start(run)
    began = time.perf_counter()
    for reached in training.train(run, pool, state):
        if reached.iteration == iterations:
            break
    return time.perf_counter() - began


def matrix_peak(seconds: float) -> float:
    """Floating-point operations per second of a float32 matrix product in this process."""
    a = torch.randn(1024, 1024)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        a @ a
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - began)


def everywhere(executor: Executor, workers: int, function, *arguments) -> list[float]:
    """The same call in every worker at once."""
    return [future.result() for future in [executor.submit(function, *arguments) for _ in range(workers)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores(), help="default: one a core")
    options = parser.parse_args()
    threads, iterations = options.threads, 60
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as plain:
        plain.submit(plain_loop, 5, threads).result()  # before our environment is set: the plain loop has its own
        with local_executor(threads) as ours:
            everywhere(ours, threads, our_loop, 10)
            rows = []
            for _ in range(options.rounds):
                seconds = plain.submit(plain_loop, iterations, threads).result()
                rates = [iterations / s for s in everywhere(ours, threads, our_loop, iterations)]
                peak = sum(everywhere(ours, threads, matrix_peak, 1.0))
                rows.append((iterations / seconds, sum(rates), peak))
    ratios = [ours / plain for plain, ours, _ in rows]
    shares = [ours * K * BATCH * FLOPS_PER_EXAMPLE / peak for _, ours, peak in rows]
    median = statistics.median
    print(
        f"The ablation's meta-iteration: k = {K}, batch {BATCH}. {threads} threads, {options.rounds} rounds, medians."
    )
    print(f"plain PyTorch loop  {1e3 / median(row[0] for row in rows):7.1f} ms an iteration")
    print(f"this core           {1e3 / median(row[1] for row in rows):7.1f} ms an iteration, all processes together")
    print(f"ratio               {median(ratios):7.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
    print(f"share of the peak   {median(shares):7.0%} ({min(shares):.0%} … {max(shares):.0%}) of "
          f"{median(row[2] for row in rows) / 1e9:.0f} GFLOP/s")  # fmt: skip


if __name__ == "__main__":
    main()
