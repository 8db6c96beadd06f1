"""What every data set shares: the form it is handed on in, the one error, and how its files are kept."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from reptile_core.files import write_atomically


class DataError(ValueError):
    """A fault of the data or of how it was asked for, in one line."""


class Unavailable(DataError):
    """The data are nowhere to be had; nothing is wrong with any that were found or named."""


@dataclass(frozen=True)
class Characters:
    """Handwritten characters, each drawn by several people."""

    name: str  # "omniglot" or "glyphs"
    images: UInt8[np.ndarray, "characters drawings height width"]  # 0 = ink, 1 = paper; 28×28, read-only
    source: str  # for people: where it was read from, or how it was made
    content: str  # SHA-256 (hex) of the images' bytes in C order: the data's identity
    real: bool  # False for the stand-in: stamped on every output

    def __post_init__(self) -> None:
        self.images.setflags(write=False)  # else `content` could come to lie


def digest(images: np.ndarray) -> str:
    """SHA-256 (hex) of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def keep(path: Path, content: bytes) -> None:
    """Put a file into the cache whole or not at all, also where others do the same; warn if that cannot be.

    The data are at hand without the cache, so a read-only or full disk must not stop the caller.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        warnings.warn(f"cache: cannot write {path}, so the next start will be slow: {error}", stacklevel=2)
