"""Shared parts of the sets of colour photographs: the order of images, and pixels in a mapped file.

A class's images are in order of their own digests. File names differ between the layouts in which
a set is distributed. So the same pictures give the same bits whatever their names. Pixels are
kept as bare bytes, nothing else: there is no format to parse, and processes that map the file
share its memory.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from reptile_core.datasets import cache
from reptile_core.datasets.common import ColourImages, DataError

SPLITS = ("train", "val", "test")  # as the folders and lists of every layout are called

Images = UInt8[np.ndarray, "images height width 3"]


@dataclass(frozen=True)
class Class:
    """A class that was found, and how to read its images."""

    split: str
    name: str
    read: Callable[[], Images]


@dataclass(frozen=True)
class Decoded:
    """All classes of a set: first those of meta-training, then of validation, then of testing."""

    pixels: UInt8[np.ndarray, "classes images height width 3"]
    counts: tuple[int, ...]  # classes of each split
    content: str  # see `ColourImages.content`

    def to_images(self, name: str, source: str, *, real: bool) -> ColourImages:
        train, validation, test = np.split(self.pixels, list(accumulate(self.counts))[:-1])
        return ColourImages(
            name, train, validation, test, source=source, content=self.content, real=real
        )


def arranged(classes: Iterable[Class], where: object) -> tuple[list[Class], tuple[int, ...]]:
    """Return classes in order of split and name, and how many each split has.

    Raises DataError where a class is there twice.
    """
    ordered = sorted(classes, key=lambda c: (SPLITS.index(c.split), c.name))
    (name, times), *_ = Counter(c.name for c in ordered).most_common(1) or [("", 0)]
    if times > 1:
        places = " and ".join(c.split for c in ordered if c.name == name)
        raise DataError(f"{where}: expected every class once, found {name!r} in {places}")
    splits = [c.split for c in ordered]
    return ordered, tuple(map(splits.count, SPLITS))


def decode(
    classes: list[Class], counts: tuple[int, ...], shape: tuple[int, ...], *, quiet: bool
) -> Decoded:
    """Read every class, and put its images in order."""
    pixels = np.empty((len(classes), *shape), np.uint8)
    bar = tqdm(classes, desc="decoding images", disable=quiet or None, delay=1, leave=False)
    for i, found in enumerate(bar):
        pixels[i] = in_order(found.read())
    return Decoded(pixels, counts, identity(pixels, counts))


def in_order(images: Images) -> Images:
    return images[sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].data).digest())]


def identity(
    pixels: UInt8[np.ndarray, "classes images height width 3"], counts: tuple[int, ...]
) -> str:
    """Return the SHA-256 (hex) of the shape, the classes per split, and the bytes in C order."""
    hasher = hashlib.sha256(json.dumps([pixels.shape, counts]).encode())
    hasher.update(pixels.data)
    return hasher.hexdigest()


# ---- the cache


def remember(folder: Path, name: str, found: Decoded, key: str) -> None:
    """Put pixels into the cache, and a record that sources with this fingerprint decode to them."""
    cache.cache_file(_pixels(folder, name, found.content), found.pixels.data)
    cache.write_record(
        _record(folder, name, key),
        {"shape": found.pixels.shape, "counts": found.counts, "content": found.content},
    )


def recall(folder: Path, name: str, key: str) -> Decoded | None:
    """Return what sources with this fingerprint decode to, if that is known.

    None where it is not known, or the cache does not have it whole.
    """
    record = cache.read_record(_record(folder, name, key))
    try:
        shape, counts = tuple(record["shape"]), tuple(record["counts"])
        content = str(record["content"])
    except (TypeError, KeyError):
        return None  # not a fault: the sources are read again
    return mapped(folder, name, shape, counts, content)


def mapped(
    folder: Path, name: str, shape: tuple[int, ...], counts: tuple[int, ...], content: str
) -> Decoded | None:
    """Return the pixels with this content, or None where the cache does not have them whole."""
    path = _pixels(folder, name, content)

    def read() -> np.ndarray:
        # Copy on write: torch wants memory that may be written, and the file must stay as it is.
        return np.asarray(np.memmap(path, np.uint8, "c", shape=shape))

    pixels = cache.checked(path, read, lambda pixels: identity(pixels, counts), content)
    return None if pixels is None else Decoded(pixels, counts, content)


def _pixels(folder: Path, name: str, content: str) -> Path:
    return folder / f"{name}-{content[:12]}.rgb"


def _record(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key[:16]}.json"
