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
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from analysis import claims, manifest
from analysis.experiments import ablation, theorems, theory
from analysis.progress import progress
from analysis.runs import Job, Outcome, Source, available_cores, execute_all, local_executor
from analysis.tables import over_seeds, write_csv
from reptile_core import datasets
from reptile_core.checkpoints import CheckpointError
from reptile_core.meta_gradients import figure_3

PROFILES = ("smoke", "quick", "paper")
USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130  # as shells and argparse have them


class UsageError(ValueError):
    """Something that the user can put right, told in one line before any work."""


@dataclass(frozen=True)
class Context:
    """What every experiment is given: where to write, on which data and device, at what scale."""

    profile: str
    seeds: int | None
    out: Path
    data: datasets.Characters
    source: Source
    device: str
    workers: int
    fresh: bool
    quiet: bool
    unsupported: list[str] = field(default_factory=list)  # theorems that the run did not support, for --strict


@dataclass(frozen=True)
class Experiment:
    """An entry of the registry: what it shows, how long it takes by profile, its settings and its work."""

    shows: str
    takes: dict[str, str]
    settings: Callable[[Context], Any]
    run: Callable[[Context], list[str]]  # returns lines for the summary at the end


def run_ablation(context: Context) -> list[str]:
    """Figure 3: train the ten variants over seeds, write the table and the learning curves."""
    from figures.ablation import draw_ablation  # drawing libraries load while nothing waits for them
    from figures.style import save, stamp, style

    scale = ablation_scale(context)
    variants = figure_3()
    jobs = ablation.jobs(
        scale,
        context.source,
        context.out / "runs",
        variants=variants,
        device=context.device,
        fresh=context.fresh,
    )
    outcomes = run_jobs(ablation.NAME, jobs, context)
    curves = ablation.table(outcomes)
    write_csv(curves, context.out / "tables" / "ablation.csv")
    summary = ablation.summary(curves)
    write_csv(summary, context.out / "tables" / "ablation_summary.csv")
    intervals = over_seeds(curves[curves.quantity == "accuracy"], ["variant", "iteration"])
    with style():
        figure = draw_ablation(
            intervals,
            variants,
            ablation.finding(summary, variants),
            ablation.caption(scale),
            chance=1 / ablation.N_WAY,
        )
        stamp(figure, data_line(context), real=context.data.real)
        paths = save(figure, context.out / "figures", "ablation")
    ended_early = [
        f"{job.variant}, seed {job.run.seed}: {o.status}" for job, o in outcomes.items() if o.status != "finished"
    ]
    return [*ablation.report(summary), *ended_early, *(f"wrote {path}" for path in paths)]


def run_theory(context: Context) -> list[str]:
    """Section 5: judge every theorem on smooth losses, write the ledger and what is behind it."""
    from figures.style import save, stamp, style
    from figures.theory import draw_coefficients, draw_remainders

    pieces = theory.checks()
    with (
        progress("theory", len(pieces), unit=" checks", quiet=context.quiet) as updates,
        local_executor(min(context.workers, len(pieces)), updates) as executor,
    ):
        futures = [executor.submit(theory.run_check, check, context.source) for check in pieces]
        for future in futures:
            future.add_done_callback(lambda _: updates.put(1))
        results = [future.result() for future in futures]
    rows = pd.DataFrame([row for rows, _ in results for row in rows])
    points = pd.DataFrame([point for _, points in results for point in points])
    verdicts = claims.ledger(theorems.CLAIMS, rows, data=data_line(context), profile=context.profile)
    write_csv(rows, context.out / "tables" / "theory.csv")
    write_csv(points, context.out / "tables" / "remainders.csv")
    paths = claims.write_ledger(verdicts, context.out)
    with style():
        for name, figure in (
            ("remainders", draw_remainders(points)),
            ("coefficients", draw_coefficients(rows[(rows.role == "check") & rows["update"].notna()])),
        ):
            stamp(figure, data_line(context), real=context.data.real)
            paths += save(figure, context.out / "figures", name)
    context.unsupported.extend(verdicts[verdicts.verdict != claims.SUPPORTED].id)
    return [*claims.lines(verdicts), *(f"wrote {path}" for path in paths)]


def ablation_scale(context: Context) -> ablation.Scale:
    scale = ablation.SCALES[context.profile]
    return scale if context.seeds is None else replace(scale, seeds=context.seeds)


EXPERIMENTS = {
    "theory": Experiment(
        shows="section 5: every theorem judged by rate tests and exact enumeration, each beside a wrong formula",
        takes={profile: "about a minute" for profile in PROFILES},
        settings=lambda context: {"checks": len(theory.checks()), "steps_up_to": theorems.K_MAX, "dtype": "float64"},
        run=run_theory,
    ),
    ablation.NAME: Experiment(
        shows="figure 3: learning curves of the sums of inner gradients g_1 … g_k, over seeds",
        takes=ablation.TAKES,
        settings=lambda context: asdict(ablation_scale(context)) | ablation.SETTINGS,
        run=run_ablation,
    ),
}


def run_jobs(name: str, jobs: Sequence[Job], context: Context) -> dict[Job, Outcome]:
    """Run all of an experiment's jobs in worker processes behind one progress bar."""
    total = sum(job.training_steps for job in jobs)
    with (
        progress(name, total, quiet=context.quiet) as updates,
        local_executor(min(context.workers, len(jobs)), updates) as executor,
    ):
        try:
            outcomes = execute_all(jobs, executor)
        except KeyboardInterrupt:
            for process in list(executor._processes.values()):  # they would finish their runs first
                process.terminate()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    return {job: outcomes[job] for job in jobs}


def data_line(context: Context) -> str:
    """The line under every figure: which data, profile and seeds."""
    data = context.data
    what = "Omniglot" if data.real else f"NOT OMNIGLOT: {data.name}, made-up characters"
    characters, drawings = data.images.shape[:2]
    return f"Data: {what}, {characters:,} characters × {drawings} drawings · profile: {context.profile}"


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
    parser.add_argument("--fresh", action="store_true", help="do finished runs anew")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--strict", action="store_true", help="exit with 1 unless every theorem is supported")
    parser.add_argument("--list", action="store_true", help="name the experiments and stop")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> tuple[list[str], Context]:
    """Check everything that can be checked before work starts. UsageError or DataError, one line each."""
    unknown = [name for name in options.experiments if name not in EXPERIMENTS]
    if unknown:
        raise UsageError(f"EXPERIMENT: expected one of {', '.join(EXPERIMENTS)}, found {unknown[0]!r}")
    for name in ("workers", "seeds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name}: expected at least 1, found {value}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: expected a CUDA device for cuda, found none that torch can use")
    device = options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    out = options.out or Path("results") / options.profile
    _check_writable(out)
    data = datasets.load(options.dataset, data=options.data, quiet=options.quiet)
    context = Context(
        profile=options.profile,
        seeds=options.seeds,
        out=out,
        data=data,
        source=Source(data.name, options.data, data.content),
        device=device,
        workers=options.workers or (1 if device == "cuda" else available_cores()),
        fresh=options.fresh,
        quiet=options.quiet,
    )
    return options.experiments or list(EXPERIMENTS), context


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.list:
        print(listing())
        return 0
    try:
        names, context = prepare(options)
    except (UsageError, datasets.DataError) as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    try:
        run(names, context)
        return FAILURE if options.strict and context.unsupported else 0
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


def run(names: Sequence[str], context: Context) -> None:
    """Write the manifest, do the experiments, complete the manifest, say what was found."""
    path = context.out / "manifest.json"
    record = manifest.begin(
        command=sys.argv,
        profile=context.profile,
        experiments={name: EXPERIMENTS[name].settings(context) for name in names},
        data=context.data,
        device=context.device,
        workers=context.workers,
    )
    manifest.write(record, path)
    print(f"{data_line(context)} · {context.workers} workers on {context.device} · results in {context.out}/")
    seconds: dict[str, float] = {}
    status = "interrupted"
    lines: list[str] = []
    try:
        for name in names:
            began = time.perf_counter()
            lines += EXPERIMENTS[name].run(context)
            seconds[name] = round(time.perf_counter() - began, 2)
        status = "finished"
    finally:
        manifest.write(manifest.complete(record, status=status, wall_seconds=seconds), path)
    print("\n".join([*lines, f"wrote {path}", data_line(context)]))


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
