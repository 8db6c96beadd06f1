"""Benchmarks of section 6.1: the authors' settings, the compared methods and published results.

The paper takes the numbers of MAML and FOMAML from Finn et al. (2017). Here both run on Reptile's
networks and settings, and their last minibatch is a separate tail of the task's examples. Their
outer step is Adam's, 0.001 as in Finn et al., also annealed to 0. So the two differ in the second
derivatives alone. FOMAML first used Reptile's outer step, plain with size 1; on CIFAR-FS it then
learned more slowly than Reptile. A larger tail (`tail_shots`) also helps; the default is one
minibatch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from reptile_core.meta_gradients import last, sum_of
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer, Run

META_BATCH = 5
EVALUATION_STEPS = 50
TASKS = 10_000


@dataclass(frozen=True)
class Benchmark:
    """A data set and a number of classes, with the authors' settings for them.

    shots: the numbers of shots of the cells, each with the minibatch size of its evaluation.
    """

    name: str
    data: Literal["omniglot", "mini_imagenet", "cifar_fs"]  # also the name of the network
    n_way: int
    learning_rate: float
    batch: int
    steps: int
    train_shots: int
    iterations: int
    shots: Mapping[int, int]


@dataclass(frozen=True)
class Method:
    """A way to train phi.

    tail: whether the last minibatch is a tail: examples that the steps before it have not seen.
    """

    name: str
    outer: Outer
    tail: bool

    def weights(self, k: int) -> tuple[float, ...] | Literal["maml"]:
        """Return the weights of k inner steps, as a Run has them."""
        if self.name == "maml":
            return "maml"
        return (sum_of if self.name == "reptile" else last)(k).weights


@dataclass(frozen=True)
class Scale:
    """How much of a benchmark a profile runs.

    tasks: evaluation tasks of each cell.
    """

    iterations: int
    tasks: int
    methods: tuple[str, ...] = ("reptile", "fomaml", "maml")


BENCHMARKS = (
    Benchmark("omniglot-5way", "omniglot", 5, 1e-3, 10, 5, 10, 100_000, {1: 5, 5: 5}),
    Benchmark("omniglot-20way", "omniglot", 20, 5e-4, 20, 10, 10, 200_000, {1: 10, 5: 10}),
    Benchmark("mini-imagenet", "mini_imagenet", 5, 1e-3, 10, 8, 15, 100_000, {1: 5, 5: 15}),
    Benchmark("cifar-fs", "cifar_fs", 5, 1e-3, 10, 8, 15, 100_000, {1: 5, 5: 15}),
)
METHODS = (
    Method("reptile", Outer(1.0), tail=False),
    Method("fomaml", Outer(1e-3, optimizer="adam"), tail=True),
    Method("maml", Outer(1e-3, optimizer="adam"), tail=True),
)
SCALES: dict[str, dict[str, Scale]] = {
    "smoke": {
        "omniglot-5way": Scale(2, 2),
        "mini-imagenet": Scale(1, 1, ("reptile",)),
        "cifar-fs": Scale(1, 1, ("reptile",)),
    },
    "quick": {"omniglot-5way": Scale(100, 20), "cifar-fs": Scale(4, 4)},
    # CIFAR-FS, which is not in the paper, is run for a fifth of Mini-ImageNet's iterations:
    # Reptile and FOMAML take an hour of one core each, MAML eight.
    "paper": {benchmark.name: Scale(benchmark.iterations, TASKS) for benchmark in BENCHMARKS}
    | {"cifar-fs": Scale(20_000, 1_000)},
}
SEEDS = {"smoke": 1, "quick": 1, "paper": 5}  # fewer than five judge nothing
# The cells' names; --cells takes prefixes of them.
CELLS = tuple(
    f"{benchmark.name}-{method.name}" for benchmark, method in product(BENCHMARKS, METHODS)
)

FINN, NICHOL, BERTINETTO = "Finn et al. 2017", "Nichol et al. 2018", "Bertinetto et al. 2019"
# Accuracy in %, half of its interval and the source, by method, transduction, benchmark and shots.
# They are the rows of the paper's two tables, from left to right. CIFAR-FS is not in the paper.
PUBLISHED: dict[tuple[str, bool, str, int], tuple[float, float, str]] = {
    ("maml", True, "mini-imagenet", 1): (48.70, 1.84, FINN),
    ("maml", True, "mini-imagenet", 5): (63.11, 0.92, FINN),
    ("fomaml", True, "mini-imagenet", 1): (48.07, 1.75, FINN),
    ("fomaml", True, "mini-imagenet", 5): (63.15, 0.91, FINN),
    ("reptile", False, "mini-imagenet", 1): (47.07, 0.26, NICHOL),
    ("reptile", False, "mini-imagenet", 5): (62.74, 0.37, NICHOL),
    ("reptile", True, "mini-imagenet", 1): (49.97, 0.32, NICHOL),
    ("reptile", True, "mini-imagenet", 5): (65.99, 0.58, NICHOL),
    ("maml", True, "omniglot-5way", 1): (98.7, 0.4, FINN),
    ("maml", True, "omniglot-5way", 5): (99.9, 0.1, FINN),
    ("maml", True, "omniglot-20way", 1): (95.8, 0.3, FINN),
    ("maml", True, "omniglot-20way", 5): (98.9, 0.2, FINN),
    ("fomaml", True, "omniglot-5way", 1): (98.3, 0.5, FINN),
    ("fomaml", True, "omniglot-5way", 5): (99.2, 0.2, FINN),
    ("fomaml", True, "omniglot-20way", 1): (89.4, 0.5, FINN),
    ("fomaml", True, "omniglot-20way", 5): (97.9, 0.1, FINN),
    ("reptile", False, "omniglot-5way", 1): (95.39, 0.09, NICHOL),
    ("reptile", False, "omniglot-5way", 5): (98.90, 0.10, NICHOL),
    ("reptile", False, "omniglot-20way", 1): (88.14, 0.15, NICHOL),
    ("reptile", False, "omniglot-20way", 5): (96.65, 0.33, NICHOL),
    ("reptile", True, "omniglot-5way", 1): (97.68, 0.04, NICHOL),
    ("reptile", True, "omniglot-5way", 5): (99.48, 0.06, NICHOL),
    ("reptile", True, "omniglot-20way", 1): (89.43, 0.14, NICHOL),
    ("reptile", True, "omniglot-20way", 5): (97.12, 0.32, NICHOL),
    ("maml", True, "cifar-fs", 1): (58.9, 1.9, BERTINETTO),
    ("maml", True, "cifar-fs", 5): (71.5, 1.0, BERTINETTO),
}


def published(*benchmarks: str) -> str:
    """Return Reptile's published cells in words, without and with transduction."""
    kinds: dict[bool, list[str]] = {False: [], True: []}
    for (method, transductive, name, shots), (mean, half, _) in PUBLISHED.items():
        if method == "reptile" and name in benchmarks:
            kinds[transductive].append(f"{mean:.2f} ± {half:.2f} % ({name} {shots}-shot)")
    return f"{', '.join(kinds[False])}; with transduction {', '.join(kinds[True])}"


def configure(
    benchmark: Benchmark, method: Method, scale: Scale, seed: int, *, tail_shots: int | None = None
) -> Run:
    """Return the training run that all cells of a benchmark share.

    tail_shots: examples a class in the last minibatch of methods with a tail. None for as many as
        in any other minibatch.
    """
    tail = tail_shots or benchmark.batch // benchmark.n_way
    return Run(
        network=benchmark.data,
        sampling=Sampling(
            n_way=benchmark.n_way,
            shots=benchmark.train_shots,
            batch=benchmark.batch,
            steps=benchmark.steps,
            tail_shots=tail if method.tail else 0,
        ),
        weights=method.weights(benchmark.steps),
        inner=Inner("adam", benchmark.learning_rate),
        outer=method.outer,
        iterations=scale.iterations,
        seed=seed,
        meta_batch=META_BATCH,
    )


def evaluated(benchmark: Benchmark, shots: int) -> Sampling:
    """Return how the evaluation tasks of a cell are sampled."""
    return Sampling(
        n_way=benchmark.n_way, shots=shots, batch=benchmark.shots[shots], steps=EVALUATION_STEPS
    )
