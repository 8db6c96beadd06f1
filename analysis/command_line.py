"""The command line: what may be asked for, checked whole before any work, and how every end is told in one line."""

import argparse
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from filelock import FileLock, Timeout

from analysis import manifest
from analysis.claims import PROFILES
from analysis.experiment import Context, Experiment
from analysis.experiments import EXPERIMENTS
from analysis.experiments.few_shot_benchmarks import CELLS
from analysis.manifest import ManifestError
from analysis.runs import DEVICES, Source
from analysis.tables import ResultsError
from analysis.workers import ClusterError, Workers, available_cores
from reptile_core import datasets
from reptile_core.checkpoints import CheckpointError
from reptile_core.datasets.split import SPLITS
from reptile_core.files import remove_unfinished

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130  # as shells and argparse have them
# Far above any use, far below what would fill a memory.
MOST = {"seeds": 1000, "workers": 1000, "iterations": 10**8, "tail_shots": 1000}

DESCRIPTION = """\
Check the claims of "On First-Order Meta-Learning Algorithms" (Nichol, Achiam, Schulman 2018) by running them.

An experiment computes tables, judges claims by criteria fixed before, each beside a control that has to fail, and draws
figures. All of it goes to results/PROFILE/: report.html first, then figures/, tables/ and manifest.json. A run may be
interrupted at any moment; the same command goes on where it stood, to the same bits."""

EXAMPLES = """\
examples:
  python reproduce.py                           all experiments, quick profile, Omniglot if it can be had
  python reproduce.py --list                    what there is, what it shows and how long it takes
  python reproduce.py theory --strict           the theorems alone: no data, about a minute
  python reproduce.py ablation --profile paper  the learning curves of figure 3 at the paper's own scale
  python reproduce.py --from manifest.json      the same again, compared bit by bit with the tables of then
  python reproduce.py theory --json | jq        claims and verdicts for another program
  python reproduce.py report                    the report anew from what is there; --out DIR for another folder
  python reproduce.py demo                      draw three things in a browser and see them learnt; demo --help

exit codes: 0 done; 1 a fault, or not what --strict or --from asked for; 2 told before any work; 130 interrupted"""


class UsageError(ValueError):
    """Something that the user can put right, told in one line before any work."""


@dataclass(frozen=True)
class Plan:
    """What the user asked for, checked: which experiments, where results go, the data and what each is given.

    again, beside: the manifest that is run again and the folder it lies in, if so; differences: lines that say where
    the code, the libraries or the machine are not those of then.
    """

    experiments: tuple[Experiment, ...]
    out: Path
    data: datasets.Characters
    context: Context
    again: dict[str, Any] | None = None
    beside: Path | None = None
    differences: Sequence[str] = ()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (--help tells more)\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options as they were given; None where one was not."""
    parser = _Parser(
        prog="reproduce.py",
        usage="python reproduce.py [EXPERIMENT ...] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help=f"which ones: {', '.join(EXPERIMENTS)} (default: all)"
    )
    what.add_argument(
        "--profile",
        choices=PROFILES,
        help="how much: smoke checks that all works, in two minutes; quick is a first look, in five to twelve; paper "
        "is the paper's scale, in hours to days (default: quick)",
    )
    what.add_argument("--seeds", type=int, metavar="N", help="seeds 0 … N-1; done ones are reused (default: profile's)")
    what.add_argument("--cells", nargs="+", metavar="CELL", help="of few_shot: omniglot-5way, cifar-fs-reptile … (all)")
    what.add_argument("--iterations", type=int, metavar="N", help="of few_shot: meta-iterations (default: profile's)")
    what.add_argument(
        "--tail-shots",
        type=int,
        metavar="N",
        help="of few_shot: how many of a task's examples a class FOMAML and MAML keep for their last minibatch "
        "(default: as many as any minibatch has)",
    )
    what.add_argument("--fresh", action="store_true", help="do finished runs anew")
    what.add_argument(
        "--from",
        dest="again",
        type=Path,
        metavar="MANIFEST",
        help="run what a manifest.json describes and compare the tables bit by bit; exit code 1 where they differ",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with the Omniglot zips or an omniglot/ of them, and others'"
    )
    data.add_argument(
        "--dataset",
        choices=("auto", "omniglot", "glyphs"),
        help="auto takes Omniglot if it can be had, else made-up glyphs and says so (default: auto)",
    )
    data.add_argument(
        "--split",
        choices=SPLITS,
        help="which of Omniglot's characters train: drawn anew by each seed, or those of the authors' code "
        "(default: seed)",
    )
    where = parser.add_argument_group("where and how")
    where.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: results/PROFILE)")
    where.add_argument(
        "--device",
        choices=("auto", *DEVICES),
        help="auto takes a GPU if there is one; cuda-tf32 multiplies there with 10 bits of mantissa (default: auto)",
    )
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes of one thread each; changes no bit (default: one a core)"
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="work on the Dask cluster of this scheduler; changes no bit either"
    )
    tell = parser.add_argument_group("what is said")
    tell.add_argument("--quiet", action="store_true", help="no progress bars (nor are there any but on a terminal)")
    tell.add_argument(
        "--json", action="store_true", help="a summary as one JSON document on stdout, the rest on stderr"
    )
    tell.add_argument("--strict", action="store_true", help="exit with 1 unless every theorem is supported")
    tell.add_argument("--list", action="store_true", help="name the experiments and stop")
    tell.add_argument("--debug", action="store_true", help="tracebacks of errors, for who looks for their cause")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> Plan:
    """Check everything that can be checked before work starts. UsageError or ManifestError, one line each."""
    again = None if options.again is None else manifest.read(options.again)
    asked = _asked(options, again)
    _check(options, asked)
    out = options.out or Path("results") / (f"again-{manifest.digest(again)[:8]}" if again else asked["profile"])
    _check_writable(out)
    try:
        data = datasets.load(asked["dataset"], data=options.data, quiet=options.quiet)
    except datasets.DataError as error:
        raise UsageError(str(error)) from error
    if asked["split"] == "authors" and not data.real:
        raise UsageError(f"--split: expected Omniglot for the authors' split, found {data.name}")
    cuda = asked["device"].startswith("cuda") or (asked["device"] == "auto" and torch.cuda.is_available())
    context = Context(
        profile=asked["profile"],
        source=Source(data.name, options.data and options.data.absolute(), data.content, data.real, asked["split"]),
        workers=_workers(options, out.absolute(), cuda=cuda),
        runs=out.absolute() / "runs",
        seeds=asked["seeds"],
        cells=tuple(asked["cells"]),
        iterations=asked["iterations"],
        tail_shots=asked["tail_shots"],
        device="cuda" if cuda else "cpu",
        tf32=asked["device"] == "cuda-tf32",
        fresh=options.fresh,
    )
    names = dict.fromkeys(asked["experiments"] or EXPERIMENTS)
    plan = Plan(tuple(EXPERIMENTS[name] for name in names), out, data, context)
    return plan if again is None else _run_again(plan, again, options.again)


def _workers(options: argparse.Namespace, out: Path, *, cuda: bool) -> Workers:
    """Processes of this machine, or the workers of a cluster; UsageError if that is not there or not as it must be."""
    if options.scheduler is None:
        return Workers(options.workers or (1 if cuda else available_cores()), quiet=options.quiet)
    if options.workers is not None:
        raise UsageError("--workers: expected none beside --scheduler, whose workers are taken as they are")
    try:
        from analysis.scheduler import ClusterWorkers
    except ImportError as error:
        raise UsageError(f"--scheduler: expected the package distributed ({error}); pip install distributed") from error
    try:
        return ClusterWorkers(options.scheduler, out, quiet=options.quiet)
    except ClusterError as error:
        raise UsageError(f"--scheduler: {error}") from error


def begin_manifest(plan: Plan) -> dict[str, Any]:
    """The manifest of a plan before work."""
    context = plan.context
    return manifest.begin(
        command=sys.argv,
        profile=context.profile,
        options={
            "seeds": context.seeds,
            "cells": list(context.cells),
            "iterations": context.iterations,
            "tail_shots": context.tail_shots,
            "device": context.device_name,
            "split": context.source.split,
        },
        experiments={experiment.name: experiment.settings(context) for experiment in plan.experiments},
        data=plan.data,
        device=context.device,
        workers=context.workers.count,
    )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Nobody else writes to the output folder meanwhile; UsageError if somebody does. What killed writers left there is
    removed."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"--out: expected a folder that no other run writes to, found {folder} in use by "
            f"{manifest.holder(folder / 'manifest.json')}; wait for it, or name another folder"
        ) from None
    try:
        remove_unfinished(folder)
        yield
    finally:
        lock.release()


def guarded(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """main(arguments), its every end told: one line for whatever went wrong, and an exit code; no traceback but by
    --debug."""
    warnings.formatwarning = lambda message, *_, **__: f"reproduce.py: warning: {' '.join(str(message).split())}\n"
    debug = "--debug" in arguments
    try:
        with _terminable():
            return main(arguments)
    except KeyboardInterrupt:
        command = shlex.join(["python", "reproduce.py", *arguments])
        print(f"\nInterrupted. What is done is kept; to go on: {command}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - else the interpreter complains once more as it ends
        return FAILURE
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _told(error)
        print(f"reproduce.py: error: {' '.join(line.split())}", file=sys.stderr)
        return code


def _told(error: Exception) -> tuple[int, str]:
    """Exit code and line of an error."""
    goes_on = "what is done is kept; the same command goes on"
    match error:
        case UsageError() | ManifestError():
            return USAGE_ERROR, str(error)
        case datasets.DataError():
            return FAILURE, str(error)
        case CheckpointError() | ResultsError():
            return FAILURE, f"{error}. It is left as it is; move it away, and the same command does it anew"
        case BrokenProcessPool():
            return FAILURE, f"a worker process died (out of memory, or killed); {goes_on}"
        case ClusterError():
            return FAILURE, f"{error}; {goes_on}"
        case OSError():
            name = f"{error.filename}: " if error.filename else ""
            return FAILURE, f"{name}{error.strerror or error}; {goes_on} once that is put right"
        case MemoryError():
            return FAILURE, f"out of memory; {goes_on}, with fewer --workers"
    return FAILURE, f"unexpected {type(error).__name__}: {error}; --debug shows where ({goes_on})"


@contextmanager
def _terminable() -> Iterator[None]:
    """What asks a process to end (kill, a batch system's limit) is an interrupt like Ctrl-C, which raises as ever."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]  # as nohup does
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked(options: argparse.Namespace, again: dict[str, Any] | None) -> dict[str, Any]:
    """What decides the numbers: from the manifest, or else from the options and their defaults."""
    given = {
        "profile": options.profile,
        "experiments": options.experiments or None,
        "seeds": options.seeds,
        "cells": options.cells,
        "iterations": options.iterations,
        "tail_shots": options.tail_shots,
        "dataset": options.dataset,
        "device": options.device,
        "split": options.split,
    }
    if again is None:
        defaults: dict[str, Any] = {"profile": "quick", "dataset": "auto", "split": SPLITS[0], "device": "auto"}
        defaults |= {"experiments": [], "cells": []}
        return {name: defaults.get(name) if value is None else value for name, value in given.items()}
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--from: expected no {name} beside it, since the manifest says which, found {value!r}")
    return again["options"] | {
        "profile": again["profile"],
        "experiments": list(again["experiments"]),
        "dataset": again["data"]["name"],
    }


def _check(options: argparse.Namespace, asked: dict[str, Any]) -> None:
    for name in asked["experiments"]:
        if name not in EXPERIMENTS:
            raise UsageError(f"EXPERIMENT: expected one of {', '.join(EXPERIMENTS)}, found {name!r}")
    for name, most in MOST.items():
        value = options.workers if name == "workers" else asked[name]
        if value is not None and not 1 <= value <= most:
            limit = "at least 1" if value < 1 else f"at most {most}"
            raise UsageError(f"--{name.replace('_', '-')}: expected {limit}, found {value}")
    for cell in asked["cells"]:
        if not cell or not any(name.startswith(cell) for name in CELLS):
            raise UsageError(f"--cells: expected beginnings of {', '.join(CELLS)}, found {cell!r}")
    if asked["device"].startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device: expected a CUDA device for {asked['device']}, found none that torch can use")


def _run_again(plan: Plan, again: dict[str, Any], path: Path) -> Plan:
    """The plan with what it is compared to; UsageError where it would not be the same work."""
    now = begin_manifest(plan)
    work = list(manifest.differences(manifest.work(again), manifest.work(now)))
    if work:
        commit = (again["commit"] or {}).get("sha", "unknown")
        more = f" (and {len(work) - 1} more)" if len(work) > 1 else ""
        raise UsageError(
            f"--from {path}: expected the work of today's code (its commit: {commit}), found {work[0]}{more}"
        )
    around = manifest.differences(manifest.surroundings(again), manifest.surroundings(now))
    return replace(plan, again=again, beside=path.parent, differences=tuple(around))


def _check_writable(out: Path) -> None:
    if out == Path():  # what an unset variable of a shell makes of --out "$X"
        raise UsageError("--out: expected the name of a folder, found none")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out: expected a folder that can be written, found {str(out)!r} ({reason})") from error
