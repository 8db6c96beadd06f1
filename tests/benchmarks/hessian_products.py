"""The cost of a Hessian-vector product of the paper's Omniglot network.

    python -m tests.benchmarks.hessian_products [--rounds N] [--vectors N]

The cost is given in gradients of our own network: float32, one thread, made-up images, the
allocator set as in the script's workers. All candidates take turns in every round, since machines
are noisy. Ratios are taken round by round against our gradient, the fast one with its compiled
loops. The plain network is torch.nn's. curvlinops is measured on it where it is installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from analysis.runs.workers import local_executor
from analysis.theory.derivatives import derivative, gradient, hessian_at
from reptile_core.losses import CrossEntropy
from reptile_core.networks import omniglot
from tests.benchmarks import plain
from tests.helpers.data import generator, minibatch, normal

try:
    from curvlinops import HessianLinearOperator
except ImportError:
    HessianLinearOperator = None

BATCHES = 25, 10
N_WAY = 5
OURS = "our gradient"


def candidates(batch: int, vectors: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is timed, and how many products one call makes."""
    data = minibatch(batch=batch, dtype=torch.float32)
    network = omniglot(N_WAY)
    mean_loss, phi = CrossEntropy(network, reduction="mean"), network.initialize(0)
    v = normal(vectors, network.n_parameters, dtype=torch.float32)
    product = hessian_at(loss := lambda point: mean_loss(point, data), phi)

    model = plain.model_of(N_WAY)
    parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
    x = data.x.unsqueeze(1)
    directions = [torch.randn(p.shape, generator=generator()) for p in parameters.values()]

    plain_loss = plain.loss_at(model, (x, data.y))

    timed: dict[str, tuple[Callable[[], object], int]] = {
        OURS: (lambda: gradient(loss, phi), 1),
        "our product, from nothing": (lambda: hessian_at(loss, phi)(v[0]), 1),
        "our product, each further": (lambda: product(v[0]), 1),
        f"our {vectors} products in turn, each": (
            lambda: [f(u) for f in [hessian_at(loss, phi)] for u in v],
            vectors,
        ),
        f"our {vectors} products batched, each": (
            lambda: torch.func.vmap(lambda u: derivative(loss, phi, u))(v),
            vectors,
        ),
        "our forward over reverse": (lambda: derivative(loss, phi, v[0]), 1),
        "plain gradient": (lambda: plain.gradient(plain_loss, parameters), 1),
        "plain reverse over reverse": (
            lambda: plain.hessian_product(plain_loss, parameters, directions),
            1,
        ),
    }
    if HessianLinearOperator is not None:
        operator = HessianLinearOperator(
            model, torch.nn.CrossEntropyLoss(), list(parameters.values()), [(x, data.y)]
        )
        timed["curvlinops"] = (lambda: operator @ directions, 1)
    return timed


def measure(
    timed: dict[str, tuple[Callable[[], object], int]], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds that a product takes, by round; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for counted in [False] + [True] * rounds:
        for name, (call, products) in timed.items():
            call()  # each finds its own data in the caches
            began = time.perf_counter()
            call()
            if counted:
                seconds[name].append((time.perf_counter() - began) / products)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--vectors", type=int, default=8)
    options = parser.parse_args()
    with local_executor(1) as worker:
        print("\n".join(worker.submit(rows, options.rounds, options.vectors).result()))


def rows(rounds: int, vectors: int) -> list[str]:
    median = statistics.median
    found = [f"Omniglot network, float32, one thread, {rounds} rounds, medians."]
    for batch in BATCHES:
        seconds = measure(candidates(batch, vectors), rounds)
        found.append(
            f"\nbatch {batch:2d}                             ms   our gradients (quartiles)"
        )
        for name, times in seconds.items():
            ratios = [t / ours for t, ours in zip(times, seconds[OURS], strict=True)]
            low, middle, high = statistics.quantiles(ratios)
            found.append(
                f"{name:34s} {1e3 * median(times):6.2f}   {middle:5.2f} ({low:.2f} … {high:.2f})"
            )
    return found


if __name__ == "__main__":
    main()
