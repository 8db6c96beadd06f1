"""CIFAR-FS: CIFAR-100 for few-shot learning, found, verified and cached.

The reference is Bertinetto, Henriques, Torr and Vedaldi 2019. The set has 100 classes of 600 colour
images of 32×32 pixels: 64 classes train, 16 validate, 20 test. Two layouts are read: one zip with a
lossless WebP sheet for each class, and the authors' folders of PNG files with lists of classes.
Both give the same bits, or else an error: only the pixels are trusted. This is not data of the
Reptile paper, whose colour images are Mini-ImageNet.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from reptile_core.datasets.archives import PNGS, SHEETS, files, members, read_file
from reptile_core.datasets.cache import cache_directory, fingerprint
from reptile_core.datasets.colour import (
    SPLITS,
    Class,
    Decoded,
    Images,
    arranged,
    decode,
    mapped,
    recall,
    remember,
)
from reptile_core.datasets.common import (
    ColourImages,
    DataError,
    Unavailable,
    faults,
    named_directory,
)

NAME = "cifar_fs"
SIZE = 32  # pixels across
LISTS = "splits/bertinetto"  # where the authors' layout names the classes of each split
MAX_LIST_BYTES = 2**13  # of such a list: 460 are published
SHEET = re.compile(rf"(?:.*/)?images/({'|'.join(SPLITS)})/([^/]+)\.webp")
WANTED = (
    f"{NAME}.zip, or data/ (or images/) with a folder of PNG files for each class next to {LISTS}/"
)


@dataclass(frozen=True)
class Edition:
    """An edition of the data: what to look for, and what it must decode to."""

    counts: tuple[int, ...]  # classes of each split
    rows: int  # of images on a class's sheet
    columns: int
    content: str  # see `ColourImages.content`: whatever the layout, the same

    @property
    def images(self) -> int:
        return self.rows * self.columns

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a class's images."""
        return self.images, SIZE, SIZE, 3

    @property
    def limit(self) -> int:
        """The most files and folders to look at in one place.

        macOS doubles the published number by hidden files.
        """
        return 4 * sum(self.counts) * self.images + 1000


PUBLISHED = Edition(
    counts=(64, 16, 20),
    rows=24,
    columns=25,
    content="767654f85dcd224c6957c1960d7a2a5364f59c1e13ae00015cad14785abfe192",
)


# ---- decoding


def _pixels(
    picture: bytes, format: str, width: int, height: int, limit: int, where: object
) -> UInt8[np.ndarray, "height width 3"]:
    from PIL import Image  # here, because a start from the cache decodes nothing

    if len(picture) > limit:
        raise DataError(f"{where}: expected at most {limit} bytes, found more")
    with faults(where), Image.open(io.BytesIO(picture), formats=(format,)) as image:
        if image.size != (width, height) or image.mode != "RGB":  # before a pixel of it is decoded
            found = f"mode {image.mode!r}, {image.width}×{image.height}"
            raise DataError(f"{where}: expected mode 'RGB', {width}×{height}, found {found}")
        return np.asarray(image)


def _sheet(read: Callable[[], bytes], edition: Edition, where: object) -> Images:
    """Return the images of a class from its sheet, row by row."""
    with faults(where):
        sheet = _pixels(
            read(), "WEBP", edition.columns * SIZE, edition.rows * SIZE, SHEETS.file_bytes, where
        )
    tiles = sheet.reshape(edition.rows, SIZE, edition.columns, SIZE, 3).swapaxes(1, 2)
    return tiles.reshape(edition.images, SIZE, SIZE, 3)


def _folder(folder: Path, edition: Edition) -> Images:
    """Return the images of a class from its folder of PNG files, whatever their names."""
    with faults(folder):
        paths = [entry.path for entry in files(folder, limit=edition.limit) if entry.path in PNGS]
        if len(paths) != edition.images:
            raise DataError(f"{folder}: expected {edition.images} PNG files, found {len(paths)}")
        pictures = [(path, read_file(path, PNGS.file_bytes)) for path in paths]
    return np.stack(
        [_pixels(png, "PNG", SIZE, SIZE, PNGS.file_bytes, path) for path, png in pictures]
    )


# ---- the two layouts


@contextmanager
def _classes(source: Path, edition: Edition) -> Iterator[list[Class]]:
    """Yield the classes of a zip, which stays open, or of the lists in a folder."""
    if source.is_file():
        with members(source, SHEETS, limit=edition.limit, where=source) as listing:
            yield [_of_sheet(name, read, edition, source) for name, read in listing]
    else:
        yield _of_lists(source, edition)


def _of_sheet(name: str, read: Callable[[], bytes], edition: Edition, source: Path) -> Class:
    match = SHEET.fullmatch(name)
    if not match:
        raise DataError(
            f"{source}: expected images/<{'|'.join(SPLITS)}>/<class>.webp, found {name!r}"
        )
    return Class(match[1], match[2], partial(_sheet, read, edition, f"{source}: {name}"))


def _of_lists(lists: Path, edition: Edition) -> list[Class]:
    images = _images_beside(lists)
    classes = []
    for split in SPLITS:
        path = lists / f"{split}.txt"
        text = read_file(path, MAX_LIST_BYTES)
        names = text.decode("utf-8-sig").split()  # with or without a byte-order mark
        if len(text) > MAX_LIST_BYTES or not all(re.fullmatch(r"[\w-]+", name) for name in names):
            raise DataError(f"{path}: expected names of classes, one a line, found something else")
        classes += [Class(split, name, partial(_folder, images / name, edition)) for name in names]
    return classes


def _images_beside(lists: Path) -> Path:
    root = lists.parents[1]
    for images in (root / "data", root / "images"):
        if images.is_dir():
            return images
    raise DataError(f"{root}: expected data/ or images/ next to {LISTS}/, found neither")


def _read(source: Path, edition: Edition, quiet: bool) -> Decoded:
    """Read and verify the whole set, from the zip or the folder of lists."""
    with faults(source), _classes(source, edition) as found:
        classes, counts = arranged(found, source)
        if counts != edition.counts:
            raise DataError(
                f"{source}: expected {_numbers(edition.counts)} classes, found {_numbers(counts)}"
            )
        images = decode(classes, counts, edition.shape, quiet=quiet)
    if images.content != edition.content:
        expected = f"expected SHA-256 {edition.content}, found {images.content}"
        raise DataError(
            f"{source}: every image is there, but their content is not as published: {expected}"
        )
    return images


def _numbers(counts: tuple[int, ...]) -> str:
    return ", ".join(f"{count} {split}" for split, count in zip(SPLITS, counts, strict=True))


# ---- finding


def _locate(directory: Path) -> Path | None:
    """Return the zip in a directory, or else the folder of lists, or else None.

    It may be in a folder under its own name or under that of the authors' archive.
    """
    for below in (NAME, "cifar100", ""):
        for source in (directory / below / f"{NAME}.zip", directory / below / LISTS):
            if source.exists():
                return source
    return None


def _files(source: Path, edition: Edition) -> list[str]:
    """Return all files that the images may depend on."""
    if source.is_file():
        return [str(source)]
    found = []
    for folder in (source, _images_beside(source)):
        found += [entry.path for entry in files(folder, limit=edition.limit)]
    return found


def load(
    *,
    data: Path | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    edition: Edition = PUBLISHED,
) -> ColourImages:
    """Load CIFAR-FS from `data`, else from `$REPTILE_DATA`, else from the user's cache.

    It is never downloaded.

    data: directory that holds the zip or the folders, or whose `cifar_fs/` holds them. The same is
        expected of `$REPTILE_DATA`.
    cache: directory of this function's own, by default one of the user's.
    quiet: hide progress bars.

    Classes are in order of their names, a class's images in order of their digests. Raises
    DataError for a fault of what was found or named, and its kind Unavailable where nothing was.
    Warns of a cache that is damaged or cannot be written, and goes on without it.
    """
    cache, directory = cache_directory(cache), named_directory(data)
    with faults(directory):
        source = _locate(directory) if directory else None
    if source is None:
        if data is not None:
            raise DataError(
                f"data: expected {WANTED}, in {directory} or its {NAME}/, found neither"
            )
        return _kept(cache, edition)
    with faults(source):
        key = fingerprint((source.resolve(), edition), _files(source, edition))
    images = recall(cache, NAME, key)
    if images is None:
        images = _read(source, edition, quiet)
        remember(cache, NAME, images, key)
    return images.to_images(NAME, str(source), real=True)


def _kept(cache: Path, edition: Edition) -> ColourImages:
    """Return the images that an earlier start left in the cache.

    Raises Unavailable where there are none.
    """
    images = mapped(
        cache, NAME, (sum(edition.counts), *edition.shape), edition.counts, edition.content
    )
    if images is None:
        raise Unavailable(
            f"{NAME}: expected {WANTED}, in --data DIR or $REPTILE_DATA, found neither; it is not "
            "downloaded, since no address is known to last (see https://github.com/bertinetto/r2d2)"
        )
    return images.to_images(NAME, str(cache), real=True)
