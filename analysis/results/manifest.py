"""The manifest: everything that decided the numbers, written before work starts and completed after it.

It is enough to do the same again: `read` checks it strictly, and `differences` says what is no longer as it was.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from analysis.results.claims import PROFILES
from analysis.runs.job import DEVICES
from reptile_core import native
from reptile_core.datasets import Characters
from reptile_core.datasets.split import SPLITS
from reptile_core.files import sources_digest, write_atomically

PACKAGES = ("torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "safetensors", "pillow", "scikit-learn")
ROOT = Path(__file__).parents[2]  # of the checkout, or where the packages are installed
PROJECT = "reptile-verification"  # as pyproject.toml has it
SOURCES = ("analysis", "figures", "reproduce.py", "reptile_core")
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")  # as a hook sets them, of its repository
SCHEMA = 1  # raised whenever a key that must be there is added, one is removed, or one changes its meaning
MOST_BYTES = 2**24  # of a manifest that is read: a thousand times what is written
INDIFFERENT = ("workers", "process", "cores")  # of the machine: they change no bit

OPTION_DEFAULTS = {
    "split": SPLITS[0],
    "iterations": None,
    "tail_shots": None,
    "epoch": 0,
}  # options before they could be chosen

# What a manifest holds: types, a tuple of what may stand there, {str: …} for any keys, [...] for any number of entries,
# and "name?" for what may be missing.
SHAPE: dict[str, Any] = {
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
        "device": DEVICES,
        "split?": SPLITS,
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
    "commit": ({"sha": str, "modified": bool}, None),
    "sources?": str,
    "versions": {str: str},
    "machine": {
        "platform": str,
        "processor": str,
        "cores": int,
        "device": str,
        "workers": int,
        "process": int,
        "native": bool,
    },
    "wall_seconds?": {str: (float, int)},
    "tables?": {str: str},
}


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
) -> dict[str, Any]:
    """Return a manifest before work: `experiments` holds each one's configuration and seeds, `options` what the user
    may choose besides. data: the images that the script loaded, if it needed any."""
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
        "versions": {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processor": processor(),
            "cores": os.cpu_count() or 1,
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "workers": workers,
            "process": os.getpid(),
            "native": native.library() is not None,
        },
    }


def complete(
    manifest: dict[str, Any],
    *,
    status: str,
    wall_seconds: dict[str, float],
    tables: dict[str, str],
    other_data: dict[str, str],
) -> dict[str, Any]:
    """Return the same manifest after work: how it ended, what each experiment took in this invocation, the digests of
    its tables (`checksums.digest`), and the content of data other than the script's own, by name."""
    ended = {"status": status, "finished": _now(), "wall_seconds": wall_seconds, "tables": tables}
    return manifest | ended | {"other_data": other_data}


def write(manifest: dict[str, Any], path: Path) -> None:
    write_atomically(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote; ManifestError where anything else is found, even in one key."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ManifestError(f"{path}: expected a manifest of at most {MOST_BYTES} bytes, found more")
        manifest = json.loads(content)
    except OSError as error:
        raise ManifestError(f"{path}: expected a manifest, found none that can be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{path}: expected a manifest in JSON, found something else ({error})") from error
    fault = _fault(manifest, SHAPE, "")
    if fault is not None:
        raise ManifestError(f"{path}: {fault}")
    manifest["options"] = OPTION_DEFAULTS | manifest["options"]
    return manifest


def digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 (hex) that identifies a manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def holder(path: Path) -> str:
    """Describe the process that last began to write to the folder of this manifest."""
    try:
        manifest = json.loads(path.read_bytes())
        return f"process {manifest['machine']['process']:d}, started {manifest['started']}"
    except Exception:  # it may be there no longer, or not yet, or anyone's
        return "another process"


def work(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the part that must be the same for the work to be the same."""
    images = manifest["data"]
    data = images and {name: images[name] for name in ("name", "content_sha256")}
    return {name: manifest[name] for name in ("profile", "options", "experiments")} | {"data": data}


def surroundings(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the part on which bits may depend, though the work is the same."""
    machine = {name: value for name, value in manifest["machine"].items() if name not in INDIFFERENT}
    code = {name: manifest[name] for name in ("commit", "sources") if name in manifest}
    return code | {"versions": manifest["versions"], "machine": machine}


def differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Yield a line for each entry that is not the same, as JSON has it."""
    then, now = (json.loads(json.dumps(value)) for value in (then, now))
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*then, *now]):
            there = f"{path}.{name}" if path else name
            if name in then and name in now:
                yield from differences(then[name], now[name], there)
            else:
                yield f"{there}: {'only then' if name in then else 'only now'}"
    elif then != now:
        yield f"{path}: {_short(then)} then, {_short(now)} now"


def _fault(value: Any, shape: Any, path: str) -> str | None:
    """Return the first place where a value is not of this shape, in words."""
    where = path or "the whole"
    if isinstance(shape, tuple):
        faults = [_fault(value, one, path) for one in shape]
        if None in faults:
            return None
        within = [fault for one, fault in zip(shape, faults, strict=True) if isinstance(one, dict)]
        if isinstance(value, dict) and within:
            return within[0]
        return f"{where}: expected {' or '.join(map(_words, shape))}, found {_short(value)}"
    if isinstance(shape, type):
        right = isinstance(value, shape) and not (isinstance(value, bool) and shape in (int, float))
        return None if right else f"{where}: expected {_words(shape)}, found {_short(value)}"
    if type(value) is not type(shape) or (not isinstance(shape, list | dict) and value != shape):
        return f"{where}: expected {_words(shape)}, found {_short(value)}"
    if isinstance(shape, list):
        parts = [(f"{path}[{i}]", entry, shape[0]) for i, entry in enumerate(value)]
    elif not isinstance(shape, dict):
        return None
    elif str in shape:
        parts = [(f"{path}.{name}", entry, shape[str]) for name, entry in value.items()]
    else:
        known = {name.removesuffix("?"): entry for name, entry in shape.items()}
        missing = [name for name in shape if not name.endswith("?") and name not in value]
        strange = [name for name in value if name not in known]
        if missing or strange:
            found = f"none of the name {missing[0]!r}" if missing else f"the unknown {_short(strange[0])}"
            return f"{where}: expected the entries of a manifest of schema {SCHEMA}, found {found}"
        parts = [(f"{path}.{name}".lstrip("."), entry, known[name]) for name, entry in value.items()]
    return next((fault for name, entry, one in parts if (fault := _fault(entry, one, name)) is not None), None)


def _words(shape: Any) -> str:
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", object: "anything"}
    if isinstance(shape, type):
        return names[shape]
    return "a list" if isinstance(shape, list) else "an object" if isinstance(shape, dict) else json.dumps(shape)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit(root: Path = ROOT) -> dict[str, Any] | None:
    """Return the commit of the project's checkout at `root`, and whether tracked files differ from it; None elsewhere.

    A repository that surrounds an installation says nothing about this code.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if not _is_ours(root) or Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None
        return {
            "sha": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _is_ours(root: Path) -> bool:
    """Return whether this folder is the root of the project, and not of one that holds it."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return project == PROJECT and (root / "reproduce.py").is_file()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
