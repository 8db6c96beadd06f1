"""How an output folder came about, in words.

There are words on the commands that wrote it, and on each experiment's settings and runs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.experiments.shared import claim_seeds
from analysis.experiments.shared.experiment import OPTIONS, Experiment
from analysis.results.tables import ResultsError, read_csv
from analysis.runs.redo import SUFFIX
from reptile_core.datasets.split import SPLIT_KINDS

Words = Mapping[str, str]


def commands(manifest: Mapping[str, Any] | None, out: Path) -> tuple[Words, ...]:
    """Return what the manifest says of each command that wrote into the folder, by name.

    The last command is first. Raises ResultsError where the manifest is not what a run writes.
    """
    if manifest is None:
        return ()
    try:
        earlier: dict[tuple[str, ...], dict[str, Any]] = {}
        for record in reversed(manifest.get("earlier", {}).values()):
            same = earlier.setdefault(
                (record["started"], *record["command"]), record | {"wall_seconds": {}}
            )
            same["wall_seconds"] = record.get("wall_seconds", {}) | same["wall_seconds"]
        latest_first = sorted(
            earlier.values(), key=lambda record: str(record["started"]), reverse=True
        )
        return tuple(_in_words(record) for record in (manifest, *latest_first))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(
            f"{out / 'manifest.json'}: expected what a run writes, found none of {error}"
        ) from error


def _in_words(record: Mapping[str, Any]) -> Words:
    commit, machine, took = record["commit"], record["machine"], record.get("wall_seconds", {})
    changed = ", with changes that are not committed" if commit and commit["modified"] else ""
    of_kind = f" ({machine['kind']})" if "kind" in machine else ""
    return {
        "Command": " ".join(map(str, record["command"])),
        "Begun and ended (UTC)": f"{record['started']}, {record.get('finished', 'not yet')}",
        "Commit": f"{commit['sha']}{changed}" if commit else "not known",
        **({"Sources (SHA-256)": record["sources"]} if "sources" in record else {}),
        "Machine": (
            f"{machine['processor']}{of_kind}, {machine['cores']} cores, {machine['workers']} "
            f"workers on {machine['device']}; {machine['platform']}"
        ),
        "Versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "Seconds": ", ".join(f"{name} {seconds:,.0f}" for name, seconds in took.items())
        or "not known",
    }


def settings(manifest: Mapping[str, Any] | None, experiment: str) -> Words:
    """Return the settings of an experiment by name, each as JSON.

    Empty where the manifest does not hold them.
    """
    found = _record(manifest, experiment).get("experiments", {}).get(experiment, {})
    return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items()}


def options(
    manifest: Mapping[str, Any] | None, experiment: Experiment, seeds_of: Mapping[str, int] = {}
) -> list[str]:
    """Return the options of the last command that ran an experiment, as words of a command line.

    Those that the experiment does not take, and those left at their defaults, are left out.

    seeds_of: numbers of seeds that take the place of the command's, of the experiment or of one of
        its claims, by name.
    """
    given = dict(_record(manifest, experiment.name).get("options", {}))
    seeds = given.get("seeds")
    if isinstance(seeds, Mapping):  # chosen by --budget or --until-decided
        seeds = seeds.get(experiment.name)
    seeds = seeds_of.get(experiment.name, seeds)
    of_claims = given.get("seeds_for", {}) | dict(seeds_of)
    given["seeds_for"] = {
        id: n for id, n in of_claims.items() if id in experiment.compares and n > (seeds or 0)
    }
    words = []
    for flag, value in (("--seeds", seeds), ("--epoch", given.get("epoch"))):
        if value is not None:
            words += [flag, str(value)]
    split = given.get("split", SPLIT_KINDS[0])
    if split != SPLIT_KINDS[0] and experiment.data is None:
        words += ["--split", split]
    for name, value in experiment.taken(given).items():
        values = value if isinstance(value, list) else [value]
        if name == "seeds_for":
            for claim, count in value.items():
                words += [OPTIONS[name], claim_seeds.as_text(claim, count)]
        elif name == "variants":
            for one in values:
                words += [OPTIONS[name], one]
        elif values and value is not None:
            words += [OPTIONS[name], *map(str, values)]
    return words


def _record(manifest: Mapping[str, Any] | None, experiment: str) -> Mapping[str, Any]:
    """Return what the manifest has of the last command that ran an experiment; empty for none."""
    if manifest is None:
        return {}
    record = manifest.get("earlier", {}).get(experiment, {})
    if record and experiment not in manifest.get("wall_seconds", {}):
        return record  # the last command was interrupted before it wrote anything of it
    asked = manifest.get("experiments", {}).get(experiment)
    return manifest if isinstance(asked, dict) else {}


def runs(tables: Path, experiment: str) -> tuple[str, ...]:
    """Return a line for each device and kind of arithmetic that trained an experiment's runs."""
    path = tables / f"{experiment}{SUFFIX}.csv"
    if not path.is_file():
        return ()
    table = read_csv(path)
    try:
        groups = table.astype({"arithmetic": str}).groupby(["device", "arithmetic"], sort=False)
        return tuple(_of_device(str(device), str(kinds), part) for (device, kinds), part in groups)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{path}: expected a table of runs, found none of {error}") from error


def _of_device(device: str, kinds: str, part: pd.DataFrame) -> str:
    seeds = ", ".join(str(seed) for seed in sorted(set(part["seed"])))
    hours = part["seconds"].sum() / 3600
    return (
        f"{len(part)} on {device} ({kinds}), seeds {seeds}; {hours:,.1f} hours of training, on one "
        "core or GPU"
    )


def files(tables: Path, experiment: str) -> tuple[str, ...]:
    """Return the names of the tables that begin with an experiment's name."""
    return tuple(sorted(path.name for path in tables.glob(f"{experiment}*.csv")))
