"""Reproduce the experiments of "On First-Order Meta-Learning Algorithms" (Nichol, Achiam, Schulman 2018).

python reproduce.py                           all experiments, quick profile, Omniglot if it can be had
python reproduce.py theory                    the theorems alone
python reproduce.py ablation --profile paper  the learning curves of figure 3 at the paper's own scale
python reproduce.py --list                    what there is, what it shows and how long it takes
python reproduce.py --from manifest.json      the same again, compared bit by bit
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once while libraries load, which takes seconds

import contextlib
import json
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import claims, comparison, manifest, terminal
from analysis.command_line import FAILURE, Plan, alone_in, begin_manifest, guarded, parse, prepare
from analysis.experiment import Experiment, Result
from analysis.experiments import EXPERIMENTS
from analysis.runs import NUMERICS_VERSION
from analysis.tables import ResultsError, write_csv

COMMANDS = {"report": "figures.report", "demo": "figures.demo"}  # modules with a main(arguments) of their own
COME_LAST = ("scipy.special", "figures.style", COMMANDS["report"])  # needed at the end, loaded while others work


def data_line(plan: Plan, experiment: Experiment, others: Sequence[str] = ()) -> str:
    """The line under every figure: which data, and at what scale. An experiment may have data of its own, and a result
    others, as in `Result.data`."""
    data = plan.data
    what = "Omniglot" if data.real else f"NOT OMNIGLOT: {data.name}, made-up characters"
    characters, drawings = data.images.shape[:2]
    split = ", split as the authors' code does" * (plan.context.source.split == "authors")
    what = experiment.data or f"{what}, {characters:,} characters × {drawings} drawings{split}"
    what = "; ".join(what if name == data.name else name for name in others) or what
    return f"Data: {what} · profile: {plan.context.profile}"


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(reproduce, sys.argv[1:] if arguments is None else arguments)


def reproduce(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    if arguments and arguments[0] in COMMANDS:
        return int(import_module(COMMANDS[arguments[0]]).main(arguments[1:]))
    options = parse(arguments)
    if options.list:
        print(listing())
        return 0
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        plan = prepare(options)
        for line in plan.differences:
            print(f"not as in {options.again}: {line}")
        with alone_in(plan.out), plan.context.workers:
            ledger, record = run(plan)
        other = compared(plan, record) if plan.again else None
    if options.json:
        print(document(plan, ledger, record, other))
    theorems = ledger[ledger.kind == "theorem"]
    fell = options.strict and not (theorems.verdict == claims.SUPPORTED).all()
    return FAILURE if fell or other else 0


def run(plan: Plan) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Write the manifest, do the experiments and say what each found, complete the manifest. Returns the ledger of what
    was run, and the manifest."""
    path, context = plan.out / "manifest.json", plan.context
    record = begin_manifest(plan)
    manifest.write(record, path)
    threading.Thread(target=lambda: list(map(import_module, COME_LAST)), daemon=True).start()
    sources = list(dict.fromkeys(data_line(plan, experiment) for experiment in plan.experiments))
    print("\n".join([*sources, f"{context.workers.count} workers on {context.device} · results in {plan.out}/"]))
    seconds: dict[str, float] = {}
    tables: dict[str, str] = {}
    status = "interrupted"
    try:
        for experiment in plan.experiments:
            began = time.perf_counter()
            context.diverged.clear()
            result = experiment.run(context)
            paths = write_tables(experiment, result, plan)
            tables |= {path.name: comparison.digest(path) for path in paths}
            verdicts = judge(plan.out)
            written = [*paths, *claims.write_ledger(verdicts, plan.out), *draw(experiment, result, plan)]
            seconds[experiment.name] = round(time.perf_counter() - began, 2)
            mine = verdicts[verdicts.id.isin([claim.id for claim in experiment.claims])]
            title = f"\n{experiment.name}, {seconds[experiment.name]:,.0f} s"
            said = [title, *result.lines, *context.diverged, *claims.lines(mine)]
            print("\n".join([*said, *(f"wrote {path}" for path in written)]))
        status = "finished"
    finally:
        record = manifest.complete(record, status=status, wall_seconds=seconds, tables=tables, other_data=context.found)
        manifest.write(record, path)
    done = verdicts[verdicts.id.isin([claim.id for experiment in plan.experiments for claim in experiment.claims])]
    print("\n".join(["", *terminal.verdicts(done, colour=terminal.in_colour(sys.stdout))]))
    reports = import_module(COMMANDS["report"]).write(plan.out)
    print("\n".join(["", claims.counts(done), *(f"wrote {path}" for path in (path, *reports)), *sources]))
    return done, record


def write_tables(experiment: Experiment, result: Result, plan: Plan) -> list[Path]:
    """tables/NAME.csv for each of the result's, and tables/EXPERIMENT_measurements.csv for the ledger."""
    tables = dict(result.tables)
    if experiment.claims:
        own = result.measurements.get("data", pd.Series(index=result.measurements.index, dtype=object))
        data = own.fillna(data_line(plan, experiment))
        measurements = result.measurements.assign(
            data=data,
            profile=plan.context.profile,
            diverged="; ".join(plan.context.diverged) or None,
            numerics=NUMERICS_VERSION,
        )
        tables[f"{experiment.name}_measurements"] = measurements
    paths = []
    for name, table in tables.items():
        paths.append(plan.out / "tables" / f"{name}.csv")
        write_csv(table, paths[-1])
    comparison.note(paths)
    return paths


def draw(experiment: Experiment, result: Result, plan: Plan) -> list[Path]:
    """The figures of the experiment's namesake in figures/, stamped with the data they come from."""
    from figures.style import save, stamp, style

    paths = []
    with style():
        own = [] if experiment.data else result.data or [plan.data.name]
        real = plan.data.real or plan.data.name not in own
        figures = import_module(f"figures.{experiment.name}").draw(result.tables, experiment.settings(plan.context))
        for name, figure in figures.items():
            stamp(figure, data_line(plan, experiment, result.data), real=real)
            paths += save(figure, plan.out / "figures", name, experiment=experiment.name)
    return paths


def judge(out: Path) -> pd.DataFrame:
    """The ledger of all claims from every measurement in the output folder, of this invocation or an earlier one.

    What is not as it was written is named and not judged.
    """
    every = [claim for experiment in EXPERIMENTS.values() for claim in experiment.claims]
    found = [claims.NO_MEASUREMENTS]
    for name in EXPERIMENTS:
        path = out / "tables" / f"{name}_measurements.csv"
        try:
            found += [comparison.measurements(path)] if path.exists() else []
        except ResultsError as error:
            warnings.warn(f"{error}; it is left as it is and not judged; {name} writes it anew", stacklevel=2)
    return claims.ledger(every, pd.concat(found))


def compared(plan: Plan, record: dict[str, Any]) -> list[str]:
    """Lines that name the tables which are not those of the manifest that was run again."""
    assert plan.again is not None and plan.beside is not None
    then = plan.again.get("tables", {})
    lines = comparison.against(then, plan.beside / "tables", plan.out / "tables", record["tables"])
    lines += manifest.differences(plan.again.get("other_data", {}), record["other_data"], "other data")
    same = sum(record["tables"].get(name) == digest for name, digest in then.items())
    print("\n".join(["", f"{same} of {len(then)} tables are the same, bit for bit", *lines]))
    return lines


def document(plan: Plan, ledger: pd.DataFrame, record: dict[str, Any], other: list[str] | None) -> str:
    """The summary for other programs, as JSON. differences: None where nothing was to be compared."""
    verdicts = json.loads(ledger.to_json(orient="records", double_precision=15))  # which knows no NaN
    return json.dumps(
        {"out": str(plan.out), "manifest": record, "claims": verdicts, "differences": other},
        indent=2,
        ensure_ascii=False,
    )


def listing() -> str:
    lines = []
    for name, experiment in EXPERIMENTS.items():
        takes = ", ".join(f"{duration} ({profile})" for profile, duration in experiment.takes.items())
        lines += [name, f"    shows {experiment.shows}", f"    takes {takes}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
