"""From options to a plan: everything that can be checked is checked before any work."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from analysis import budget
from analysis.ending import UsageError
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared import own_variants
from analysis.experiments.shared.experiment import OPTIONS, Context, Experiment, claims_of
from analysis.paper.benchmarks import CELLS
from analysis.plan import NO_IMAGES, Plan, begin_manifest
from analysis.results import manifest, manifest_records, rerun
from analysis.results.manifest import ManifestError
from analysis.runs.job import Source
from analysis.runs.workers import ClusterError, Workers, available_cores
from reptile_core import datasets
from reptile_core.datasets.split import SPLIT_KINDS, SplitKind

# (lowest, highest): the highest is far above any use, and far below what would fill memory.
LIMITS = {
    "seeds": (1, 1_000), "epoch": (0, 10**6), "workers": (1, 1_000), "iterations": (1, 10**8),
    "tail_shots": (1, 1_000),
}  # fmt: skip
# What a manifest says of options that were not given, where it says anything.
NOT_GIVEN: dict[str, Any] = {"cells": [], "iterations": None, "tail_shots": None}


def plans(options: argparse.Namespace) -> list[Plan]:
    """Return the plans to carry out: one, or with --from one for each command of the manifest.

    Raises UsageError or ManifestError, one line each, before any work.
    """
    if options.again is None:
        return [prepare(options)]
    whole = manifest.read(options.again)
    try:
        records = manifest_records.commands(whole, options.experiments)
    except ManifestError as error:
        raise UsageError(f"--from {options.again}: {error}") from error
    if not records:
        raise UsageError(
            f"--from {options.again}: expected a manifest of at least one experiment, found none"
        )
    options.out = options.out or Path("results") / f"again-{manifest.digest(whole)[:8]}"
    check_other_folder(options.out, options.again)
    return [prepare(options, record) for record in records]


def check_other_folder(out: Path, again: Path) -> None:
    """Refuse the folder of the manifest that is rerun: its runs would be read and not rerun."""
    if out.resolve() == again.parent.resolve():
        raise UsageError(f"--out: expected another folder than the manifest's, found {out}")


def prepare(options: argparse.Namespace, again: dict[str, Any] | None = None) -> Plan:
    """Check everything that can be checked before work starts, and return the plan.

    again: the record of a manifest's command to rerun.
    Raises UsageError or ManifestError, one line each.
    """
    asked = _asked(options, again)
    _check(options, asked)
    if again is not None:
        again = _with_own_options(again)
        asked = _asked(options, again)
    names = _chosen(asked, everything=options.budget is not None)
    given = {name: asked[name] for name in OPTIONS if asked[name]}
    _check_taken(options, given, [EXPERIMENTS[name] for name in names])
    out = options.out or _default_folder(asked)
    check_writable(out)
    data = _images(options, asked, [EXPERIMENTS[name] for name in names])
    cuda = asked["device"].startswith("cuda") or (
        asked["device"] == "auto" and torch.cuda.is_available()
    )
    epoch = asked["epoch"]
    if options.budget is not None and epoch is None:
        epoch = budget.EPOCH
    workers = _workers(options, out.absolute(), cuda=cuda)
    context = Context(
        profile=asked["profile"],
        source=_source(data, options.data and options.data.absolute(), asked["split"]),
        workers=workers,
        runs=out.absolute() / "runs",
        seeds=asked["seeds"] if isinstance(asked["seeds"], int) else None,
        epoch=epoch,
        device="cuda" if cuda else "cpu",
        tf32=asked["device"] == "cuda-tf32",
        fresh=options.fresh,
    )
    seeds = asked["seeds"] if isinstance(asked["seeds"], dict) else {}
    with ExitStack() as refused:
        refused.push(workers)  # a refusal leaves no connection to a cluster open
        if options.budget is not None:
            seeds = budget.choose(names, options.budget, workers=workers.count)
            names = [name for name in names if name in seeds]
            _check_taken(options, given, [EXPERIMENTS[name] for name in names])
        chosen = tuple(EXPERIMENTS[name] for name in names)
        plan = Plan(chosen, out, data, context, given, seeds, until_decided=options.until_decided)
        _check_seeds_for(plan)
        if again is not None:
            plan = _rerun(plan, again, options.again)
        refused.pop_all()
    return plan


def _default_folder(asked: dict[str, Any]) -> Path:
    """Return the folder where results go by default.

    The user's own variants get a folder of their own, as they change the tables.
    """
    own = [variant.name for variant in asked["variants"]]
    return Path("results") / "-".join([asked["profile"], *own])


def _chosen(asked: dict[str, Any], *, everything: bool) -> list[str]:
    """Return the names of the experiments to run.

    These are those asked for. By default they are those of the profile, or all where `everything`,
    since a budget may choose from all.
    """
    profile = asked["profile"]
    by_default = [
        name for name, one in EXPERIMENTS.items() if everything or profile in one.profiles
    ]
    return list(dict.fromkeys(asked["experiments"] or by_default))


def _images(
    options: argparse.Namespace, asked: dict[str, Any], experiments: Sequence[Experiment]
) -> datasets.Characters | None:
    """Load the images that tasks are made of; None where no experiment needs any.

    Raises UsageError if they are not there.
    """
    needing = [experiment for experiment in experiments if experiment.data is None]
    if not needing and (options.again is None or asked["dataset"] is None):
        return None
    fetch = asked["dataset"] == "omniglot" or any(experiment.fetches for experiment in needing)
    try:
        data = datasets.load(
            asked["dataset"] or "auto", data=options.data, fetch=fetch, quiet=options.quiet
        )
    except datasets.DataError as error:
        raise UsageError(str(error)) from error
    if asked["split"] == "authors" and not data.real:
        raise UsageError(f"--split: expected Omniglot for the authors' split, found {data.name}")
    return data


def _source(data: datasets.Characters | None, directory: Path | None, split: SplitKind) -> Source:
    """Return how workers find the images.

    Where there are none, the source finds nothing but other data.
    """
    if data is None:
        return Source(NO_IMAGES, directory, content="")
    return Source(data.name, directory, data.content, data.real, split)


def _workers(options: argparse.Namespace, out: Path, *, cuda: bool) -> Workers:
    """Return processes of this machine, or the workers of a cluster.

    Raises UsageError where the cluster cannot be reached or used.
    """
    if options.scheduler is None:
        return Workers(options.workers or (1 if cuda else available_cores()), quiet=options.quiet)
    if options.workers is not None:
        raise UsageError(
            "--workers: expected none with --scheduler, whose workers are taken as they are"
        )
    try:
        from analysis.runs.cluster import ClusterWorkers
    except ImportError as error:
        raise UsageError(
            f"--scheduler: expected the package distributed ({error}); pip install distributed"
        ) from error
    try:
        return ClusterWorkers(options.scheduler, out, quiet=options.quiet)
    except ClusterError as error:
        raise UsageError(f"--scheduler: {error}") from error


def _asked(options: argparse.Namespace, again: dict[str, Any] | None) -> dict[str, Any]:
    """Return the settings that decide the numbers.

    They come from the manifest to rerun, or else from the options and their defaults.
    """
    given = {
        "profile": options.profile,
        "experiments": options.experiments or None,
        "seeds": options.seeds,
        "epoch": options.epoch,
        "cells": options.cells,
        "iterations": options.iterations,
        "tail_shots": options.tail_shots,
        "variants": options.variants,
        "seeds_for": options.seeds_for and dict(options.seeds_for),
        "dataset": options.dataset,
        "device": options.device,
        "split": options.split,
    }
    if again is None:
        defaults: dict[str, Any] = {
            "profile": "quick",
            "dataset": "auto",
            "split": SPLIT_KINDS[0],
            "device": "auto",
            "experiments": [],
            "cells": [],
            "variants": [],
            "seeds_for": {},
        }
        said = {name: value for name, value in given.items() if value is not None}
        return dict.fromkeys(given) | defaults | said
    given |= {"budget": options.budget, "until_decided": options.until_decided or None}
    for name, value in given.items():
        if value is not None and name != "experiments":
            flag = OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise UsageError(f"--from: expected no {flag} with it, since the manifest says which")
    try:
        variants = [own_variants.parse(text) for text in again["options"].get("variants", [])]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--from {options.again}: options.variants: {error}") from error
    return again["options"] | {
        "variants": variants,
        "profile": again["profile"],
        "experiments": list(again["experiments"]),
        "seeds_for": again["options"].get("seeds_for", {}),
        "dataset": again["data"] and again["data"]["name"],
    }


def _with_own_options(record: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's command with only those options that its experiments take.

    The command may have run further experiments, which took the others.
    """
    mine = [EXPERIMENTS[name] for name in record["experiments"]]
    options = dict(record["options"])
    options["seeds"] = options["seeds"] or None  # {}: nobody chose a number for any of them
    for name in OPTIONS:
        if name in options and not any(name in one.options for one in mine):
            del options[name]
    for_claims = options.pop("seeds_for", {})
    claims = {id: n for id, n in for_claims.items() if any(id in one.compares for one in mine)}
    if claims:
        options["seeds_for"] = claims
    return record | {"options": NOT_GIVEN | options}


def _check_seeds_for(plan: Plan) -> None:
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


def _check(options: argparse.Namespace, asked: dict[str, Any]) -> None:
    for name in asked["experiments"]:
        if name not in EXPERIMENTS:
            raise UsageError(
                f"EXPERIMENT: expected one of {', '.join(EXPERIMENTS)}, found {name!r}"
            )
    for name in LIMITS:
        check_limit(name, options.workers if name == "workers" else asked[name])
    if options.budget is not None and options.seeds is not None:
        raise UsageError(
            f"--budget: expected no --seeds with it, which it chooses, found {options.seeds}"
        )
    if options.budget is not None:
        budget.check_measured(asked["experiments"])
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
    for cell in asked["cells"]:
        if not cell or not any(name.startswith(cell) for name in CELLS):
            raise UsageError(f"--cells: expected beginnings of {', '.join(CELLS)}, found {cell!r}")
    try:
        own_variants.check(asked["variants"])
    except ValueError as error:
        raise UsageError(str(error)) from error
    if asked["device"].startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"--device: expected a CUDA device for {asked['device']}, found none that torch can use"
        )


def check_limit(name: str, value: object) -> None:
    """Refuse a number outside its LIMITS; what is no number has none."""
    least, most = LIMITS[name]
    if isinstance(value, int) and not least <= value <= most:
        limit = f"at least {least}" if value < least else f"at most {most}"
        raise UsageError(f"--{name.replace('_', '-')}: expected {limit}, found {value}")


def _check_taken(
    options: argparse.Namespace, given: dict[str, Any], experiments: Sequence[Experiment]
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


def _rerun(plan: Plan, again: dict[str, Any], path: Path) -> Plan:
    """Return the plan with the manifest that it is compared with, and every difference from it.

    Raises UsageError where the work would not be the same: other data, or other settings under the
    very same code. Where the code differs, the settings of its experiments may differ too. That is
    reported and not refused.
    """
    now = begin_manifest(plan)
    work = list(rerun.differences(rerun.work(again), rerun.work(now)))
    same_code = again.get("sources") == now["sources"]
    settings = [line for line in work if line.startswith("experiments.") and not same_code]
    if work != settings:
        commit = (again["commit"] or {}).get("sha", "unknown")
        more = f" (and {len(work) - 1} more)" if len(work) > 1 else ""
        raise UsageError(
            f"--from {path}: expected the work of today's code (its commit: {commit}), found "
            f"{work[0]}{more}"
        )
    around = rerun.differences(rerun.surroundings(again), rerun.surroundings(now))
    return replace(plan, again=again, again_from=path.parent, differences=(*settings, *around))


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
