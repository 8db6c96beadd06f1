"""Script that reproduces the experiments of the Reptile paper.

The paper: "On First-Order Meta-Learning Algorithms" (Nichol, Achiam, Schulman 2018).

    python reproduce.py                           all experiments, quick profile
    python reproduce.py theory                    the theorems alone
    python reproduce.py ablation --profile paper  figure 3's learning curves at the paper's scale
    python reproduce.py --list                    what there is, what it shows, how long it takes
    python reproduce.py --from manifest.json      rerun a manifest, compare its tables bit by bit

Images are Omniglot's if they can be had. With --from, --only RUN reruns one training run.
"""

import signal
import sys

if (
    # An installation's command reptile-verify imports this file.
    (__name__ == "__main__" or sys.argv[0].endswith("reptile-verify"))
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # Libraries take seconds to load; until then Ctrl-C ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis import budget, one_run, plugins
from analysis.again import compare
from analysis.command_line import listing, parse
from analysis.ending import FAILURE, UsageError, guarded
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.experiment import Asked, Experiment, Result
from analysis.plan import Plan, begin_manifest
from analysis.prepare import plans
from analysis.results import checksums, folder, ledger, manifest, terminal
from analysis.results.claims import Claim
from analysis.results.verdict import SUPPORTED, Verdict
from analysis.runs import redo
from figures.background import Drawing

# Modules with a main(arguments) of their own.
COMMANDS = {"report": "figures.report", "demo": "figures.demo", "publish": "figures.publish"}
# Modules that are needed at the end, loaded while workers are busy.
COME_LAST = ("scipy.special", "figures.drawing", COMMANDS["report"])


def claims() -> dict[str, tuple[Claim, ...]]:
    """Return the claims of every experiment, plugins' included."""
    return {name: experiment.claims for name, experiment in EXPERIMENTS.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code."""
    return guarded(reproduce, sys.argv[1:] if arguments is None else arguments)


def reproduce(arguments: Sequence[str]) -> int:
    """Parse the arguments, load the user's plugins, do what is asked and return the exit code."""
    if arguments and arguments[0] in COMMANDS:
        own = [word for word in arguments[1:] if word != "--debug"]  # `guarded` has seen it
        return int(import_module(COMMANDS[arguments[0]]).main(own))
    options = parse(arguments)
    with plugins.loaded(options.plugins or ()):
        return do(options)


def do(options: argparse.Namespace) -> int:
    """Plan and run, and return the exit code.

    With --from, also compare the tables with those of the manifest.
    """
    if options.list:
        print(listing())
        return 0
    if options.only is not None:
        return one_run.do_again(options)
    if options.json and options.dry_run:
        raise UsageError("--json: expected no --dry-run with it, which has no summary")
    with contextlib.ExitStack() as ended:
        ended.enter_context(contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout))
        todo = plans(options)
        for plan in todo:
            ended.push(plan.context.workers)
        for line in dict.fromkeys(line for plan in todo for line in plan.differences):
            print(f"not as in {options.again}: {line}")
        if options.dry_run:
            print("\n".join(import_module("analysis.dry_run").describe(todo)))
            return 0
        verdicts: list[Verdict] = []
        record: dict[str, Any] = {}
        differences: list[str] | None = None if options.again is None else []
        with folder.alone_in(todo[0].out):
            for plan in todo:
                with plan.context.workers:
                    found, record = run(plan)
                verdicts += found
                if differences is not None:
                    differences += compare(plan, record)
    if options.json:
        records = [ledger.as_record(verdict) for verdict in verdicts]
        summary = {
            "out": str(todo[-1].out),
            "manifest": record,
            "claims": records,
            "differences": differences,
        }
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    theorems = [verdict for verdict in verdicts if verdict.claim.kind == "theorem"]
    fell = options.strict and not all(verdict.decision == SUPPORTED for verdict in theorems)
    return FAILURE if fell or differences else 0


@dataclass
class Done:
    """Record of what has been done so far, by experiment.

    wall_seconds: seconds of each experiment.
    worker_seconds: processor seconds of the workers, where they are known.
    tables: checksums of the tables, by file name.
    other_data: content of each experiment's data other than the script's own, by name of the data.
    """

    wall_seconds: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[str, float] = field(default_factory=dict)
    tables: dict[str, dict[str, str]] = field(default_factory=dict)
    other_data: dict[str, dict[str, str]] = field(default_factory=dict)

    def add_time(self, name: str, wall: float, workers: float) -> None:
        """Add to the seconds of an experiment; `workers` is nan or 0 where they are not counted."""
        self.wall_seconds[name] = round(self.wall_seconds.get(name, 0.0) + wall, 2)
        if workers > 0:
            self.worker_seconds[name] = round(self.worker_seconds.get(name, 0.0) + workers, 2)


def run(plan: Plan) -> tuple[list[Verdict], dict[str, Any]]:
    """Run the experiments of a plan; return the verdicts on their claims, and the manifest.

    Writes the manifest, runs each experiment and prints what it found, completes the manifest after
    each, and writes the report.
    """
    path, context = plan.out / "manifest.json", plan.context
    begun = begin_manifest(plan, folder.manifest_there(plan.out))
    done, status = Done(), "interrupted"
    record = manifest.complete(begun, status="running", **vars(done))
    manifest.write(record, path)
    threading.Thread(target=lambda: list(map(import_module, COME_LAST)), daemon=True).start()
    sources = list(dict.fromkeys(map(plan.data_line, plan.experiments)))
    where = f"{context.workers.count} workers on {context.device} · results in {plan.out}/"
    print("\n".join([*sources, where]))
    try:
        with Drawing() as drawing:
            for experiment in plan.experiments:
                run_one(experiment, plan, done, drawing)
                manifest.write(manifest.complete(begun, status="running", **vars(done)), path)
            if plan.until_decided:
                plan = add_seeds(plan, done, drawing)
                begun |= {name: begin_manifest(plan)[name] for name in ("options", "experiments")}
        status = "finished"
    finally:
        record = manifest.complete(begun, status=status, **vars(done))
        manifest.write(record, path)
    verdicts = plan.verdicts(folder.judge_all(plan.out, claims()))
    print("\n".join(["", *terminal.verdicts(verdicts, colour=terminal.in_colour(sys.stdout))]))
    reports = import_module(COMMANDS["report"]).write(plan.out)
    written = [f"wrote {file}" for file in (*drawing.files(), path, *reports)]
    print("\n".join(["", terminal.tally(verdicts), *written, *sources]))
    return verdicts, record


def run_one(experiment: Experiment, plan: Plan, done: Done, drawing: Drawing) -> None:
    """Run an experiment, write its results, judge its claims, and print and note all of it.

    Its figures are left to `drawing`.
    """
    workers, context = plan.context.workers, plan.context_of(experiment)
    began, worked = time.perf_counter(), workers.processor_seconds()
    result = experiment.result(context)
    paths = write(experiment, result, plan, context.asked, time.perf_counter() - began)
    done.tables[experiment.name] = {path.name: checksums.digest(path) for path in paths}
    done.other_data[experiment.name] = context.asked.data
    verdicts = folder.judge_all(plan.out, claims())
    written = [*paths, ledger.write(verdicts, plan.out)]
    drawing.begin(experiment, result, plan)
    mine = [verdict for verdict in verdicts if verdict.claim in experiment.claims]
    seconds = time.perf_counter() - began
    done.add_time(experiment.name, seconds, workers.processor_seconds() - worked)
    said = [f"\n{experiment.name}, {seconds:,.0f} s", *result.lines, *context.asked.diverged]
    said += terminal.verdicts(mine, colour=terminal.in_colour(sys.stdout))
    print("\n".join([*said, *(f"wrote {path}" for path in written)]))


def write(
    experiment: Experiment, result: Result, plan: Plan, asked: Asked, seconds: float
) -> list[Path]:
    """Write an experiment's tables and evidence, and return the files.

    The tables include that of its runs. The evidence is written only where there are claims, with
    data, profile and seconds: what the experiment took, or what its runs took where they were there
    before, since another seed has to train its own.
    """
    runs = redo.tabulate(asked.runs, asked.evaluations)
    tables = redo.with_devices(result.tables, asked.runs)
    if len(runs):
        tables[f"{experiment.name}{redo.SUFFIX}"] = runs
    paths = folder.write_tables(plan.out, tables)
    if not experiment.claims:
        return paths
    workers = plan.context.workers.count
    evidence = folder.complete(
        result.evidence,
        data=plan.data_line(experiment),
        profile=plan.context.profile,
        diverged=asked.diverged,
        seconds=max(seconds, asked.training_seconds() / workers),
        workers=workers,
    )
    return paths + folder.write_evidence(plan.out, experiment.name, evidence)


def add_seeds(plan: Plan, done: Done, drawing: Drawing) -> Plan:
    """Rerun experiments with more seeds until all claims that can be decided here are.

    Where an experiment can, only the runs that an undecided claim compares get more. Return the
    plan with the final numbers of seeds.
    """

    def more_seeds() -> dict[str, int]:
        verdicts = plan.verdicts(folder.judge_all(plan.out, claims()))
        return budget.more_seeds(verdicts, plan.experiments)

    while more := more_seeds():
        lines = [f"{name}: {count} seeds, to decide more" for name, count in more.items()]
        print("\n" + "\n".join(lines))
        plan = plan.with_seeds(more)
        for experiment in plan.experiments:
            if not more.keys().isdisjoint((experiment.name, *experiment.compares)):
                run_one(experiment, plan, done, drawing)
    return plan


if __name__ == "__main__":
    sys.exit(main())
