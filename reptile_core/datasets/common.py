"""Shared parts of all data sets: their types, their errors, and how they are found."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


class DataError(ValueError):
    """A fault of the data or of how it was asked for, in one line."""


class Unavailable(DataError):
    """Data that cannot be found anywhere; nothing is wrong with any that were found or named."""


@dataclass(frozen=True)
class Characters:
    """Handwritten characters, each drawn by several people."""

    name: str  # "omniglot" or "glyphs"
    # 0 = ink, 1 = paper; 28×28, read-only.
    images: UInt8[np.ndarray, "characters drawings height width"]
    source: str  # for people: where it was read from, or how it was made
    content: str  # SHA-256 (hex) of the images' bytes in C order: the data's identity
    real: bool  # False for the stand-in: stamped on every output

    def __post_init__(self) -> None:
        self.images.setflags(write=False)  # otherwise `content` might no longer match


@dataclass(frozen=True)
class ColourImages:
    """Colour photographs in classes for meta-training, validation and testing.

    The set's authors divided the classes in this way.
    """

    name: str  # "cifar_fs" or "mini_imagenet"
    # 0 … 255, read-only; may be a file that is mapped.
    train: UInt8[np.ndarray, "classes images height width 3"]
    validation: UInt8[np.ndarray, "classes images height width 3"]
    test: UInt8[np.ndarray, "classes images height width 3"]
    source: str  # for people: where it was read from
    content: str  # SHA-256 (hex) of the three arrays' shapes and bytes: the data's identity
    # False for a part of the set, or anything else in its place: stamped on every output.
    real: bool

    def __post_init__(self) -> None:
        for images in (self.train, self.validation, self.test):
            images.setflags(write=False)  # otherwise `content` might no longer match


@contextmanager
def faults(where: object) -> Iterator[None]:
    """Raise every failure as a DataError.

    Hostile bytes make zipfile and PIL raise a dozen kinds of exceptions.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{where}: cannot be read: {reason}") from error


def named_directory(data: Path | None) -> Path | None:
    """Return the directory that the caller or else $REPTILE_DATA names; None if neither does.

    Raises DataError where it does not exist.
    """
    name, value = "data", data
    if data is None:
        name, variable = "$REPTILE_DATA", os.environ.get("REPTILE_DATA")
        if not variable:  # empty is unset, as shells have it
            return None
        value = Path(variable)
    with faults(name):
        directory = Path(value or "")
        if not directory.is_dir():
            raise DataError(f"{name}: expected a directory, found none at {str(directory)!r}")
    return directory


def images_digest(images: np.ndarray) -> str:
    """Return the SHA-256 (hex) of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
