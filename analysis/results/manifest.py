"""The manifest: everything that decided the numbers.

It is written before work starts and completed after it. It is enough to do the same again: `read`
checks it strictly, and `rerun` says what has changed since.

It describes the last command that wrote into its folder. Under "earlier" it has the experiments
that other commands wrote there, each with its own command, commit, sources, machine and tables.
"""

import hashlib
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from analysis.results import checkout, shape
from analysis.results.claims import PROFILES
from analysis.runs.arithmetic import arithmetic, kind, processor
from analysis.runs.job import DEVICES
from reptile_core import native
from reptile_core.datasets import Characters
from reptile_core.datasets.split import SPLIT_KINDS
from reptile_core.files import write_atomically

PACKAGES = (
    "torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "safetensors", "pillow",
    "scikit-learn",
)  # fmt: skip
# Raised whenever a key that must be there is added, one is removed, or one changes its meaning.
SCHEMA = 1
MAX_BYTES = 2**24  # of a manifest that is read: a thousand times what is written

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
    earlier: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a manifest as it stands before work.

    experiments: each one's configuration and seeds.
    options: what else the user may choose.
    data: the images that the script loaded, if it needed any.
    earlier: the records of the commands that wrote into the folder before, by experiment.
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
        "commit": checkout.commit(),
        "sources": checkout.sources(),
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
        "earlier": earlier or {},
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
