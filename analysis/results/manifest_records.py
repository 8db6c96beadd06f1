"""The records of a manifest: which command wrote what into its folder."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

from analysis.results.manifest import ManifestError


def by_experiment(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, for each experiment of the folder, the record of the command that wrote it.

    A record has no other experiments in it.
    """
    ended = manifest.get("wall_seconds", {})
    return manifest.get("earlier", {}) | {name: part_of(manifest, [name]) for name in ended}


def commands(manifest: dict[str, Any], names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return a record for each command in a manifest, the last command last.

    Each has the experiments that it was the last to finish. Those that no command finished are of
    the last one, which was interrupted.

    names: the experiments to return records for; empty for all. Raises ManifestError for one that
        is not there.
    """
    chosen, asked = set(names), list(manifest["experiments"])
    ended, earlier = manifest.get("wall_seconds", asked), manifest.get("earlier", {})
    last = {name for name in asked if name in ended or name not in earlier}
    every = {name: record for name, record in earlier.items() if name not in last}
    known = [*every, *(name for name in asked if name in last)]
    if odd := sorted(chosen - set(known)):
        raise ManifestError(
            f"expected an experiment of the manifest ({', '.join(known)}), found {odd[0]!r}"
        )
    chosen = chosen or set(known)
    found = [record for name, record in every.items() if name in chosen]
    return found + ([part_of(manifest, chosen & last)] if chosen & last else [])


def part_of(manifest: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return what a manifest's last command did for some of its experiments only."""
    kept = [name for name in manifest["experiments"] if name in set(names)]

    def only(found: dict[str, Any]) -> dict[str, Any]:
        return {name: found[name] for name in kept if name in found}

    part = {name: value for name, value in manifest.items() if name != "earlier"}
    part["experiments"] = only(manifest["experiments"])
    seeds = manifest["options"].get("seeds")
    if isinstance(seeds, dict):
        seeds = only(seeds)
    part["options"] = manifest["options"] | {"seeds": seeds}
    for name in ("wall_seconds", "tables_of", "other_data_of"):
        if name in manifest:
            part[name] = only(manifest[name])
    if "other_data_of" in manifest:
        data = set(chain.from_iterable(part["other_data_of"].values()))
        part["other_data"] = {name: manifest["other_data"][name] for name in sorted(data)}
    elif kept != list(manifest["experiments"]):
        part.pop("other_data", None)  # an older manifest does not say whose they are
    if "tables" in manifest:
        tables = manifest["tables"]
        part["tables"] = {
            name: digest for name, digest in tables.items() if _is_of(name, kept, manifest)
        }
    return part


def _is_of(table: str, experiments: list[str], manifest: dict[str, Any]) -> bool:
    """Return whether one of these experiments wrote a table.

    Where an old manifest does not say, the table's name decides.
    """
    if experiments == list(manifest["experiments"]):
        return True
    if "tables_of" in manifest:
        return any(table in manifest["tables_of"].get(name, ()) for name in experiments)
    return table.startswith(tuple(experiments))
