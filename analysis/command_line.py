"""Command line of the program: its options and their help."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from analysis import program
from analysis.ending import USAGE_ERROR
from analysis.experiments.registry import EXPERIMENTS, takers
from analysis.experiments.shared import claim_seeds, own_variants
from analysis.results.claims import PROFILES
from analysis.runs.job import DEVICES
from reptile_core.datasets.split import SPLIT_KINDS

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

DESCRIPTION = """\
Check the claims of "On First-Order Meta-Learning Algorithms" (Nichol, Achiam, Schulman 2018) by
running them.

An experiment computes tables and draws figures. Its claims are judged from them, over seeds, each
with a control that must fail. Everything goes to results/PROFILE/: report.html first, then
claims.json, figures/, tables/ and manifest.json. A run may be interrupted at any moment; the same
command resumes it, to the same bits."""

EXAMPLES = """\
examples:
  python reproduce.py
      all experiments, quick profile, on Omniglot where it can be downloaded
  python reproduce.py --list
      the experiments, what each shows and how long it takes
  python reproduce.py theory --strict
      the theorems alone: about a minute and a half
  python reproduce.py --budget 30m
      spend half an hour where it decides most
  python reproduce.py --until-decided
      add seeds until every claim that can be decided here is
  python reproduce.py ablation --profile paper
      the learning curves of figure 3 at the paper's own scale
  python reproduce.py few_shot --profile paper --dry-run
      what that would train, what is there already, and hours for the rest
  python reproduce.py --from manifest.json
      rerun a manifest and compare its tables bit by bit
  python reproduce.py sine --from manifest.json
      rerun one experiment of it
  python reproduce.py --from manifest.json --only "ablation/g1+g2/3000"
      rerun one training run of it
  python reproduce.py theory --json | jq
      claims and verdicts for another program
  python reproduce.py report
      rebuild the report from existing results; --out DIR for another folder
  python reproduce.py publish results/quick
      tables, figures and ledger as a page to show
  python reproduce.py demo
      draw three things in a browser and see them learnt; demo --help

exit codes:
  0    done
  1    a fault, or not what --strict or --from asked for
  2    invalid arguments
  130  interrupted"""


Group = argparse._ArgumentGroup


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (--help tells more)\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options as given; those that were not given are None."""
    parser = _Parser(
        prog=program.name(),
        usage=f"{program.command()} [EXPERIMENT ...] [options]",
        description=DESCRIPTION,
        epilog=program.as_called(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    _add_scale(what)
    _add_of_experiments(what)
    add_own(what)
    _add_reruns(what)
    _add_data(parser.add_argument_group("data"))
    _add_where(parser.add_argument_group("where and how"))
    _add_output(parser.add_argument_group("output"))
    return parser.parse_args(arguments)


def _add_scale(what: Group) -> None:
    """Add which experiments run, at which scale and over how many seeds."""
    what.add_argument(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        help=f"which ones: {', '.join(EXPERIMENTS)} (default: all)",
    )
    what.add_argument(
        "--profile",
        choices=PROFILES,
        help=(
            "scale: smoke checks the installation, in two minutes; quick decides most claims, in "
            "20 to 25; paper is the paper's scale, in hours to days (default: quick)"
        ),
    )
    what.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="how many; finished ones are reused (default: profile's)",
    )
    what.add_argument(
        "--epoch",
        type=int,
        metavar="N",
        help=(
            "which seeds: 1000 N, 1000 N + 1, …; another epoch is an independent replication "
            "(default: the claims')"
        ),
    )
    what.add_argument(
        "--budget",
        type=seconds,
        metavar="TIME",
        help=(
            "choose experiments and seeds that decide most claims in this time (30m, 2h), by the "
            "means, spreads and costs of an earlier run"
        ),
    )
    what.add_argument(
        "--until-decided",
        action="store_true",
        help=(
            "add seeds until every claim that can be decided here is, and say what the rest would "
            "cost"
        ),
    )


def _add_of_experiments(what: Group) -> None:
    """Add the options that only some experiments take."""
    what.add_argument(
        "--cells",
        nargs="+",
        metavar="CELL",
        help=f"{_only('cells')} omniglot-5way, cifar-fs-reptile, … (default: all)",
    )
    what.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help=f"{_only('iterations')} meta-iterations (default: profile's)",
    )
    what.add_argument(
        "--seeds-for",
        action="append",
        type=claim_seeds.parse,
        metavar="CLAIM=N",
        help=f"{_only('seeds_for')} seeds of the runs that one claim compares, where it takes more "
        "to decide it; may be given again",
    )
    what.add_argument(
        "--tail-shots",
        type=int,
        metavar="N",
        help=f"{_only('tail_shots')} examples a class in the last minibatch of FOMAML and MAML "
        "(default: as many as in the other minibatches)",
    )


def _add_reruns(what: Group) -> None:
    """Add the options that redo earlier runs, and the one that runs nothing."""
    what.add_argument("--fresh", action="store_true", help="redo finished runs")
    what.add_argument(
        "--from",
        dest="again",
        type=Path,
        metavar="MANIFEST",
        help=(
            "rerun a manifest.json, or the experiments of it that are named, and compare the "
            "tables bit by bit; exit code 1 where they differ"
        ),
    )
    what.add_argument(
        "--only",
        metavar="RUN",
        help=(
            "(with --from) redo one training run and compare its parameters and accuracies bit by "
            "bit, or to a tolerance on another kind of processor. RUN is EXPERIMENT/VARIANT/SEED, "
            "as the tables EXPERIMENT_runs.csv next to the manifest name it"
        ),
    )
    what.add_argument(
        "--dry-run",
        action="store_true",
        help=(
            "list the runs and evaluations needed, how many already exist, and the estimated hours "
            "for the rest; run nothing"
        ),
    )


def _add_data(data: Group) -> None:
    data.add_argument(
        "--data", type=Path, metavar="DIR", help="directory that holds the data sets (see README)"
    )
    data.add_argument(
        "--dataset",
        choices=("auto", "omniglot", "glyphs"),
        help=(
            "auto: Omniglot if it can be had, else synthetic glyphs, which every output names "
            "(default: auto)"
        ),
    )
    data.add_argument(
        "--split",
        choices=SPLIT_KINDS,
        help=(
            "which of Omniglot's characters train: drawn by each seed, or those of the authors' "
            "code (default: seed)"
        ),
    )


def _add_where(where: Group) -> None:
    where.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go (default: results/PROFILE)"
    )
    where.add_argument(
        "--device",
        choices=("auto", *DEVICES),
        help=(
            "auto takes a GPU if there is one; cuda-tf32 multiplies there with 10 bits of mantissa "
            "(default: auto)"
        ),
    )
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes of one thread each; changes no bit (default: one per core, one with a GPU)",
    )
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="use the Dask cluster of this scheduler; changes no bit",
    )


def _add_output(output: Group) -> None:
    output.add_argument("--quiet", action="store_true", help="show no progress")
    output.add_argument(
        "--json",
        action="store_true",
        help="a summary as one JSON document on stdout, the rest on stderr",
    )
    output.add_argument(
        "--strict", action="store_true", help="exit with 1 unless every theorem is supported"
    )
    output.add_argument("--list", action="store_true", help="name the experiments and stop")
    output.add_argument("--debug", action="store_true", help="show full tracebacks")


def listing() -> str:
    """Return the experiments, what each shows and how long it takes."""
    lines = []
    for name, experiment in EXPERIMENTS.items():
        takes = [f"{duration} ({profile})" for profile, duration in experiment.takes.items()]
        lines += [name, f"    shows {experiment.shows}", f"    takes {', '.join(takes)}"]
    return "\n".join(lines)


def _only(option: str) -> str:
    """Return which experiments take an option, for its help."""
    return f"({', '.join(takers(option))} only)"


def add_own(group: Group) -> None:
    """Add the options that bring something of the user's own."""
    group.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        type=Path,
        metavar="FILE",
        help=(
            "a Python file with an experiment and claims of your own (see analysis/README.md); may "
            "be given again"
        ),
    )
    group.add_argument(
        "--variant",
        dest="variants",
        action="append",
        type=own_variants.parse,
        metavar="NAME=W1,…,WK",
        help=(
            f"{_only('variants')} a sum of inner gradients of your own, by its weights, next to "
            "figure 3's: a curve without a verdict, such as 'mine=0,0,1,1'; may be given again"
        ),
    )


def seconds(text: str) -> float:
    """Return the seconds of a duration such as 90s, 30m, 2h or 1d.

    Raises argparse.ArgumentTypeError where the text is no such duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(
            f"expected a duration such as 90s, 30m, 2h or 1d, found {text!r}"
        )
    return float(found[1]) * UNITS[found[2]]
