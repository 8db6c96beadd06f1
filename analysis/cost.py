"""Cost of a sweep of runs and the time it will take, from three numbers that are counted.

    python -m analysis.cost [ablation | few_shot] [--profile P] [--seeds N] [--rate GFLOPS]

A meta-iteration and an evaluation are traced without data. This counts the flops of their matrix
products, the bytes that their operations read and write, and how many operations follow one another
(launches, on a GPU). Nothing is guessed. A run costs one traced meta-iteration for each iteration
that it is trained. Its evaluations are work of their own: they cost the traced evaluation for as
many tasks. How long that takes:

- On cores, each does one run at a time, the longest first: flops / rate. The rate of one core, with
  all of them at work, is measured now. What a core computes fits its caches, so bytes do not count.
- On a GPU, runs of the same shape go side by side, as lanes: flops / F + bytes / W. Where there are
  too few lanes to fill it: launches times the time of one. F and W are those of a data sheet, and
  none of the three is measured.
"""

import argparse
import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from analysis.experiments import ablation
from analysis.experiments.shared.curves import Scale
from analysis.paper import benchmarks, figure_3
from analysis.results.claims import PROFILES
from analysis.results.wording import duration
from analysis.runs.evaluation_chunks import LANES
from analysis.runs.workers import available_cores, local_executor
from reptile_core import training
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Outer, Run, TrainingState

CORES = 2, 64
GPUS = 1, 8
CLASSES, DRAWINGS = 40, 30  # of the pools to trace or time with: enough for any task
# Operations without arithmetic.
FREE = ("aten::_unsafe_view", "aten::detach", "aten::new_empty", "aten::empty_like", "aten::empty")


@dataclass(frozen=True)
class Work:
    """Amount of work.

    flops: those of matrix products.
    bytes: those that operations read and write.
    launches: operations that follow one another.
    """

    flops: float = 0
    bytes: float = 0
    launches: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops, self.bytes + other.bytes, self.launches + other.launches
        )

    def __rmul__(self, times: float) -> "Work":
        return Work(times * self.flops, times * self.bytes, times * self.launches)


@dataclass(frozen=True)
class PartOfRun:
    """A run, and the iteration to which it is trained."""

    run: Run
    until: int


@dataclass(frozen=True)
class GPU:
    """A kind of GPU and its speeds.

    products: float32 flops a second.
    memory: bytes a second.
    launch: seconds from one operation to the next.
    """

    name: str
    products: float
    memory: float
    launch: float

    def seconds(self, items: Sequence[Work], count: int) -> float:
        """Return the seconds that all items take on `count` of these GPUs.

        Items with the same number of launches are lanes of one group. A group takes until its last
        operation is launched and all of it is computed. Each group runs on one GPU. The groups of a
        GPU run one after the other.
        """
        groups: dict[float, list[Work]] = {}
        for item in items:
            groups.setdefault(item.launches, []).append(item)
        taken = []
        for launches, group in groups.items():
            taken.append(max(launches * self.launch, self._computed(group)))
        return makespan(taken, count)

    def _computed(self, items: Sequence[Work]) -> float:
        return sum(item.flops / self.products + item.bytes / self.memory for item in items)


# An H100 SXM by its data sheet (float32 without tensor cores). A launch is one of a graph that is
# replayed.
H100 = GPU("H100", 67e12, 3.35e12, 2e-6)


def iteration(run: Run) -> Work:
    """Return the work of one meta-iteration."""
    return _iteration(_as_to_cost(run))


@cache
def _iteration(run: Run) -> Work:
    pool, state = _pool(run, "meta"), _start(run)
    return traced(lambda: next(training.train(run, pool, state)))


def evaluation(run: Run, sampling: Sampling, tasks: int, queries: int = 1) -> Work:
    """Return the work of an evaluation on `tasks` tasks side by side.

    queries: test examples a class.
    Two lengths of the inner loop are traced. Each further step adds their difference.
    """
    # An evaluation depends on nothing of training but the classes and the inner optimizer.
    n_way = run.sampling.n_way
    sampling_there = Sampling(n_way, 1, n_way, 1)
    trained = replace(
        _as_to_cost(run), sampling=sampling_there, weights=(1.0,), outer=Outer(1.0), meta_batch=1
    )
    return _evaluation(trained, sampling, tasks, queries)


@cache
def _evaluation(run: Run, sampling: Sampling, tasks: int, queries: int) -> Work:
    pool, state = _pool(run, "meta"), _start(run)

    def after(steps: int) -> Work:
        cut = replace(sampling, steps=steps)
        evaluate = partial(training.evaluate, run, pool, state, cut, range(tasks))
        return traced(partial(evaluate, queries=queries, lanes=tasks))

    one, two = after(1), after(2)
    return one + (sampling.steps - 1) * (two + -1 * one)


def whole(item: PartOfRun) -> Work:
    """Return the work of a run from its start to the iteration to which it is trained."""
    return item.until * iteration(item.run)


def look(run: Run, sampling: Sampling, tasks: int, queries: int = 1) -> Work:
    """Return the work of an evaluation on `tasks` tasks, LANES of them side by side."""
    return tasks / LANES * evaluation(run, sampling, LANES, queries)


def traced(call: Callable[[], Any]) -> Work:
    """Return the work that `call` does on the meta device, where torch computes shapes alone."""
    with _Tracing() as tracing:
        call()
    return tracing.work


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return the seconds until all pieces are done.

    Each piece is done whole by one of the workers, the longest first.
    """
    busy = [0.0] * workers
    for piece in sorted(seconds, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + piece)
    return max(busy)


def measured_rate(run: Run, seconds: float) -> float:
    """Return the measured flops a second of this run's meta-iterations on one core.

    All cores of this machine work during the measurement.
    """
    cores = available_cores()
    with local_executor(cores) as executor:
        done = [executor.submit(iterations_in, run, seconds) for _ in range(cores)]
        return sum(one.result() for one in done) / cores / seconds * iteration(run).flops


def iterations_in(run: Run, seconds: float) -> float:
    """Return how many meta-iterations this process does in so many seconds, on blank images."""
    stream = training.train(run, _pool(run, "cpu"), training.start(run))
    next(stream)  # compiles and allocates what is needed once
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        next(stream)
        done += 1
    return done * seconds / elapsed


def ablation_runs(
    profile: str, seeds: int | None, scale: Scale | None = None
) -> tuple[list[PartOfRun], list[Work]]:
    """Return the runs of figure 3, and the work of each of their evaluations.

    Each run is evaluated at the start and at every look.
    scale: the scale to use instead of the profile's.
    """
    scale, trainings, evaluations = scale or ablation.SCALES[profile], [], 0
    for variant in ablation.variants(profile):
        late = ablation.LATE_LOOKS.get(profile, ()) if variant.name in ablation.LATE else ()
        looks = (*scale.looks, *late)
        for seed in range(seeds or scale.seeds):
            run = figure_3.configure(variant, seed, iterations=scale.iterations)
            trainings.append(PartOfRun(run, looks[-1]))
            evaluations += 1 + len(looks)
    # An evaluation costs the same for all runs.
    one = look(trainings[0].run, figure_3.EVALUATION, scale.tasks, scale.queries)
    return trainings, [one] * evaluations


def few_shot_runs(profile: str, seeds: int | None) -> tuple[list[PartOfRun], list[Work]]:
    """Return the runs of section 6.1's tables, and the work of the evaluation of each cell."""
    trainings, others = [], []
    for benchmark in benchmarks.BENCHMARKS:
        scale = benchmarks.SCALES[profile].get(benchmark.name)
        if scale is None:
            continue
        methods = [method for method in benchmarks.METHODS if method.name in scale.methods]
        for seed in range(seeds or benchmarks.SEEDS[profile]):
            mine = [benchmarks.configure(benchmark, method, scale, seed) for method in methods]
            trainings += [PartOfRun(run, run.iterations) for run in mine]
            samplings = [benchmarks.evaluated(benchmark, n) for n in benchmark.shots]
            cells = [look(mine[0], sampling, scale.tasks) for sampling in samplings]
            others += cells * len(mine)
    return trainings, others


SWEEPS = {"ablation": ablation_runs, "few_shot": few_shot_runs}


def table(items: Sequence[Work], rate: float, gpu: GPU = H100) -> list[str]:
    """Return the lines of a Markdown table of how long the work takes on several machines."""
    on_one_core = [item.flops / rate for item in items]
    rows = [(f"{cores} such cores", makespan(on_one_core, cores)) for cores in CORES]
    for count in GPUS:
        rows.append((f"{count} {gpu.name}, by its data sheet", gpu.seconds(items, count)))
    lines = [f"| {where} | {duration(seconds, digits=1)} |" for where, seconds in rows]
    return ["| on | takes |", "|---|---|", *lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", choices=SWEEPS, default="ablation")
    parser.add_argument("--profile", choices=PROFILES, default="paper")
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: the profile's)")
    parser.add_argument(
        "--rate",
        type=float,
        metavar="GFLOPS",
        help="of one core (default: measured now, 5 seconds)",
    )
    options = parser.parse_args()
    trainings, others = SWEEPS[options.experiment](options.profile, options.seeds)
    costs = {item: whole(item) for item in trainings}
    longest = max(trainings, key=lambda item: costs[item].flops).run
    one, items = iteration(longest), [*costs.values(), *others]
    rate = 1e9 * options.rate if options.rate else measured_rate(longest, 5.0)
    rate_from = "as given" if options.rate else "measured now"
    iterations = sum(item.until for item in trainings)
    flops, flops_of_others = sum(item.flops for item in items), sum(item.flops for item in others)
    print(
        f"{options.experiment}, {options.profile} profile: {len(trainings)} runs, "
        f"{iterations:,} meta-iterations, {flops / 1e12:,.1f} TFLOP, "
        f"{flops_of_others / flops:.0%} of them in {len(others)} evaluations\n"
        f"a meta-iteration of the longest: {one.flops / 1e9:.2f} GFLOP, {one.bytes / 1e6:,.0f} MB, "
        f"{one.launches:.0f} launches\n"
        f"one core does {rate / 1e9:.0f} GFLOP/s of it ({rate_from})\n"
    )
    print("\n".join(table(items, rate)))


def _as_to_cost(run: Run) -> Run:
    """Return a run of the same cost that is equal for all runs of that cost.

    Step sizes, lengths and seeds are set to 1 or 0.
    """
    if not isinstance(run.weights, str):
        run = replace(run, weights=tuple(float(weight != 0) for weight in run.weights))
    inner, outer = replace(run.inner, learning_rate=1.0), Outer(1.0, optimizer=run.outer.optimizer)
    return replace(run, inner=inner, outer=outer, iterations=1, seed=0)


def _start(run: Run) -> TrainingState:
    size = training.build_network(run).n_parameters
    return TrainingState(0, torch.empty(size, dtype=run.torch_dtype, device="meta"))


def _pool(run: Run, device: str) -> ImagePool:
    takes = training.build_network(run).takes or ()
    shape = CLASSES, DRAWINGS, *takes
    return ImagePool(torch.zeros(shape, dtype=torch.uint8, device=device), run.torch_dtype)


class _Tracing(TorchDispatchMode):
    """Counter of the operations on the meta device.

    Sampling is not counted, since it runs on the CPU on every machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        out = operation(*arguments, **(options or {}))
        leaves = tree_leaves((arguments, options, out))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        is_free = operation.is_view or operation.name().split(".")[0] in FREE
        if is_free or all(t.device.type != "meta" for t in tensors):
            return out
        count = flop_registry.get(operation.overloadpacket)
        flops = count(*arguments, **(options or {}), out_val=out) if count else 0
        self.work += Work(flops, sum(t.numel() * t.element_size() for t in tensors), 1)
        return out


if __name__ == "__main__":
    main()
