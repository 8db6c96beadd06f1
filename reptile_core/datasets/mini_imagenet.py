"""Mini-ImageNet, read from the user's own copy.

The set is that of Vinyals et al. 2016, in the split of Ravi and Larochelle 2017: 64 classes train,
16 validate, 20 test, each of 600 colour images, made 84×84. Each user has to ask for ImageNet, so
this is never downloaded. The copies in circulation differ in size and compression, so there is no
published digest of their pixels. Instead the names of classes and numbers of images tell the set
from another. Three layouts are read:

- folders: `train/`, `val/` and `test/`, in each a folder of images for every class, as the authors
  of Reptile have it;
- tables: `train.csv`, `val.csv` and `test.csv` next to `images/`, each "filename,label" under a
  header line;
- lists: `train.txt`, `val.txt` and `test.txt` next to folders of classes, as of ImageNet. A line
  names a class (all its images) or one image as "class/file", which is how the authors' own lists
  (`metadata/imagenet_*.txt`) are written.
"""

import csv
import hashlib
import io
import os
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from reptile_core.datasets.archives import read_file
from reptile_core.datasets.cache import cache_directory, fingerprint
from reptile_core.datasets.colour import SPLITS, Class, Images, arranged, decode, recall, remember
from reptile_core.datasets.common import (
    ColourImages,
    DataError,
    Unavailable,
    faults,
    named_directory,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# The authors resize by PIL's default of their time, nearest neighbour; bicubic is the default since
# Pillow 7.
Resampling = Literal["nearest", "bicubic"]

NAME = "mini_imagenet"
SIZE = 84  # pixels across
IMAGES = 600  # of each class of the published set
# SHA-256 of its classes: the sorted lines "<split>/<WordNet ID>" as the authors of Reptile list
# them.
CLASSES = "ac58afdd80aa96ed946788ad3b93bfb641b6b962def8261f78cbe776963a518b"
SUFFIXES = (".jpg", ".jpeg", ".png")  # in upper case too
PLACES = (NAME, "miniimagenet", "mini-imagenet", "")  # where copies are, below a directory of data
# Far above what photographs on the web take, and far below harm.
MAX_PIXELS, MAX_FILE_BYTES, MAX_LIST_BYTES = 2**26, 2**25, 2**23
WANTED = (
    f"{', '.join(f'{split}/' for split in SPLITS)} with a folder for each class, or images/ with "
    "train.csv, val.csv and test.csv, or folders of classes with train.txt, val.txt and test.txt"
)

# The paths of each class's images: as strings, since there are 60,000.
Listing = dict[str, list[str]]


# ---- the three layouts


def _images(folder: str) -> list[str]:
    """Return the paths of a class's images, whatever their names."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES)]
    return [f"{folder}/{name}" for name in names if not name.startswith(".")]


def _from_folders(folder: Path) -> Listing:
    with os.scandir(folder) as entries:
        classes = [entry for entry in entries if entry.is_dir() and entry.name[0] != "."]
        return {entry.name: _images(entry.path) for entry in classes}


def _from_table(path: Path) -> Listing:
    lines = _text(path).splitlines()
    # As spreadsheets of other countries save it.
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    rows = [row for row in csv.reader(lines, delimiter=delimiter) if "".join(row).strip()]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if header != ["filename", "label"]:
        raise DataError(
            f"{path}: expected the columns filename and label, found {', '.join(header) or 'none'}"
        )
    if odd := next((row for row in rows if len(row) != 2), None):
        raise DataError(
            f"{path}: expected the columns filename and label in each line, found {odd}"
        )
    listing: Listing = {}
    for name, label in rows[1:]:
        listing.setdefault(label, []).append(f"{path.parent}/images/{_inside(name, path)}")
    return listing


def _from_list(path: Path) -> Listing:
    listing: Listing = {}
    for line in _text(path).split():
        label, slash, name = line.partition("/")
        folder = f"{path.parent}/{_inside(label, path)}"
        images = [f"{folder}/{_inside(name, path)}"] if slash else _images(folder)
        listing.setdefault(label, []).extend(images)
    return listing


LAYOUTS: dict[str, Callable[[Path], Listing]] = {
    "": _from_folders,
    ".csv": _from_table,
    ".txt": _from_list,
}


def _text(path: Path) -> str:
    content = read_file(path, MAX_LIST_BYTES)
    if len(content) > MAX_LIST_BYTES:
        raise DataError(f"{path}: expected at most {MAX_LIST_BYTES} bytes, found more")
    with faults(path):
        return content.decode("utf-8-sig")  # with or without a byte-order mark


def _inside(name: str, where: Path) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise DataError(
            f"{where}: expected the names of files and folders next to it, found {name!r}"
        )
    return name


def _listings(root: Path, suffix: str) -> dict[tuple[str, str], list[str]]:
    """Return the paths of each class's images by (split, class), equally many of every class."""
    found: dict[tuple[str, str], list[str]] = {}
    for split in SPLITS:
        listing = LAYOUTS[suffix](root / f"{split}{suffix}")
        found |= {(split, name): paths for name, paths in listing.items()}
    for split in SPLITS:
        if split not in {owner for owner, _ in found}:
            raise DataError(f"{root}: expected classes in {split}{suffix}, found none")
    few, many = (choose(found, key=lambda key: len(found[key])) for choose in (min, max))
    if not found[few] or len(found[few]) != len(found[many]):
        numbers = " and ".join(f"{len(found[key])} of {'/'.join(key)}" for key in (few, many))
        raise DataError(
            f"{root}: expected equally many images of every class, found {numbers} "
            "(to choose among them, name them in train.txt, val.txt and test.txt as class/file)"
        )
    for key, paths in found.items():
        if len(set(paths)) < len(paths):
            raise DataError(
                f"{root}: expected every image once, found some of {'/'.join(key)} twice"
            )
    return found


# ---- decoding


def _decode(path: str, resampling: Resampling) -> UInt8[np.ndarray, "84 84 3"]:
    """Decode one image as the authors made it: resized first, whatever its shape, then made RGB."""
    from PIL import Image  # here, because a start from the cache decodes nothing

    with faults(path):
        content = read_file(path, MAX_FILE_BYTES)
        if len(content) > MAX_FILE_BYTES:
            raise DataError(f"{path}: expected at most {MAX_FILE_BYTES} bytes, found more")
        # By content, whatever their names say.
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:  # before one of them is decoded
                raise DataError(
                    f"{path}: expected at most {MAX_PIXELS} pixels, found "
                    f"{image.width}×{image.height}"
                )
            depth = _eight_bits(image)
            # A palette has no colours between two of its own. Pillow would take the nearest one.
            if resampling != "nearest" and depth.mode in ("P", "1"):
                depth = depth.convert("RGB")
            resized = depth.resize((SIZE, SIZE), Image.Resampling[resampling.upper()])
            return np.asarray(resized.convert("RGB"))


def _eight_bits(image: "Image") -> "Image":
    """Scale grey values of 16 bits to 8, which Pillow would clip at 255: 65535 becomes 255."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))


def _read(paths: list[str], resampling: Resampling) -> Images:
    return np.stack([_decode(path, resampling) for path in paths])


# ---- finding


def _locate(directory: Path) -> tuple[Path, str] | None:
    """Return the folder that holds a layout and the layout's suffix, or None.

    Raises DataError where there is only a part of a layout.
    """
    part = ""
    for below in PLACES:
        for suffix in LAYOUTS:
            marks = [directory / below / f"{split}{suffix}" for split in SPLITS]
            there = [mark for mark in marks if (mark.is_file() if suffix else mark.is_dir())]
            if len(there) == len(marks):
                return directory / below, suffix
            if there:
                missing = [mark.name for mark in marks if mark not in there]
                part = part or (
                    f"expected {' and '.join(missing)} next to "
                    f"{' and '.join(map(str, there))}, found none"
                )
    if part:
        raise DataError(f"{directory}: {part}")
    return None


def load(
    *,
    data: Path | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    resampling: Resampling = "nearest",
) -> ColourImages:
    """Load Mini-ImageNet from `data`, else from `$REPTILE_DATA`.

    data: directory that holds a layout, or whose `mini_imagenet/` does; `$REPTILE_DATA` too.
    cache: directory of this function's own, by default one of the user's. Decoded images are kept
        there until a file changes.
    quiet: hide the progress bar.
    resampling: how images of another size are made 84×84. "nearest" was PIL's default when the
        authors ran their code, "bicubic" is its default now.

    Classes are in order of their names, a class's images in order of their digests. `real` says
    that these are the published classes, with as many images. Raises DataError for a fault of what
    was found or named, and its kind Unavailable where nothing was. Warns of a cache that is damaged
    or cannot be written, and goes on without it.
    """
    if resampling not in get_args(Resampling):
        raise DataError(
            f"resampling: expected one of {', '.join(get_args(Resampling))}, found {resampling!r}"
        )
    cache, directory = cache_directory(cache), named_directory(data)
    with faults(directory):
        located = _locate(directory) if directory else None
    if located is None:
        if data is not None:
            raise DataError(f"data: expected {WANTED}, in {directory} or its {NAME}/, found none")
        raise Unavailable(
            f"{NAME}: expected {WANTED}, in --data DIR or $REPTILE_DATA, found none; it is not "
            "downloaded, since its images come from ImageNet (https://image-net.org), which each "
            "user has to ask for"
        )
    root, suffix = located
    with faults(root):
        listings = _listings(root, suffix)
        paths = list(chain.from_iterable(listings.values()))
        n_images = len(paths) // len(listings)
        lists = (f"{root}/{split}{suffix}" for split in SPLITS)
        key = fingerprint((root.resolve(), resampling), [*paths, *lists])
    found = recall(cache, NAME, key)
    if found is None:
        each = (Class(*of, partial(_read, images, resampling)) for of, images in listings.items())
        classes, counts = arranged(each, root)
        found = decode(classes, counts, (n_images, SIZE, SIZE, 3), quiet=quiet)
        remember(cache, NAME, found, key)
    names = hashlib.sha256("\n".join(sorted(map("/".join, listings))).encode()).hexdigest()
    return found.to_images(NAME, str(root), real=(names, n_images) == (CLASSES, IMAGES))
