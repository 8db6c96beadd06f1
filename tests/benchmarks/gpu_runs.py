"""Figure 3 and Omniglot's tables on a GPU, by the script itself.

This way what comes out can be judged and published.

Figure 3's schedule is trained in prefixes, each of which leaves a whole set of tables. Omniglot's
runs are shortened to what the time left allows. The script says so in its tables and shows them
without judging them.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import reproduce
from analysis.experiments import ablation
from analysis.paper.benchmarks import BENCHMARKS, METHODS, SCALES, configure
from reptile_core.lanes import train_lanes
from reptile_core.tasks import ImagePool
from reptile_core.training import start
from tests.benchmarks.measuring import images

PREFIXES = 1_000, 5_000, 40_000  # iterations of figure 3
SEEDS = {"figure_3": 5, "omniglot-5way": 3, "omniglot-20way": 3}
# Test tasks of a cell of Omniglot's tables: the paper's 10,000 would take longer than training.
TASKS = 1_000
SHARE = 0.5  # of the time left that training may take; evaluation is the rest
KEPT = "tables", "figures", "manifest.json", "claims.json", "report.md"


def figure_3(out: Path, common: list[str], *, scale: float) -> Iterator[str]:
    """Train all of figure 3's runs to each prefix in turn, and yield a line for each.

    scale: of iterations, test tasks and seeds.
    """
    whole = ablation.SCALES["paper"]
    seeds = max(1, round(scale * SEEDS["figure_3"]))
    for prefix in PREFIXES:
        looks = tuple(sorted({max(1, round(scale * n)) for n in whole.looks if n <= prefix}))
        cut = replace(whole, looks=looks, tasks=max(2, round(scale * whole.tasks)))
        with mock.patch.dict(ablation.SCALES, {"paper": cut}):
            took = _script("ablation", "--seeds", str(seeds), "--out", str(out), *common)
        _keep(out, out.with_name(f"{out.name}-{looks[-1]}"))
        yield f"figure 3, {seeds} seeds to iteration {looks[-1]:,}: {took:.0f} s more"


def omniglot(
    name: str, out: Path, common: list[str], *, scale: float, device: str, end: float
) -> Iterator[str]:
    """Train Reptile on a table's benchmark for as long as the time allows, and yield a line.

    scale: of iterations and test tasks. end: by `time.monotonic()`.
    """
    benchmark = next(one for one in BENCHMARKS if one.name == name)
    of_paper = SCALES["paper"][name]
    most = max(2, round(scale * of_paper.iterations))
    seconds = _seconds_an_iteration(name, device)
    iterations = min(most, max(2, int(SHARE * (end - time.monotonic()) / seconds)))
    cut = replace(of_paper, tasks=max(2, round(scale * TASKS)))
    cell = f"{benchmark.name}-{METHODS[0].name}"
    arguments = ["--cells", cell, "--seeds", str(SEEDS[name])]
    arguments += ["--iterations", str(iterations), "--out", str(out)]
    with mock.patch.dict(SCALES["paper"], {name: cut}):
        took = _script("few_shot", *arguments, *common)
    _keep(out, out.with_name(f"{out.name}-{iterations}"))
    yield (
        f"{name}, Reptile, {SEEDS[name]} seeds, {iterations:,} of {of_paper.iterations:,} "
        f"iterations: {took:.0f} s"
    )


def _seconds_an_iteration(name: str, device: str) -> float:
    """Return the seconds of a meta-iteration of all seeds.

    They run as lanes on a GPU, and one after the other on a CPU.
    """
    benchmark = next(one for one in BENCHMARKS if one.name == name)
    runs = [
        configure(benchmark, METHODS[0], SCALES["paper"][name], seed) for seed in range(SEEDS[name])
    ]
    pool = ImagePool(images().to(device))
    stream = train_lanes(runs, [pool] * len(runs), [start(run, device) for run in runs])
    next(stream)
    began = time.perf_counter()
    for _ in range(3):
        float(next(stream).phi.sum())  # waits for the device
    return (time.perf_counter() - began) / 3


def _script(*arguments: str) -> float:
    """Run the script and return its seconds.

    What it prints goes to standard error. Raises RuntimeError where it failed.
    """
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = reproduce.main([*arguments, "--profile", "paper", "--quiet"])
    if code:
        raise RuntimeError(
            f"reproduce.py {' '.join(arguments)}: expected exit code 0, found {code}"
        )
    return time.perf_counter() - began


def _keep(out: Path, where: Path) -> None:
    """Copy what the script wrote, except for the runs, to `where`.

    There the next invocation does not overwrite it.
    """
    for name in KEPT:
        if (out / name).is_dir():
            shutil.copytree(out / name, where / name, dirs_exist_ok=True)
        elif (out / name).exists():
            where.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / name, where / name)
