"""The code at work: where it is, its commit, and whether its files were changed since."""

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

from reptile_core.files import sources_digest

ROOT = Path(__file__).parents[2]  # of the checkout, or where the packages are installed
PROJECT = "reptile-verification"  # as pyproject.toml has it
SOURCES = ("analysis", "figures", "reproduce.py", "reptile_core")
# Variables that a git hook sets, to its own repository.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")


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


def sources(root: Path = ROOT) -> str:
    """Return the SHA-256 (hex) of the sources of the script and its packages."""
    return sources_digest(root, *SOURCES)


def _is_ours(root: Path) -> bool:
    """Return whether this folder is the root of the project, and not of one that contains it."""
    try:
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        project = settings["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return project == PROJECT and (root / "reproduce.py").is_file()
