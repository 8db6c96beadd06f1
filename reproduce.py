"""Reproduce the experiments of "On First-Order Meta-Learning Algorithms" (Nichol, Achiam, Schulman 2018).

python reproduce.py                           all experiments, quick profile, Omniglot if it can be had
python reproduce.py theory                    the theorems alone
python reproduce.py ablation --profile paper  the learning curves of figure 3 at the paper's own scale
python reproduce.py --list                    what there is, what it shows and how long it takes
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pandas as pd
import torch

from analysis import claims, manifest
from analysis.claims import PROFILES
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import EXPERIMENTS
from analysis.experiments.few_shot_benchmarks import CELLS
from analysis.runs import Source
from analysis.tables import read_csv, write_csv
from analysis.workers import Workers, available_cores
from reptile_core import datasets
from reptile_core.checkpoints import CheckpointError

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130  # as shells and argparse have them
COMMANDS = {"report": "figures.report", "demo": "figures.demo"}  # modules with a main(arguments) of their own


class UsageError(ValueError):
    """Something that the user can put right, told in one line before any work."""


@dataclass(frozen=True)
class Plan:
    """What the user asked for, checked: which experiments, where results go, the data and what each is given."""

    experiments: tuple[Experiment, ...]
    out: Path
    data: datasets.Characters
    context: Context


def data_line(plan: Plan, experiment: Experiment) -> str:
    """The line under every figure: which data, and at what scale. An experiment may have data of its own."""
    data = plan.data
    what = "Omniglot" if data.real else f"NOT OMNIGLOT: {data.name}, made-up characters"
    characters, drawings = data.images.shape[:2]
    what = experiment.data or f"{what}, {characters:,} characters × {drawings} drawings"
    return f"Data: {what} · profile: {plan.context.profile}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="which ones (default: all); see --list")
    parser.add_argument("--profile", choices=PROFILES, default="quick", help="how much to run (default: quick)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the Omniglot zips or an omniglot/ of them"
    )
    parser.add_argument("--dataset", choices=("auto", "omniglot", "glyphs"), default="auto",
                        help="auto takes Omniglot if it can be had, else made-up glyphs (default: auto)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: results/PROFILE)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes of one thread each (default: one a core)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 … N-1 (default: the profile's)")
    parser.add_argument(
        "--cells", nargs="+", default=(), metavar="CELL", help="of few_shot: omniglot-5way, cifar-fs-reptile … (all)"
    )
    parser.add_argument("--fresh", action="store_true", help="do finished runs anew")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless every theorem is supported")
    parser.add_argument("--list", action="store_true", help="name the experiments and stop")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> Plan:
    """Check everything that can be checked before work starts. UsageError or DataError, one line each."""
    unknown = [name for name in options.experiments if name not in EXPERIMENTS]
    if unknown:
        raise UsageError(f"EXPERIMENT: expected one of {', '.join(EXPERIMENTS)}, found {unknown[0]!r}")
    for name in ("workers", "seeds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}: expected at least 1, found {value}")
    for cell in options.cells:
        if not any(name.startswith(cell) for name in CELLS):
            raise UsageError(f"--cells: expected beginnings of {', '.join(CELLS)}, found {cell!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: expected a CUDA device for cuda, found none that torch can use")
    device = options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    out = options.out or Path("results") / options.profile
    _check_writable(out)
    data = datasets.load(options.dataset, data=options.data, quiet=options.quiet)
    context = Context(
        profile=options.profile,
        source=Source(data.name, options.data, data.content, data.real),
        workers=Workers(options.workers or (1 if device == "cuda" else available_cores()), quiet=options.quiet),
        runs=out / "runs",
        seeds=options.seeds,
        cells=tuple(options.cells),
        device=device,
        fresh=options.fresh,
    )
    names = options.experiments or list(EXPERIMENTS)
    return Plan(tuple(EXPERIMENTS[name] for name in dict.fromkeys(names)), out, data, context)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return int(import_module(COMMANDS[arguments[0]]).main(arguments[1:]))
    options = parse(arguments)
    if options.list:
        print(listing())
        return 0
    try:
        plan = prepare(options)
    except (UsageError, datasets.DataError) as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    try:
        with plan.context.workers:
            verdicts = run(plan)
        theorems = verdicts[verdicts.kind == "theorem"]
        return FAILURE if options.strict and not (theorems.verdict == claims.SUPPORTED).all() else 0
    except KeyboardInterrupt:
        print("\nInterrupted. What is done is kept; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except BrokenProcessPool:
        message = "a worker process died (out of memory, or killed). What is done is kept; the same command goes on."
        print(f"reproduce.py: error: {message}", file=sys.stderr)
        return FAILURE
    except (CheckpointError, datasets.DataError, OSError) as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return FAILURE


def run(plan: Plan) -> pd.DataFrame:
    """Write the manifest, do the experiments and say what each found, complete the manifest. Returns the ledger of what
    was run."""
    path, context = plan.out / "manifest.json", plan.context
    record = manifest.begin(
        command=sys.argv,
        profile=context.profile,
        experiments={experiment.name: experiment.settings(context) for experiment in plan.experiments},
        data=plan.data,
        device=context.device,
        workers=context.workers.count,
    )
    manifest.write(record, path)
    sources = list(dict.fromkeys(data_line(plan, experiment) for experiment in plan.experiments))
    print("\n".join([*sources, f"{context.workers.count} workers on {context.device} · results in {plan.out}/"]))
    seconds: dict[str, float] = {}
    status = "interrupted"
    try:
        for experiment in plan.experiments:
            began = time.perf_counter()
            result = experiment.run(context)
            written = [*write_tables(experiment, result, plan), *draw(experiment, result, plan)]
            verdicts = judge(plan.out)
            written += claims.write_ledger(verdicts, plan.out)
            seconds[experiment.name] = round(time.perf_counter() - began, 2)
            mine = verdicts[verdicts.id.isin([claim.id for claim in experiment.claims])]
            title = f"\n{experiment.name}, {seconds[experiment.name]:,.0f} s"
            print("\n".join([title, *result.lines, *claims.lines(mine), *(f"wrote {path}" for path in written)]))
        status = "finished"
    finally:
        manifest.write(manifest.complete(record, status=status, wall_seconds=seconds), path)
    done = verdicts[verdicts.id.isin([claim.id for experiment in plan.experiments for claim in experiment.claims])]
    print("\n".join(["", claims.counts(done), f"wrote {path}", *sources]))
    return done


def write_tables(experiment: Experiment, result: Result, plan: Plan) -> list[Path]:
    """tables/NAME.csv for each of the result's, and tables/EXPERIMENT_measurements.csv for the ledger."""
    tables = dict(result.tables)
    if experiment.claims:
        own = result.measurements.get("data", pd.Series(index=result.measurements.index, dtype=object))
        data = own.fillna(data_line(plan, experiment))
        measurements = result.measurements.assign(data=data, profile=plan.context.profile)
        tables[f"{experiment.name}_measurements"] = measurements
    paths = []
    for name, table in tables.items():
        paths.append(plan.out / "tables" / f"{name}.csv")
        write_csv(table, paths[-1])
    return paths


def draw(experiment: Experiment, result: Result, plan: Plan) -> list[Path]:
    """The figures of the experiment's namesake in figures/, stamped with the data they come from."""
    from figures.style import save, stamp, style  # drawing libraries load while nothing waits for them

    paths = []
    with style():
        figures = import_module(f"figures.{experiment.name}").draw(result.tables, experiment.settings(plan.context))
        for name, figure in figures.items():
            real = plan.data.real or experiment.data is not None
            stamp(figure, data_line(plan, experiment), real=real)
            paths += save(figure, plan.out / "figures", name)
    return paths


def judge(out: Path) -> pd.DataFrame:
    """The ledger of all claims from every measurement in the output folder, of this invocation or an earlier one."""
    every = [claim for experiment in EXPERIMENTS.values() for claim in experiment.claims]
    paths = [out / "tables" / f"{name}_measurements.csv" for name in EXPERIMENTS]
    return claims.ledger(every, pd.concat([claims.NO_MEASUREMENTS, *(read_csv(p) for p in paths if p.exists())]))


def listing() -> str:
    lines = []
    for name, experiment in EXPERIMENTS.items():
        takes = ", ".join(f"{duration} ({profile})" for profile, duration in experiment.takes.items())
        lines += [name, f"    shows {experiment.shows}", f"    takes {takes}"]
    return "\n".join(lines)


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--out: expected a folder that can be written, found {out} ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
