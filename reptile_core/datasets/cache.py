"""The cache of decoded images: whole files, and records of their sources.

Files are verified by content whenever they are read. A source is not read again where every file
has the path, size and time of change that it had when it was verified.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reptile_core.files import write_atomically


def cache_directory(cache: Path | None) -> Path:
    """Return the directory of decoded images: by default one in the user's cache."""
    if cache is None:
        import pooch  # here, because it takes longer to import than a cache takes to read

        return Path(pooch.os_cache("reptile-verification"))
    return Path(cache)


def cache_file(path: Path, content: bytes | memoryview) -> None:
    """Write a cache file atomically; concurrent writers are safe.

    Warns where it cannot be written. The data are available without the cache, so a read-only or
    full disk must not stop the caller.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        warnings.warn(
            f"cache: cannot write {path}, so the next start will be slow: {error}", stacklevel=2
        )


def checked(
    path: Path, read: Callable[[], np.ndarray], identity: Callable[[np.ndarray], str], content: str
) -> np.ndarray | None:
    """Return what `read` reads from a file of the cache, if its identity is `content`.

    Returns None where there is no file. Warns and returns None where it holds something else.
    """
    try:
        images = read()
        if (found := identity(images)) == content:
            return images
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged file or record may lead NumPy to
        found = f"{type(error).__name__}: {error}"
    expected = f"expected {content}, found {found}"
    warnings.warn(f"cache: {path} is damaged and will be rebuilt: {expected}", stacklevel=3)
    return None


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record to the cache."""
    cache_file(path, json.dumps(record).encode())


def read_record(path: Path) -> dict[str, Any]:
    """Return a record, empty where there is none.

    A missing record is not a fault: the sources are then read again.
    """
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def fingerprint(asked: Sequence[object], paths: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of a request and of every file's path, size and time of change.

    asked: what was requested.

    No content is read. Raises OSError for a file that does not exist.
    """
    states = ((path, os.stat(path)) for path in sorted(paths))
    lines = [f"{path!r} {state.st_size} {state.st_mtime_ns}" for path, state in states]
    return hashlib.sha256("\n".join([*map(repr, asked), *lines]).encode()).hexdigest()
