"""From options to a plan: everything that can be checked is checked before any work."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from analysis import budget
from analysis.ending import UsageError
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.experiment import Context, Experiment
from analysis.option_checks import (
    check,
    check_other_folder,
    check_seeds_for,
    check_taken,
    check_writable,
)
from analysis.plan import NO_IMAGES, Plan, begin_manifest
from analysis.request import Request, from_manifest, from_options, with_own_options
from analysis.results import manifest, manifest_records, rerun
from analysis.results.manifest import ManifestError
from analysis.runs.job import Source
from analysis.runs.workers import ClusterError, Workers, available_cores
from reptile_core import datasets
from reptile_core.datasets.split import SplitKind


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


def prepare(options: argparse.Namespace, again: dict[str, Any] | None = None) -> Plan:
    """Check everything that can be checked before work starts, and return the plan.

    again: the record of a manifest's command to rerun.
    Raises UsageError or ManifestError, one line each.
    """
    request = from_options(options) if again is None else from_manifest(options, again)
    check(options, request)
    if again is not None:
        again = with_own_options(again)
        request = from_manifest(options, again)
    names = _chosen(request, everything=options.budget is not None)
    given = request.given
    check_taken(options, given, [EXPERIMENTS[name] for name in names])
    out = options.out or _default_folder(request)
    check_writable(out)
    data = _images(options, request, [EXPERIMENTS[name] for name in names])
    cuda = request.names_cuda or (request.device == "auto" and torch.cuda.is_available())
    epoch = request.epoch
    if options.budget is not None and epoch is None:
        epoch = budget.EPOCH
    workers = _workers(options, out.absolute(), cuda=cuda)
    context = Context(
        profile=request.profile,
        source=_source(data, options.data and options.data.absolute(), request.split),
        workers=workers,
        runs=out.absolute() / "runs",
        seeds=request.seeds if isinstance(request.seeds, int) else None,
        epoch=epoch,
        device="cuda" if cuda else "cpu",
        tf32=request.device == "cuda-tf32",
        fresh=options.fresh,
    )
    seeds = dict(request.seeds) if isinstance(request.seeds, Mapping) else {}
    with ExitStack() as refused:
        refused.push(workers)  # a refusal leaves no connection to a cluster open
        if options.budget is not None:
            seeds = budget.choose(names, options.budget, workers=workers.count)
            names = [name for name in names if name in seeds]
            check_taken(options, given, [EXPERIMENTS[name] for name in names])
        chosen = tuple(EXPERIMENTS[name] for name in names)
        plan = Plan(chosen, out, data, context, given, seeds, until_decided=options.until_decided)
        check_seeds_for(plan)
        if again is not None:
            plan = _rerun(plan, again, options.again)
        refused.pop_all()
    return plan


def _default_folder(request: Request) -> Path:
    """Return the folder where results go by default.

    The user's own variants get a folder of their own, as they change the tables.
    """
    own = [variant.name for variant in request.variants]
    return Path("results") / "-".join([request.profile, *own])


def _chosen(request: Request, *, everything: bool) -> list[str]:
    """Return the names of the experiments to run.

    These are those asked for. By default they are those of the profile, or all where `everything`,
    since a budget may choose from all.
    """
    profile = request.profile
    by_default = [
        name for name, one in EXPERIMENTS.items() if everything or profile in one.profiles
    ]
    return list(dict.fromkeys(request.experiments or by_default))


def _images(
    options: argparse.Namespace, request: Request, experiments: Sequence[Experiment]
) -> datasets.Characters | None:
    """Load the images that tasks are made of; None where no experiment needs any.

    Raises UsageError if they are not there.
    """
    needing = [experiment for experiment in experiments if experiment.data is None]
    if not needing and (options.again is None or request.dataset is None):
        return None
    fetch = request.dataset == "omniglot" or any(experiment.fetches for experiment in needing)
    try:
        data = datasets.load(
            request.dataset or "auto", data=options.data, fetch=fetch, quiet=options.quiet
        )
    except datasets.DataError as error:
        raise UsageError(str(error)) from error
    if request.split == "authors" and not data.real:
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
