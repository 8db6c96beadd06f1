"""The manifest: everything that decided the numbers, written before work starts and completed after it."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from reptile_core import native
from reptile_core.datasets import Characters
from reptile_core.files import write_atomically

PACKAGES = ("torch", "numpy", "pandas", "scipy", "matplotlib", "seaborn", "safetensors", "pillow", "scikit-learn")


def begin(
    *,
    command: list[str],
    profile: str,
    experiments: dict[str, Any],
    data: Characters,
    device: str,
    workers: int,
) -> dict[str, Any]:
    """A manifest as it stands before work: `experiments` holds each one's configuration and seeds."""
    return {
        "status": "running",
        "started": _now(),
        "command": command,
        "profile": profile,
        "experiments": experiments,
        "data": {
            "name": data.name,
            "real": data.real,
            "source": data.source,
            "content_sha256": data.content,
            "characters": data.images.shape[0],
            "drawings": data.images.shape[1],
        },
        "commit": _commit(),
        "versions": {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "workers": workers,
            "native": native.library() is not None,
        },
    }


def complete(manifest: dict[str, Any], *, status: str, wall_seconds: dict[str, float]) -> dict[str, Any]:
    """The same manifest after work, with how it ended and what each experiment took in this invocation."""
    return manifest | {"status": status, "finished": _now(), "wall_seconds": wall_seconds}


def write(manifest: dict[str, Any], path: Path) -> None:
    write_atomically(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> dict[str, Any] | None:
    """Commit of this checkout and whether files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {
            "sha": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
