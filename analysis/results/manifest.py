"""The manifest: everything that decided the numbers.

It is written before work starts and completed after it. It is enough to do the same again: `read`
checks it strictly, and `differences` says what has changed since.

It describes the last command that wrote into its folder. Under "earlier" it has the experiments
that other commands wrote there, each with its own command, commit, sources, machine and tables.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from analysis.results import shape
from analysis.results.claims import PROFILES
from analysis.results.shape import short
from analysis.runs.arithmetic import arithmetic, kind, processor
from analysis.runs.job import DEVICES
from reptile_core import native
from reptile_core.datasets import Characters
from reptile_core.datasets.split import SPLIT_KINDS
from reptile_core.files import sources_digest, write_atomically

PACKAGES = (
    "torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "safetensors", "pillow",
    "scikit-learn",
)  # fmt: skip
ROOT = Path(__file__).parents[2]  # of the checkout, or where the packages are installed
PROJECT = "reptile-verification"  # as pyproject.toml has it
SOURCES = ("analysis", "figures", "reproduce.py", "reptile_core")
# Variables that a git hook sets, to its own repository.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
# Raised whenever a key that must be there is added, one is removed, or one changes its meaning.
SCHEMA = 1
MAX_BYTES = 2**24  # of a manifest that is read: a thousand times what is written
DECISIVE = ("device", "native", "arithmetic")  # of the machine: its other entries change no bit

# The values of options before they could be chosen.
OPTION_DEFAULTS = {
    "split": SPLIT_KINDS[0],
    "iterations": None,
    "tail_shots": None,
    "epoch": 0,
}

# What a manifest holds of one command, in the terms of `shape`. arithmetic: as `arithmetic` gives
# it, and its kind. tables_of: names of the tables that each experiment wrote.
COMMAND: dict[str, Any] = {
    "schema": (SCHEMA,),
    "status": ("running", "interrupted", "finished"),
    "started": str,
    "finished?": str,
    "command": [str],
    "profile": PROFILES,
    "options": {
        "seeds": (int, None, {str: int}),
        "epoch?": (int, None),
        "cells": [str],
        "iterations?": (int, None),
        "tail_shots?": (int, None),
        "variants?": [str],
        "seeds_for?": {str: int},
        "device": DEVICES,
        "split?": SPLIT_KINDS,
    },
    "experiments": {str: {str: object}},
    "data": (
        {
            "name": ("omniglot", "glyphs"),
            "real": bool,
            "source": str,
            "content_sha256": str,
            "characters": int,
            "drawings": int,
        },
        None,
    ),
    "other_data?": {str: str},
    "other_data_of?": {str: [str]},
    "commit": ({"sha": str, "modified": bool}, None),
    "sources?": str,
    "versions": {str: str},
    "machine": {
        "platform": str,
        "processor": str,
        "cores": int,
        "device": str,
        "workers": int,
        "process?": int,
        "native?": bool,
        "kind?": str,
        "arithmetic?": {str: (str, None)},
    },
    "wall_seconds?": {str: (float, int)},
    "worker_seconds?": {str: (float, int)},
    "tables?": {str: str},
    "tables_of?": {str: [str]},
}
SHAPE = COMMAND | {"earlier?": {str: COMMAND}}  # by experiment


class ManifestError(ValueError):
    """A manifest that cannot be used; the message, one line, says why."""


def begin(
    *,
    command: list[str],
    profile: str,
    options: dict[str, Any],
    experiments: dict[str, Any],
    data: Characters | None,
    device: str,
    workers: int,
    before: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a manifest as it stands before work.

    experiments: each one's configuration and seeds.
    options: what else the user may choose.
    data: the images that the script loaded, if it needed any.
    before: the manifest of the folder as the last command left it.
    """
    return {
        "schema": SCHEMA,
        "status": "running",
        "started": _now(),
        "command": command,
        "profile": profile,
        "options": options,
        "experiments": experiments,
        "data": data
        and {
            "name": data.name,
            "real": data.real,
            "source": data.source,
            "content_sha256": data.content,
            "characters": data.images.shape[0],
            "drawings": data.images.shape[1],
        },
        "commit": commit(),
        "sources": sources_digest(ROOT, *SOURCES),
        "versions": {"python": sys.version.split()[0]}
        | {name: metadata.version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count() or 1,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "workers": workers,
            "process": os.getpid(),
            "native": native.library() is not None,
            "kind": kind(device),
            "arithmetic": arithmetic(device),
        },
        "earlier": {} if before is None else by_experiment(before),
    }


def complete(
    manifest: dict[str, Any],
    *,
    status: str,
    wall_seconds: dict[str, float],
    worker_seconds: dict[str, float],
    tables: dict[str, dict[str, str]],
    other_data: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """Return the same manifest after work, or after a part of it.

    status: how it ended; "running" before its end.
    wall_seconds: of each experiment that came to its end in this invocation.
    worker_seconds: the processor time of its workers.
    tables: the digests (`checksums.digest`) of each experiment's tables, by name.
    other_data: the content of each experiment's data other than the script's own, by name.

    What earlier commands wrote is dropped where an experiment has written it again.
    """
    earlier = manifest["earlier"]
    earlier = {name: record for name, record in earlier.items() if name not in wall_seconds}
    when = {} if status == "running" else {"finished": _now()}
    return (
        manifest
        | when
        | {
            "status": status,
            "wall_seconds": wall_seconds,
            "worker_seconds": worker_seconds,
            "tables": _in_one(tables),
            "tables_of": {name: list(group) for name, group in tables.items()},
            "other_data": _in_one(other_data),
            "other_data_of": {name: list(group) for name, group in other_data.items()},
            "earlier": earlier,
        }
    )


def _in_one(by_experiment: dict[str, dict[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for mine in by_experiment.values():
        found.update(mine)
    return found


def write(manifest: dict[str, Any], path: Path) -> None:
    write_atomically(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Return the manifest that `write` wrote, in this version or an earlier one.

    Raises ManifestError where the file is anything else, if only in one key.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ManifestError(
                f"{path}: expected a manifest of at most {MAX_BYTES} bytes, found more"
            )
        manifest = json.loads(content)
    except OSError as error:
        raise ManifestError(
            f"{path}: expected a manifest, found none that can be read ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(
            f"{path}: expected a manifest in JSON, found something else ({error})"
        ) from error
    manifest = _with_options(manifest)
    fault = shape.fault(manifest, SHAPE)
    if fault is not None:
        raise ManifestError(f"{path}: {fault}")
    for record in (manifest, *manifest.get("earlier", {}).values()):
        record["options"] = OPTION_DEFAULTS | record["options"]
    return manifest


def _with_options(manifest: Any) -> Any:
    """Return an old manifest with a schema and options, any other unchanged.

    The options are those that it was made with.
    """
    if not isinstance(manifest, dict) or "schema" in manifest or "options" in manifest:
        return manifest
    experiments = manifest.get("experiments")
    settings = next(iter(experiments.values()), None) if isinstance(experiments, dict) else None
    seeds = settings.get("seeds") if isinstance(settings, dict) else None
    return {"schema": SCHEMA, "options": {"seeds": seeds, "cells": [], "device": "cpu"}} | manifest


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


def digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) that identifies a manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def holder(path: Path) -> str:
    """Return a description of the process that last began to write to this manifest's folder."""
    try:
        manifest = json.loads(path.read_bytes())
        return f"process {manifest['machine']['process']:d}, started {manifest['started']}"
    except Exception:  # the file may be gone, not yet there, or another program's
        return "another process"


def work(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest that must be the same for the work to be the same."""
    images = manifest["data"]
    data = images and {name: images[name] for name in ("name", "content_sha256")}
    return {name: manifest[name] for name in ("profile", "options", "experiments")} | {"data": data}


def surroundings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest on which bits may depend, though the work is the same."""
    machine = {name: value for name, value in manifest["machine"].items() if name in DECISIVE}
    code = {name: manifest[name] for name in ("commit", "sources") if name in manifest}
    return code | {"versions": manifest["versions"], "machine": machine}


def differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each entry that is not the same in JSON."""
    then, now = (json.loads(json.dumps(value)) for value in (then, now))
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*then, *now]):
            there = f"{path}.{name}" if path else name
            if name in then and name in now:
                yield from differences(then[name], now[name], there)
            else:
                yield f"{there}: {'only then' if name in then else 'only now'}"
    elif then != now:
        yield f"{path}: {short(then)} then, {short(now)} now"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit(root: Path = ROOT) -> dict[str, Any] | None:
    """Return the commit of the project's checkout at `root`, and whether tracked files differ.

    Returns None elsewhere: a repository that surrounds an installation says nothing about this
    code.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if not _is_ours(root):
            return None
        top = Path(git("rev-parse", "--show-toplevel"))
        if top.resolve() != root.resolve():
            return None
        return {
            "sha": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _is_ours(root: Path) -> bool:
    """Return whether this folder is the root of the project, and not of one that contains it."""
    try:
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        project = settings["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return project == PROJECT and (root / "reproduce.py").is_file()
