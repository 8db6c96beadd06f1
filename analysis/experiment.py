"""What an experiment is: settings by profile, work that gives tidy tables and measurements, claims these are to judge.

Its namesake in figures/ draws it from the tables and settings alone, so that figures can be made anew from files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.claims import NO_MEASUREMENTS, Claim
from analysis.courses import execute_together, in_lanes
from analysis.runs import Job, Outcome, Source, ended_early, find
from analysis.workers import Workers
from reptile_core.training import Run


@dataclass(frozen=True)
class Context:
    """What every experiment is given: at what scale, on which data and device, with whom, and where runs are kept.

    source: the data that the script loads. seeds: how many, where the user says so; None for the profile's. cells: the
    beginnings of the names of what `few_shot` is to train, where the user says so; none for all. iterations and
    tail_shots: of each of these, where the user says so; None for the profile's, and for as many as a minibatch has.
    """

    profile: str
    source: Source
    workers: Workers
    runs: Path
    seeds: int | None = None
    cells: tuple[str, ...] = ()
    iterations: int | None = None
    tail_shots: int | None = None
    device: str = "cpu"
    tf32: bool = False
    fresh: bool = False
    trained: set[str] = field(default_factory=set)  # keys of the runs that this invocation has seen to
    diverged: list[str] = field(default_factory=list)  # lines that name the runs that ended early
    found: dict[str, str] = field(default_factory=dict)  # content of other data than the script's own, by name

    @property
    def device_name(self) -> str:
        """As users call it: one of `runs.DEVICES`."""
        return self.device + "-tf32" * self.tf32

    def job(self, run: Run, name: str, source: Source | None = None) -> Job:
        """A run on this device and these data, or others, kept with the others; `name` is what tables call it."""
        return Job(run, source or self.source, self.runs, name, self.device, self.tf32)

    def find(self, name: str) -> Source:
        """Other data than these, by name, where the user keeps these or wherever data are looked for; DataError, with
        the reason, where they are not to be had."""
        source = find(name, self.source.directory, quiet=self.workers.quiet)
        self.found[name] = source.content
        return source

    def train(self, name: str, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        """All runs, by whatever worker is free, and on a GPU those that are alike side by side. Those that are finished
        are only read, unless all is to be fresh and this is the first time that they are asked for."""
        anew = [replace(job, fresh=self.fresh and job.key not in self.trained) for job in jobs]
        groups = in_lanes(anew)
        sizes = [sum(job.training_steps for job in group) for group in groups]
        found = self.workers.map(name, execute_together, groups, sizes=sizes)
        by_key = {job.key: outcome for group, ended in zip(groups, found, strict=True)
                  for job, outcome in zip(group, ended, strict=True)}  # fmt: skip
        self.trained.update(by_key)
        ended = {job: by_key[job.key] for job in jobs}
        self.diverged.extend(line for line in ended_early(ended) if line not in self.diverged)
        return ended


@dataclass(frozen=True)
class Result:
    """Tidy tables by name; measurements for the ledger (columns claim, case, role, value, and perhaps low and high, and
    data where these are not the script's own); lines for the summary at the end; data: names of what its figures show,
    where that is not the script's own alone, which goes by its source's name."""

    tables: Mapping[str, pd.DataFrame]
    measurements: pd.DataFrame = field(default_factory=NO_MEASUREMENTS.copy)
    lines: Sequence[str] = ()
    data: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """An entry of the registry.

    shows: what, in a line. takes: how long, by profile. claims: what it judges. settings: everything that decides the
    outcome besides data and code, as JSON has it, for the manifest and the figures. run: the work. data: the words that
    name the data where they are not the images that the script loads.
    """

    name: str
    shows: str
    takes: Mapping[str, str]
    claims: tuple[Claim, ...]
    settings: Callable[[Context], dict[str, Any]]
    run: Callable[[Context], Result]
    data: str | None = None
