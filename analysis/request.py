"""What the user asks for: the settings that decide the numbers, from options or a manifest."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from analysis.ending import UsageError
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared import own_variants
from analysis.experiments.shared.experiment import OPTIONS
from analysis.results.claims import Profile
from reptile_core.datasets.split import SPLIT_KINDS, SplitKind
from reptile_core.meta_gradients import Variant

# What a manifest says of options that were not given, where it says anything.
NOT_GIVEN: dict[str, Any] = {"cells": [], "iterations": None, "tail_shots": None}


@dataclass(frozen=True)
class Request:
    """The settings that decide the numbers; see the command line's help.

    experiments: their names; empty for those of the profile.
    seeds: how many of each experiment, or of some by name; None for the profile's own number.
    epoch: None for the experiments' own.
    dataset: None where a manifest's command loaded no images.
    """

    profile: Profile = "quick"
    experiments: Sequence[str] = ()
    seeds: int | Mapping[str, int] | None = None
    epoch: int | None = None
    cells: Sequence[str] = ()
    iterations: int | None = None
    tail_shots: int | None = None
    variants: Sequence[Variant] = ()
    seeds_for: Mapping[str, int] = field(default_factory=dict)
    dataset: Literal["auto", "omniglot", "glyphs"] | None = "auto"
    device: str = "auto"
    split: SplitKind = SPLIT_KINDS[0]

    @property
    def given(self) -> dict[str, Any]:
        """The options of experiments that were given, by their names in OPTIONS."""
        return {name: getattr(self, name) for name in OPTIONS if getattr(self, name)}

    @property
    def names_cuda(self) -> bool:
        """Whether a CUDA device was asked for by name."""
        return self.device.startswith("cuda")


def from_options(options: argparse.Namespace) -> Request:
    """Return what the options of the command line ask for."""
    return Request(**_said(options))


def from_manifest(options: argparse.Namespace, record: Mapping[str, Any]) -> Request:
    """Return what the command of a manifest asked for.

    options: those of the command line. Raises UsageError where they set what the manifest says.
    """
    more = {"budget": options.budget, "until_decided": options.until_decided or None}
    for name, value in (_said(options) | more).items():
        if name != "experiments" and value is not None:
            flag = OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise UsageError(f"--from: expected no {flag} with it, since the manifest says which")
    then = record["options"]
    try:
        variants = [own_variants.parse(text) for text in then.get("variants", [])]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--from {options.again}: options.variants: {error}") from error
    return Request(
        profile=record["profile"],
        experiments=list(record["experiments"]),
        seeds=then["seeds"],
        epoch=then["epoch"],
        cells=then["cells"],
        iterations=then["iterations"],
        tail_shots=then["tail_shots"],
        variants=variants,
        seeds_for=then.get("seeds_for", {}),
        dataset=record["data"] and record["data"]["name"],
        device=then["device"],
        split=then["split"],
    )


def _said(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given on the command line, by name."""
    given = {one.name: getattr(options, one.name) for one in fields(Request)}
    given["experiments"] = options.experiments or None
    given["seeds_for"] = options.seeds_for and dict(options.seeds_for)
    return {name: value for name, value in given.items() if value is not None}


def with_own_options(record: dict[str, Any]) -> dict[str, Any]:
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
