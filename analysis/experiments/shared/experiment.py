"""An experiment: settings by profile, work that gives tables and evidence, and claims to judge.

The tables are tidy. Its namesake in figures/ draws it from the tables and settings alone, so that
figures can be redrawn from files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.results.claims import PROFILES, Claim, seeds
from analysis.results.evidence import NO_EVIDENCE
from analysis.results.verdict import Verdict
from analysis.runs.advance import execute_together, in_lanes, united
from analysis.runs.evaluation_chunks import Accuracies, Evaluation, chunks, evaluate_chunk, joined
from analysis.runs.job import Job, Source, find
from analysis.runs.store import Outcome, ended_early, or_of_another_device
from analysis.runs.workers import Workers
from reptile_core.training import Run

# Epoch of the seeds that judge. Epoch 0 explored. After a whole run on epoch 1, one criterion was
# changed, one claim was cut in two, and scales were cut to the time that a default run may take.
# After a whole run on epoch 2, tasks and seeds were moved to where claims had stayed undecided, and
# three experiments changed their treatment. All are judged from epoch 3 on.
EPOCH = 3
# Options that an experiment can declare, each with its name on the command line.
OPTIONS = {
    "cells": "--cells",
    "iterations": "--iterations",
    "seeds_for": "--seeds-for",
    "tail_shots": "--tail-shots",
    "variants": "--variant",
}
Measured = tuple[Job, int, Evaluation]  # a run, an iteration, and how the run is evaluated there


@dataclass
class Asked:
    """Record of what an experiment has asked for so far.

    runs: how each run ended.
    evaluations: every evaluation of these runs.
    diverged: lines that name the runs that ended early.
    data: content of data other than the script's own, by name.
    """

    runs: dict[Job, Outcome] = field(default_factory=dict)
    evaluations: dict[Measured, Accuracies] = field(default_factory=dict)
    diverged: list[str] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)

    def training_seconds(self) -> float:
        """Return what training the runs took in all, now or before, in seconds of one worker."""
        longest: dict[str, float] = {}  # a run may be asked for to several ends
        for job, outcome in self.runs.items():
            longest[job.key] = max(longest.get(job.key, 0.0), outcome.seconds)
        return sum(longest.values())


@dataclass(frozen=True)
class Context:
    """Everything an experiment is given: scale, data, device, workers, and the folder of runs.

    It also records what the experiment asks for.

    source: the data that the script loads.
    seeds: the user's number of seeds; None for the profile's.
    epoch: the user's epoch of seeds; None for EPOCH, or the experiment's own.
    options: the user's values of the options that this experiment takes, by name.
    """

    profile: str
    source: Source
    workers: Workers
    runs: Path
    seeds: int | None = None
    epoch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    tf32: bool = False
    fresh: bool = False
    trained: set[str] = field(default_factory=set)  # keys of what this invocation did
    asked: Asked = field(default_factory=Asked)

    @property
    def device_name(self) -> str:
        """The device as users call it: one of `job.DEVICES`."""
        return self.device + "-tf32" * self.tf32

    def seeds_of(self, count: int, epoch: int = EPOCH) -> list[int]:
        """Return the seeds of an experiment whose profile has `count` of them."""
        chosen = epoch if self.epoch is None else self.epoch
        return seeds(chosen, count if self.seeds is None else self.seeds)

    def job(
        self,
        run: Run,
        name: str,
        source: Source | None = None,
        *,
        until: int | None = None,
        keep: Sequence[int] = (),
    ) -> Job:
        """Return a run on this device, kept in the folder with the others.

        If the folder holds the whole run, trained on another device, that one takes its place.

        name: what tables call the run.
        source: other data than the script's own.
        until, keep: as in Job.
        """
        data = source or self.source
        job = Job(run, data, self.runs, name, self.device, self.tf32, until=until, keep=tuple(keep))
        return job if self.fresh else or_of_another_device(job)

    def find(self, name: str) -> Source:
        """Return other data by name, from the user's folder or wherever data are looked for.

        Raises DataError, with the reason, where the data cannot be had.
        """
        source = find(name, self.source.directory, quiet=self.workers.quiet)
        self.asked.data[name] = source.content
        return source

    def train(self, name: str, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        """Train all runs on whatever workers are free; on a GPU, train similar runs side by side.

        Finished runs are only read, unless all is to be fresh and this is the first time that they
        are asked for.
        """
        due = [replace(job, fresh=self._is_afresh(job.key)) for job in united(jobs)]
        groups = in_lanes(due)
        sizes = [sum(job.images for job in group) for group in groups]
        found = self.workers.map(name, execute_together, groups, sizes=sizes)
        by_key: dict[str, Outcome] = {}
        for group, outcomes in zip(groups, found, strict=True):
            for job, outcome in zip(group, outcomes, strict=True):
                by_key[job.key] = outcome
        self.trained.update(by_key)
        ended = {job: by_key[job.key].up_to(job.end) for job in jobs}
        self.asked.diverged.extend(
            line for line in ended_early(ended) if line not in self.asked.diverged
        )
        self.asked.runs.update(ended)
        return ended

    def evaluate(self, name: str, wanted: Sequence[Measured]) -> dict[Measured, Accuracies]:
        """Return the accuracies of every task, measured by whatever workers are free.

        Each evaluation is measured once, however often it is asked for. Runs that begin alike share
        what is measured at iteration 0.
        """
        parts = {item: chunks(*item) for item in dict.fromkeys(wanted)}
        once = {chunk.key: chunk for chunk in chain.from_iterable(parts.values())}
        due = []
        for key, chunk in once.items():
            job = replace(chunk.job, fresh=self._is_afresh(key))
            due.append(replace(chunk, job=job))
        sizes = [chunk.images for chunk in due]
        measured = self.workers.map(f"{name}, evaluation", evaluate_chunk, due, sizes=sizes)
        found = dict(zip(once, measured, strict=True))
        self.trained.update(once)
        all_of = {}
        for item, chunk_list in parts.items():
            all_of[item] = joined([found[chunk.key] for chunk in chunk_list])
        self.asked.evaluations.update(all_of)
        return all_of

    def _is_afresh(self, key: str) -> bool:
        """Return whether a run or an evaluation is to be done whatever the folder holds.

        That is so where all is to be fresh, and only the first time that it is asked for.
        """
        return self.fresh and key not in self.trained


@dataclass(frozen=True)
class Result:
    """Tables, evidence and lines that an experiment gives.

    tables: tidy tables by name.
    evidence: rows for the ledger (`evidence.COLUMNS`). The script fills in data, profile, epoch,
        look and numerics.
    lines: lines for the summary at the end.
    data: names of the data that its figures show, where these are not the script's own alone. The
        script's own go by their source's name.
    """

    tables: Mapping[str, pd.DataFrame]
    evidence: pd.DataFrame = field(default_factory=NO_EVIDENCE.copy)
    lines: Sequence[str] = ()
    data: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """Entry of the registry.

    shows: what it shows, in a line.
    takes: how long it takes, by profile.
    claims: what it judges.
    settings: returns everything that decides the outcome besides data and code, as JSON has it, for
        the manifest and the figures. Called like `run`.
    run: does the work. Called with the context and, where there are `scales`, the profile's scale.
    data: words that name its data, where it needs none of the images that the script loads.
    fetches: whether these images are fetched over the network for it; False where it takes the
        stand-in as well.
    options: the options of the command line that it takes, out of OPTIONS.
    compares: names of the runs that a claim compares, by the claim's id, for claims that can have
        more seeds than the others (--seeds-for).
    most_iterations: the highest value of --iterations, where there is one.
    profiles: where it is run by default; elsewhere only where it is named.
    scales: by profile, each a dataclass of the experiment's own with a field `seeds`.
    """

    name: str
    shows: str
    takes: Mapping[str, str]
    claims: tuple[Claim, ...]
    settings: Callable[..., dict[str, Any]]
    run: Callable[..., Result]
    data: str | None = None
    fetches: bool = True
    options: tuple[str, ...] = ()
    compares: Mapping[str, Sequence[str]] = field(default_factory=dict)
    most_iterations: int | None = None
    profiles: tuple[str, ...] = PROFILES
    scales: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.options) - set(OPTIONS):
            raise ValueError(
                f"options: expected some of {', '.join(OPTIONS)}, found {min(unknown)!r}"
            )

    def result(self, context: Context) -> Result:
        """Do the work at the profile's scale."""
        return self.run(context, *self._scale(context))

    def settings_in(self, context: Context) -> dict[str, Any]:
        """Return the settings at the profile's scale."""
        return self.settings(context, *self._scale(context))

    def _scale(self, context: Context) -> tuple[Any, ...]:
        """Return the profile's scale, with the user's number of seeds where there is one.

        The tuple is empty where there are no scales.
        """
        if not self.scales:
            return ()
        scale = self.scales[context.profile]
        return (replace(scale, seeds=len(context.seeds_of(scale.seeds))),)

    def named_for_seeds(self, verdict: Verdict) -> str:
        """Return the name under which more seeds for a verdict are asked for.

        It is the claim's id where the claim can have more seeds than others and its control needs
        none. Else it is the experiment's name.
        """
        of_control = verdict.plan is not None and verdict.plan.of_control
        alone = verdict.claim.id in self.compares and not of_control
        return verdict.claim.id if alone else self.name

    def taken(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the user's options that decide something in this experiment."""
        return {name: value for name, value in given.items() if name in self.options}


def claims_of(experiments: Iterable[Experiment]) -> list[Claim]:
    """Return the claims of all these experiments, in order."""
    return list(chain.from_iterable(experiment.claims for experiment in experiments))
