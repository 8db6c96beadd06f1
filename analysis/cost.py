"""What a sweep of runs costs, and how long it will take: a model of three numbers that are counted, not guessed.

    python -m analysis.cost [ablation | few_shot] [--profile P] [--seeds N] [--rate GFLOPS]

A meta-iteration and an evaluation are traced without data: the flops of their matrix products, the bytes that their
operations read and write, and how many operations follow one another (launches, on a GPU). A run costs its iterations
times the one and its evaluations times the other, linear in all of them. How long that takes:

- on cores, one run each at a time, the longest first: flops / rate. The rate of one core, with all of them at work, is
  measured now. What a core computes fits its caches, so that bytes do not count.
- on a GPU, runs alike side by side, as lanes: flops / F + bytes / W, or, where there are too few to fill it, launches
  times the time of one. F and W are those of a data sheet, and none of the three is measured.
"""

import argparse
import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from analysis.claims import PROFILES
from analysis.evaluations import LANES
from analysis.experiments import ablation, few_shot_benchmarks
from analysis.workers import available_cores, local_executor
from reptile_core import training
from reptile_core.meta_gradients import figure_3
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import IMAGES, Run, TrainingState

CORES = 2, 64
GPUS = 1, 8
CLASSES, DRAWINGS = 40, 30  # of pools to trace or time with: as many as any task asks for
FREE = ("aten::_unsafe_view", "aten::detach", "aten::new_empty", "aten::empty_like", "aten::empty")  # no arithmetic


@dataclass(frozen=True)
class Work:
    """flops of matrix products; bytes that operations read and write; launches: operations one after the other."""

    flops: float = 0
    bytes: float = 0
    launches: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.launches + other.launches)

    def __rmul__(self, times: float) -> "Work":
        return Work(times * self.flops, times * self.bytes, times * self.launches)


@dataclass(frozen=True)
class GPU:
    """products: float32 flops a second; memory: bytes a second; launch: seconds from one operation to the next."""

    name: str
    products: float
    memory: float
    launch: float

    def seconds(self, items: Sequence[Work], count: int) -> float:
        """Of all items on `count` of these. Those that are alike in their operations are lanes of one group: until the
        last of it is launched, and all of it computed. A group is on one GPU, and one after the other."""
        groups: dict[float, list[Work]] = {}
        for item in items:
            groups.setdefault(item.launches, []).append(item)
        return makespan([max(launches * self.launch, self._computed(g)) for launches, g in groups.items()], count)

    def _computed(self, items: Sequence[Work]) -> float:
        return sum(item.flops / self.products + item.bytes / self.memory for item in items)


# An H100 SXM by its data sheet (float32 without tensor cores), and what a launch takes when a graph is replayed.
H100 = GPU("H100", 67e12, 3.35e12, 2e-6)


@cache
def iteration(run: Run) -> Work:
    """One meta-iteration."""
    pool, state = _pool(run, "meta"), _start(run)
    return traced(lambda: next(training.train(run, pool, state)))


@cache
def evaluation(run: Run, sampling: Sampling, tasks: int) -> Work:
    """An evaluation on `tasks` tasks side by side; what each step of the inner loop adds is counted once."""
    pool, state = _pool(run, "meta"), _start(run)

    def after(steps: int) -> Work:
        cut = replace(sampling, steps=steps)
        return traced(lambda: training.accuracies(run, pool, state, cut, range(tasks), lanes=tasks))

    one, two = after(1), after(2)
    return one + (sampling.steps - 1) * (two + -1 * one)


def whole(run: Run) -> Work:
    """A run from its start to its end, with its looks on the way."""
    same = replace(run, seed=0)  # as to cost
    looks = 1 + -(-run.iterations // run.evaluation.every)
    return run.iterations * iteration(same) + looks * evaluation(same, run.evaluation.sampling, run.evaluation.tasks)


def traced(call: Callable[[], Any]) -> Work:
    """What `call` does on the meta device: torch goes through its operations on shapes alone."""
    with _Tracing() as tracing:
        call()
    return tracing.work


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Seconds until all is done, each piece whole by one of the workers, the longest first."""
    busy = [0.0] * workers
    for piece in sorted(seconds, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + piece)
    return max(busy)


def measured_rate(run: Run, seconds: float) -> float:
    """Flops a second of this run's meta-iterations on one core of this machine while all are at it, by doing them."""
    cores = available_cores()
    with local_executor(cores) as executor:
        done = [executor.submit(iterations_in, run, seconds) for _ in range(cores)]
        return sum(one.result() for one in done) / cores / seconds * iteration(run).flops


def iterations_in(run: Run, seconds: float) -> float:
    """How many meta-iterations this process does, on images of nothing."""
    stream = training.train(run, _pool(run, "cpu"), training.start(run))
    next(stream)  # what is compiled or allocated once
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        next(stream)
        done += 1
    return done * seconds / elapsed


def ablation_runs(profile: str, seeds: int | None) -> tuple[list[Run], list[Work]]:
    """Runs, and what else is done besides: here nothing."""
    scale = ablation.SCALES[profile]
    return [ablation.configure(v, scale, seed) for v in figure_3() for seed in range(seeds or scale.seeds)], []


def few_shot_runs(profile: str, seeds: int | None) -> tuple[list[Run], list[Work]]:
    """Runs, and the evaluations of the tables, 25 tasks side by side."""
    runs, others = [], []
    for benchmark in few_shot_benchmarks.BENCHMARKS:
        scale = few_shot_benchmarks.SCALES[profile].get(benchmark.name)
        if scale is None:
            continue
        methods = [method for method in few_shot_benchmarks.METHODS if method.name in scale.methods]
        for seed in range(seeds or few_shot_benchmarks.SEEDS[profile]):
            mine = [few_shot_benchmarks.configure(benchmark, method, scale, seed) for method in methods]
            looks = [
                evaluation(replace(mine[0], seed=0), few_shot_benchmarks.evaluated(benchmark, shots), LANES)
                for shots in benchmark.shots
            ]
            runs += mine
            others += [scale.tasks / LANES * look for look in looks] * len(mine)
    return runs, others


SWEEPS = {"ablation": ablation_runs, "few_shot": few_shot_runs}


def table(items: Sequence[Work], rate: float, gpu: GPU = H100) -> list[str]:
    """Lines of a table in Markdown: where, and how long it takes there."""
    rows = [(f"{cores} such cores", makespan((item.flops / rate for item in items), cores)) for cores in CORES]
    rows += [(f"{count} {gpu.name}, by its data sheet", gpu.seconds(items, count)) for count in GPUS]
    return ["| on | takes |", "|---|---|", *(f"| {where} | {duration(seconds)} |" for where, seconds in rows)]


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", choices=SWEEPS, default="ablation")
    parser.add_argument("--profile", choices=PROFILES, default="paper")
    parser.add_argument("--seeds", type=int, metavar="N", help="(default: the profile's)")
    parser.add_argument("--rate", type=float, metavar="GFLOPS", help="of one core (default: measured now, 5 seconds)")
    options = parser.parse_args()
    runs, others = SWEEPS[options.experiment](options.profile, options.seeds)
    costs = {run: whole(run) for run in runs}
    longest = max(runs, key=lambda run: costs[run].flops)
    one, items = iteration(longest), [*costs.values(), *others]
    rate = 1e9 * options.rate if options.rate else measured_rate(longest, 5.0)
    print(
        f"{options.experiment}, {options.profile} profile: {len(runs)} runs, "
        f"{sum(run.iterations for run in runs):,} meta-iterations, {sum(i.flops for i in items) / 1e12:,.1f} TFLOP\n"
        f"a meta-iteration of the longest: {one.flops / 1e9:.2f} GFLOP, {one.bytes / 1e6:,.0f} MB, "
        f"{one.launches:.0f} launches\n"
        f"one core does {rate / 1e9:.0f} GFLOP/s of it ({'as told' if options.rate else 'measured now'})\n"
    )
    print("\n".join(table(items, rate)))


def _start(run: Run) -> TrainingState:
    return TrainingState(0, training.start(run).phi.to("meta"))


def _pool(run: Run, device: str) -> ImagePool:
    shape = CLASSES, DRAWINGS, *IMAGES[run.network]
    return ImagePool(torch.zeros(shape, dtype=torch.uint8, device=device), run.torch_dtype)


class _Tracing(TorchDispatchMode):
    """Counts operations on the meta device; sampling, which is on the CPU on every machine, is not among them."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = operation(*arguments, **(options or {}))
        tensors = [leaf for leaf in tree_leaves((arguments, options, out)) if isinstance(leaf, torch.Tensor)]
        if operation.is_view or operation.name().split(".")[0] in FREE or all(t.device.type != "meta" for t in tensors):
            return out
        count = flop_registry.get(operation.overloadpacket)
        flops = count(*arguments, **(options or {}), out_val=out) if count else 0
        self.work += Work(flops, sum(t.numel() * t.element_size() for t in tensors), 1)
        return out


if __name__ == "__main__":
    main()
