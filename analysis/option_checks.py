"""Checks of what the user asks for, before any work. Each refusal is a UsageError of one line."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from analysis import budget
from analysis.ending import UsageError
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared import own_variants
from analysis.experiments.shared.experiment import OPTIONS, Experiment, claims_of
from analysis.paper.benchmarks import CELLS
from analysis.plan import Plan
from analysis.request import Request

# (lowest, highest): the highest is far above any use, and far below what would fill memory.
LIMITS = {
    "seeds": (1, 1_000), "epoch": (0, 10**6), "workers": (1, 1_000), "iterations": (1, 10**8),
    "tail_shots": (1, 1_000),
}  # fmt: skip


def check(options: argparse.Namespace, request: Request) -> None:
    """Refuse what no plan could carry out, in the options or in the request made of them."""
    for name in request.experiments:
        if name not in EXPERIMENTS:
            raise UsageError(
                f"EXPERIMENT: expected one of {', '.join(EXPERIMENTS)}, found {name!r}"
            )
    for name in LIMITS:
        check_limit(name, options.workers if name == "workers" else getattr(request, name))
    if options.budget is not None and options.seeds is not None:
        raise UsageError(
            f"--budget: expected no --seeds with it, which it chooses, found {options.seeds}"
        )
    if options.budget is not None:
        budget.check_measured(request.experiments)
    if options.budget is not None and options.until_decided:
        raise UsageError("--budget: expected no --until-decided with it, which knows no limit")
    if options.budget is not None and options.epoch == budget.PILOT_EPOCH:
        raise UsageError(
            f"--epoch: expected another than {budget.PILOT_EPOCH} with --budget: its seeds chose "
            "what to run"
        )
    if options.budget is not None and (options.profile or "quick") != "quick":
        raise UsageError(
            f"--budget: expected the quick profile, which it plans for, found {options.profile}"
        )
    for cell in request.cells:
        if not cell or not any(name.startswith(cell) for name in CELLS):
            raise UsageError(f"--cells: expected beginnings of {', '.join(CELLS)}, found {cell!r}")
    try:
        own_variants.check(request.variants)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if request.names_cuda and not torch.cuda.is_available():
        raise UsageError(
            f"--device: expected a CUDA device for {request.device}, found none that torch can use"
        )


def check_limit(name: str, value: object) -> None:
    """Refuse a number outside its LIMITS; what is no number has none."""
    least, most = LIMITS[name]
    if isinstance(value, int) and not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise UsageError(f"--{name.replace('_', '-')}: expected {limit}, found {value}")


def check_taken(
    options: argparse.Namespace, given: Mapping[str, Any], experiments: Sequence[Experiment]
) -> None:
    """Refuse options that would decide nothing, and more iterations than an experiment has."""
    found = ", ".join(experiment.name for experiment in experiments)
    for name in given:
        if not any(name in experiment.taken(given) for experiment in experiments):
            takes = ", ".join(one.name for one in EXPERIMENTS.values() if name in one.taken(given))
            raise UsageError(
                f"{OPTIONS[name]}: expected an experiment that takes it ({takes}), found {found}"
            )
    for experiment in experiments:
        iterations, most = given.get("iterations", 0), experiment.most_iterations
        if most is not None and iterations > most:
            raise UsageError(
                f"--iterations: expected at most the {most:,} of {experiment.name}, found "
                f"{iterations}"
            )
    if options.split is not None and all(experiment.data is not None for experiment in experiments):
        raise UsageError(f"--split: expected an experiment on images of characters, found {found}")
    kinds = {claim.kind for claim in claims_of(experiments)}
    for flag, value in (("--seeds", options.seeds), ("--epoch", options.epoch)):
        if value is not None and kinds == {"theorem"}:
            raise UsageError(f"{flag}: expected an experiment that has seeds, found {found}")
    if options.strict and kinds == {"experiment"}:
        raise UsageError(f"--strict: expected an experiment with theorems, found {found}")


def check_seeds_for(plan: Plan) -> None:
    """Refuse seeds for a claim that cannot have its own, and too few or too many of them."""
    for claim, count in plan.options.get("seeds_for", {}).items():
        owner = next((one for one in plan.experiments if claim in one.compares), None)
        if owner is None:
            known = ", ".join(name for one in plan.experiments for name in one.compares)
            raise UsageError(f"--seeds-for: expected one of {known or 'none'}, found {claim!r}")
        context = plan.context_of(owner)
        least = len(context.seeds_of(owner.scales[context.profile].seeds)) + 1
        most = LIMITS["seeds"][1]
        if not least <= count <= most:
            raise UsageError(
                f"--seeds-for: expected {least} to {most} seeds for {claim}, as all of "
                f"{owner.name} has {least - 1}, found {count}"
            )


def check_other_folder(out: Path, again: Path) -> None:
    """Refuse the folder of the manifest that is rerun: its runs would be read and not rerun."""
    if out.resolve() == again.parent.resolve():
        raise UsageError(f"--out: expected another folder than the manifest's, found {out}")


def check_writable(out: Path) -> None:
    """Make an output folder and refuse one that cannot be written."""
    if out == Path():  # what an unset variable of a shell makes of --out "$X"
        raise UsageError("--out: expected the name of a folder, found none")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--out: expected a folder that can be written, found {str(out)!r} ({reason})"
        ) from error
