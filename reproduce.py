"""Reproduce the experiments of "On First-Order Meta-Learning Algorithms" (Nichol, Achiam, Schulman 2018).

python reproduce.py                           all experiments, quick profile, Omniglot if it can be had
python reproduce.py theory                    the theorems alone
python reproduce.py ablation --profile paper  the learning curves of figure 3 at the paper's own scale
python reproduce.py --list                    what there is, what it shows and how long it takes
python reproduce.py --from manifest.json      rerun a manifest and compare its tables bit by bit; --only RUN: one run
"""

import signal
import sys

if (
    (__name__ == "__main__" or sys.argv[0].endswith("reptile-verify"))  # which imports this where it is installed
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once while libraries load, which takes seconds

import argparse
import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis import budget, one_run, plugins
from analysis.again import compare
from analysis.command_line import listing, parse
from analysis.ending import FAILURE, guarded
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.experiment import Experiment, Result
from analysis.plan import Plan, begin_manifest
from analysis.prepare import plans
from analysis.results import checksums, folder, ledger, manifest, terminal
from analysis.results.claims import Claim
from analysis.results.judge import SUPPORTED, Verdict
from analysis.runs import redo
from figures.background import Drawing

# Modules with a main(arguments) of their own.
COMMANDS = {"report": "figures.report", "demo": "figures.demo", "publish": "figures.publish"}
COME_LAST = ("scipy.special", "figures.drawing", COMMANDS["report"])  # needed at the end, loaded while others work


def claims() -> dict[str, tuple[Claim, ...]]:
    """Return the claims of every experiment, plugins' included."""
    return {name: experiment.claims for name, experiment in EXPERIMENTS.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit code."""
    return guarded(reproduce, sys.argv[1:] if arguments is None else arguments)


def reproduce(arguments: Sequence[str]) -> int:
    """Parse the arguments and do what they say, with the user's plugins; return the exit code."""
    if arguments and arguments[0] in COMMANDS:
        return int(import_module(COMMANDS[arguments[0]]).main(arguments[1:]))
    options = parse(arguments)
    with plugins.loaded(options.plugins or ()):
        return do(options)


def do(options: argparse.Namespace) -> int:
    """Plan, run, and compare with the manifest that is rerun, if one is; return the exit code."""
    if options.list:
        print(listing())
        return 0
    if options.only is not None:
        return one_run.do_again(options)
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        todo = plans(options)
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
        summary = {"out": str(todo[-1].out), "manifest": record, "claims": records, "differences": differences}
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    theorems = [verdict for verdict in verdicts if verdict.claim.kind == "theorem"]
    fell = options.strict and not all(verdict.decision == SUPPORTED for verdict in theorems)
    return FAILURE if fell or differences else 0


def run(plan: Plan) -> tuple[list[Verdict], dict[str, Any]]:
    """Write the manifest, run the experiments and print what each found, complete the manifest, write the report.
    Return the verdicts on the claims of what was run, and the manifest."""
    path, context = plan.out / "manifest.json", plan.context
    record = begin_manifest(plan, folder.manifest_there(plan.out))
    manifest.write(record, path)
    threading.Thread(target=lambda: list(map(import_module, COME_LAST)), daemon=True).start()
    sources = list(dict.fromkeys(map(plan.data_line, plan.experiments)))
    where = f"{context.workers.count} workers on {context.device} · results in {plan.out}/"
    print("\n".join([*sources, where]))
    seconds: dict[str, float] = {}
    tables: dict[str, dict[str, str]] = {}
    status = "interrupted"
    try:
        with Drawing() as drawing:
            for experiment in plan.experiments:
                seconds[experiment.name] = run_one(experiment, plan, tables, drawing)
            if plan.until_decided:
                plan = add_seeds(plan, seconds, tables, drawing)
                record |= {name: begin_manifest(plan)[name] for name in ("options", "experiments")}
        status = "finished"
    finally:
        record = manifest.complete(
            record,
            status=status,
            wall_seconds=seconds,
            worker_seconds=context.worked,
            tables=tables,
            other_data=context.found,
        )
        manifest.write(record, path)
    verdicts = plan.verdicts(folder.judge_all(plan.out, claims()))
    print("\n".join(["", *terminal.verdicts(verdicts, colour=terminal.in_colour(sys.stdout))]))
    reports = import_module(COMMANDS["report"]).write(plan.out)
    written = [f"wrote {file}" for file in (*drawing.files(), path, *reports)]
    print("\n".join(["", terminal.tally(verdicts), *written, *sources]))
    return verdicts, record


def run_one(experiment: Experiment, plan: Plan, tables: dict[str, dict[str, str]], drawing: Drawing) -> float:
    """Run an experiment, write what it found, judge its claims, and print all that; its figures are left to `drawing`.
    Put the checksums of its tables into `tables`, under its name. Return how many seconds it took."""
    began, worked = time.perf_counter(), plan.context.workers.processor_seconds()
    plan.context.begin()
    result = experiment.result(plan.context_of(experiment))
    paths = write(experiment, result, plan, time.perf_counter() - began)
    tables[experiment.name] = {path.name: checksums.digest(path) for path in paths}
    verdicts = folder.judge_all(plan.out, claims())
    written = [*paths, ledger.write(verdicts, plan.out)]
    drawing.begin(experiment, result, plan)
    mine = [verdict for verdict in verdicts if verdict.claim in experiment.claims]
    seconds = round(time.perf_counter() - began, 2)
    plan.context.add_work(experiment.name, plan.context.workers.processor_seconds() - worked)
    said = [f"\n{experiment.name}, {seconds:,.0f} s", *result.lines, *plan.context.diverged]
    said += terminal.verdicts(mine, colour=terminal.in_colour(sys.stdout))
    print("\n".join([*said, *(f"wrote {path}" for path in written)]))
    return seconds


def write(experiment: Experiment, result: Result, plan: Plan, seconds: float) -> list[Path]:
    """Write an experiment's tables, that of its runs included, and, with data, profile and seconds, its evidence;
    return the files."""
    runs = redo.tabulate(plan.context.asked, plan.context.measured)
    tables = redo.with_devices(result.tables, plan.context.asked)
    if len(runs):
        tables[f"{experiment.name}{redo.SUFFIX}"] = runs
    paths = folder.write_tables(plan.out, tables)
    if not experiment.claims:
        return paths
    evidence = folder.complete(
        result.evidence,
        data=plan.data_line(experiment),
        profile=plan.context.profile,
        diverged=plan.context.diverged,
        seconds=seconds,
        workers=plan.context.workers.count,
    )
    return paths + folder.write_evidence(plan.out, experiment.name, evidence)


def add_seeds(plan: Plan, seconds: dict[str, float], tables: dict[str, dict[str, str]], drawing: Drawing) -> Plan:
    """Rerun experiments with more seeds until every claim of theirs that can be decided here is. Return the plan with
    the numbers of seeds at the end."""
    while more := budget.more_seeds(plan.verdicts(folder.judge_all(plan.out, claims())), claims()):
        lines = [f"{name}: {count} seeds, to decide more" for name, count in more.items()]
        print("\n" + "\n".join(lines))
        plan = replace(plan, seeds=plan.seeds | more)
        for experiment in plan.experiments:
            if experiment.name in more:
                before = seconds.get(experiment.name, 0.0)
                seconds[experiment.name] = before + run_one(experiment, plan, tables, drawing)
    return plan


if __name__ == "__main__":
    sys.exit(main())
