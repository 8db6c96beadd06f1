"""Plan of what to run: everything that the options decide, and the manifest that records it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from analysis.experiments.shared import own_variants
from analysis.experiments.shared.experiment import Asked, Context, Experiment, claims_of
from analysis.results import manifest
from analysis.results.manifest_records import by_experiment
from analysis.results.verdict import Verdict
from reptile_core import datasets

NO_IMAGES = "no images"  # the name of the source where no experiment needs any


@dataclass(frozen=True)
class Plan:
    """Checked request of the user: the experiments, where results go, the data, and all settings.

    data: the images that tasks are made of; None where no experiment needs any.
    options: those of OPTIONS that the user gave, by name.
    seeds: the number of seeds of some experiments, where a budget sets it.
    until_decided: whether seeds are added after the first look.
    again, again_from: the manifest that is rerun, if one is, and its folder.
    differences: lines that say where the code, libraries or machine differ from the manifest's.
    """

    experiments: tuple[Experiment, ...]
    out: Path
    data: datasets.Characters | None
    context: Context
    options: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    until_decided: bool = False
    again: dict[str, Any] | None = None
    again_from: Path | None = None
    differences: Sequence[str] = ()

    def context_of(self, experiment: Experiment) -> Context:
        """Return the context of an experiment, which has asked for nothing yet.

        It holds the options that the experiment takes. Its number of seeds is the experiment's own
        where there is one.
        """
        seeds = self.seeds.get(experiment.name, self.context.seeds)
        return replace(
            self.context, options=experiment.taken(self.options), seeds=seeds, asked=Asked()
        )

    def with_seeds(self, more: Mapping[str, int]) -> "Plan":
        """Return the plan with these numbers of seeds, each of an experiment or of a claim.

        A claim whose experiment has as many needs no seeds of its own.
        """
        names = {experiment.name for experiment in self.experiments}
        seeds = self.seeds | {name: count for name, count in more.items() if name in names}
        for_claims = dict(self.options.get("seeds_for", {}))
        for_claims |= {name: count for name, count in more.items() if name not in names}
        for experiment in self.experiments:
            for claim in experiment.compares:
                if for_claims.get(claim, inf) <= seeds.get(experiment.name, 0):
                    del for_claims[claim]
        options = {name: value for name, value in self.options.items() if name != "seeds_for"}
        if for_claims:
            options["seeds_for"] = for_claims
        return replace(self, seeds=seeds, options=options)

    def verdicts(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Return the verdicts on the claims of the plan's experiments."""
        mine = {claim.id for claim in claims_of(self.experiments)}
        return [verdict for verdict in verdicts if verdict.claim.id in mine]

    def data_line(self, experiment: Experiment, others: Sequence[str] = ()) -> str:
        """Return the line under every figure: which data, and at what scale.

        An experiment may name data of its own.
        others: names of a result's data where they are not its experiment's, as in `Result.data`.
        """
        own = experiment.data or self._images_in_words()
        loaded = self.data.name if self.data else None
        what = "; ".join(own if name == loaded else name for name in others) or own
        return f"Data: {what} · profile: {self.context.profile}"

    def is_real(self, experiment: Experiment, others: Sequence[str] = ()) -> bool:
        """Return False where a result is of images that only stand in for real ones."""
        if self.data is None or self.data.real:
            return True
        shown = self.data.name in others if others else experiment.data is None
        return not shown

    def _images_in_words(self) -> str:
        if self.data is None:
            return NO_IMAGES
        characters, drawings = self.data.images.shape[:2]
        what = f"NOT OMNIGLOT: {self.data.name}, made-up characters"
        if self.data.real:
            what = "Omniglot"
        words = f"{what}, {characters:,} characters × {drawings} drawings"
        if self.context.source.split == "authors":
            words += ", split as the authors' code does"
        return words


def begin_manifest(plan: Plan, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the manifest of a plan before work.

    before: the manifest that an earlier command left in the plan's folder, if any.
    """
    context = plan.context
    settings = {one.name: one.settings_in(plan.context_of(one)) for one in plan.experiments}
    seeds: int | dict[str, int | None] | None = context.seeds
    if plan.seeds:
        seeds = {one.name: plan.context_of(one).seeds for one in plan.experiments}
        seeds = {name: count for name, count in seeds.items() if count is not None}
    options: dict[str, Any] = {
        "seeds": seeds,
        "epoch": context.epoch,
        "cells": plan.options.get("cells", []),
        "iterations": plan.options.get("iterations"),
        "tail_shots": plan.options.get("tail_shots"),
        "device": context.device_name,
        "split": context.source.split,
    }
    variants = [own_variants.as_text(variant) for variant in plan.options.get("variants", ())]
    if variants:
        options["variants"] = variants
    if of_claims := plan.options.get("seeds_for"):
        options["seeds_for"] = of_claims
    return manifest.begin(
        command=sys.argv,
        profile=context.profile,
        options=options,
        experiments=settings,
        data=plan.data,
        device=context.device,
        workers=context.workers.count,
        earlier=None if before is None else by_experiment(before),
    )
