"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): found, verified, made 28×28.

The data may come from anywhere (a colleague's zips, unpacked folders, a network). So only the
content is trusted, against what was published: the right drawings under the right names, byte for
byte. Each drawing is resized as the authors of Reptile did, by PIL's nearest neighbour. The result
is kept in a cache, itself verified on every start.
"""

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from reptile_core.datasets.archives import PNGS, Archive, files, members
from reptile_core.datasets.cache import (
    cache_directory,
    cache_file,
    checked,
    fingerprint,
    read_record,
    write_record,
)
from reptile_core.datasets.common import (
    Characters,
    DataError,
    Unavailable,
    faults,
    images_digest,
    named_directory,
)
from reptile_core.datasets.download import download

DRAWINGS = 20  # of each character, one by each of 20 people
ORIGINAL, SIZE = 105, 28  # pixels across: as published, and as in the paper's experiments
SHOWN = 3  # names in a message: enough to see the pattern
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"

Images = UInt8[np.ndarray, "characters drawings height width"]


@dataclass(frozen=True)
class Part:
    """One of the published sets; its characters are numbered on from those of the part before."""

    name: str
    characters: int
    content: str  # SHA-256 of the lines "<SHA-256 of the PNG>  <path>\n", sorted by path

    @property
    def limit(self) -> int:
        """The most files and folders to look at.

        macOS doubles the published 1.05 per drawing by hidden files.
        """
        return 4 * self.characters * DRAWINGS + 1000


@dataclass(frozen=True)
class Edition:
    """An edition of the data: what to look for, and what it must decode to."""

    parts: tuple[Part, ...]
    decoded: str  # SHA-256 of the 28×28 images, see `Characters.content`

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return sum(part.characters for part in self.parts), DRAWINGS, SIZE, SIZE


PUBLISHED = Edition(
    parts=(
        Part(
            "images_background",
            964,
            "deaa02f758afda524b3a045c7af40311f2d9ded3e2a39f715ece8470d474bc6a",
        ),
        Part(
            "images_evaluation",
            659,
            "3d5e035f27423c362bf9a181af649b43cda64c1008f842177ddc5203269c901e",
        ),
    ),
    decoded="e3b89e7b0eac8d8ef490cfeab642d238aff35b1bcaa898e5d9f14fbe6c78a923",  # with Pillow 13.0
)


# ---- verifying and decoding


def _some(names: list[str]) -> str:
    shown = list(map(repr, names[:SHOWN]))
    if len(names) > SHOWN:
        shown.append("…")
    return f"{len(names)}: {', '.join(shown)}"


def _in_order(names: list[str], part: Part, first: int, where: object) -> list[str]:
    """Return the paths in order of character and drawing.

    Raises DataError, which names what is missing or too many.
    """
    pattern = re.compile(
        rf"{re.escape(part.name)}/[^/]+/character[0-9]+/([0-9]{{4}}_[0-9]{{2}})\.png"
    )
    numbers = range(first, first + part.characters)
    found = dict.fromkeys(f"{c:04}_{d:02}" for c, d in product(numbers, range(1, DRAWINGS + 1)))
    extra = []
    for name in names:
        match = pattern.fullmatch(name)
        if match and found.get(match[1], "not one of these") is None:
            found[match[1]] = name
        else:
            extra.append(name)
    missing = [address for address, name in found.items() if name is None]
    lists = (("missing", missing), ("too many", extra))
    wrong = [f"{what} {_some(those)}" for what, those in lists if those]
    if wrong:
        wanted = (
            f"drawings 01 to {DRAWINGS} of characters {first:04} to {numbers[-1]:04} in "
            f"{part.name}/"
        )
        raise DataError(f"{where}: expected {wanted}, found {'; '.join(wrong)}")
    return [name for name in found.values() if name is not None]


def _decode(png: bytes, name: str) -> UInt8[np.ndarray, "28 28"]:
    """Decode one drawing as the authors of Reptile resized it."""
    from PIL import Image  # here, because a start from the cache decodes nothing

    if len(png) > PNGS.file_bytes:
        raise DataError(f"{name}: expected a PNG of at most {PNGS.file_bytes} bytes, found more")
    with faults(name), Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        if image.size != (ORIGINAL, ORIGINAL) or image.mode != "1":
            found = f"mode {image.mode!r}, {image.width}×{image.height}"
            raise DataError(
                f"{name}: expected mode '1' (1-bit), {ORIGINAL}×{ORIGINAL}, found {found}"
            )
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST), np.uint8)


def _read_part(source: Archive, part: Part, first: int, advance: Callable[[], object]) -> Images:
    where = source if isinstance(source, Path) else f"{part.name}.zip as downloaded"
    lines, drawings = [], []
    with faults(where), members(source, PNGS, limit=part.limit, where=where) as listing:
        readers = dict(listing)
        for name in _in_order([name for name, _ in listing], part, first, where):
            with faults(f"{where}: {name}"):
                png = readers[name]()
            drawings.append(_decode(png, f"{where}: {name}"))
            lines.append((name, f"{hashlib.sha256(png).hexdigest()}  {name}\n"))
            advance()
    content = hashlib.sha256("".join(line for _, line in sorted(lines)).encode()).hexdigest()
    if content != part.content:
        expected = f"expected SHA-256 {part.content}, found {content}"
        raise DataError(
            f"{where}: every drawing is there, but their content is not as published: {expected}"
        )
    return np.stack(drawings).reshape(part.characters, DRAWINGS, SIZE, SIZE)


def _read(sources: Mapping[str, Archive], edition: Edition, quiet: bool) -> Images:
    """Read and verify the whole set from its sources, given by part."""
    total = edition.shape[0] * DRAWINGS
    firsts = accumulate((part.characters for part in edition.parts[:-1]), initial=1)
    with tqdm(
        total=total, desc="verifying Omniglot", disable=quiet or None, delay=1, leave=False
    ) as bar:
        pairs = zip(edition.parts, firsts, strict=True)
        parts = [_read_part(sources[part.name], part, first, bar.update) for part, first in pairs]
    images = np.concatenate(parts)
    if (found := images_digest(images)) != edition.decoded:
        raise DataError(
            f"PIL: expected the verified drawings to decode to {edition.decoded}, found {found}"
        )
    return images


# ---- finding


def _locate(directory: Path, edition: Edition) -> dict[str, Path]:
    """Return each part's zip or folder below a directory; empty where it holds no part at all.

    Raises DataError where it holds only some of the parts.
    """
    found: dict[str, Path] = {}
    for part, below in product(edition.parts, ("omniglot", "omniglot/python", "", "python")):
        zipped, folder = directory / below / f"{part.name}.zip", directory / below / part.name
        if zipped.is_file() or folder.is_dir():
            found.setdefault(part.name, zipped if zipped.is_file() else folder)
    missing = [
        f"{part.name}.zip or {part.name}/" for part in edition.parts if part.name not in found
    ]
    if found and missing:
        there = " and ".join(map(str, found.values()))
        raise DataError(
            f"{directory}: expected {' and '.join(missing)} next to {there}, found none"
        )
    return found


def _named(data: Path | None, edition: Edition) -> dict[str, Path]:
    """Return the sources that the caller or else the environment names; empty if neither does.

    Raises DataError where they do not exist.
    """
    directory = named_directory(data)
    if directory is None:
        return {}
    with faults(directory):
        found = _locate(directory, edition)
    if data is not None and not found:
        wanted = " and ".join(f"{part.name}.zip (or {part.name}/)" for part in edition.parts)
        raise DataError(f"data: expected {wanted} in {directory} or its omniglot/, found neither")
    return found


# ---- the cache


def _cached(path: Path, edition: Edition) -> Images | None:
    """Return the decoded images, or None where the cache does not have them whole."""
    count = int(np.prod(edition.shape))

    def read() -> Images:
        with open(path, "rb") as file:
            content = file.read(count // 8 + 2**12)  # the bits, and npy's header
        packed = np.load(io.BytesIO(content), allow_pickle=False)
        return np.unpackbits(packed, count=count).reshape(edition.shape)

    return checked(path, read, images_digest, edition.decoded)


def _save(path: Path, images: Images) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.packbits(images), allow_pickle=False)
    cache_file(path, buffer.getvalue())


def _paths(sources: Mapping[str, Path], edition: Edition) -> Iterator[str]:
    """Yield every file that the images are read from, and every folder."""
    for part in edition.parts:
        source = sources[part.name].resolve()
        yield str(source)
        if source.is_dir():
            yield from (entry.path for entry in files(source, limit=part.limit))


def _record(cache: Path, sources: Mapping[str, Path]) -> Path:
    """Return the file that says which state of these sources was verified.

    There is one per place, so that none collide.
    """
    places = json.dumps([str(path.resolve()) for path in sources.values()])
    return cache / f"verified-{hashlib.sha256(places.encode()).hexdigest()[:16]}.json"


# ---- the four places, in order


def load(
    *,
    data: Path | None = None,
    cache: Path | None = None,
    fetch: bool = True,
    quiet: bool = False,
    edition: Edition = PUBLISHED,
) -> Characters:
    """Load Omniglot from the directory that is named or else from the user's cache or the network.

    data: the directory to read from, which holds, or whose `omniglot/` holds, each part as a zip or
        folder; without it $REPTILE_DATA, of which the same is expected.
    cache: directory of this function's own, by default one of the user's.
    fetch: whether the network may be used.
    quiet: hide progress bars.

    The images are in order of the published numbers. Raises DataError for a fault of what was found
    or named, and its kind Unavailable where nothing was. Warns of a cache that is damaged or cannot
    be written, and goes on without it.
    """
    cache = cache_directory(cache)
    decoded = cache / f"omniglot-{SIZE}-{edition.decoded[:12]}.npy"
    named = _named(data, edition)
    if named:
        images, source = _from_named(named, cache, decoded, edition, quiet)
    elif (ready := _cached(decoded, edition)) is not None:
        images, source = ready, str(decoded)
    else:
        images, source = _from_zips(cache, decoded, edition, fetch=fetch, quiet=quiet)
    return Characters(
        name="omniglot", images=images, source=source, content=edition.decoded, real=True
    )


def _from_named(
    named: Mapping[str, Path], cache: Path, decoded: Path, edition: Edition, quiet: bool
) -> tuple[Images, str]:
    """Read the sources that were named.

    They are verified in full, unless just this state of them was verified before.
    """
    source = " and ".join(map(str, named.values()))
    with faults(source):
        record, key = _record(cache, named), fingerprint((edition,), _paths(named, edition))
    if (
        read_record(record).get("fingerprint") == key
        and (images := _cached(decoded, edition)) is not None
    ):
        return images, source
    images = _read(named, edition, quiet)
    _save(decoded, images)
    write_record(record, {"fingerprint": key})
    return images, source


def _from_zips(
    cache: Path, decoded: Path, edition: Edition, *, fetch: bool, quiet: bool
) -> tuple[Images, str]:
    """Read the zips that were downloaded before, or else download them.

    What is downloaded now is kept once it is verified.
    """
    kept = {part.name: cache / f"{part.name}.zip" for part in edition.parts}
    if all(path.is_file() for path in kept.values()):
        try:
            images = _read(kept, edition, quiet)
            _save(decoded, images)
            return images, " and ".join(map(str, kept.values()))
        except DataError as error:
            warnings.warn(
                f"cache: a downloaded zip is damaged, will be fetched again: {error}", stacklevel=3
            )
    if not fetch:
        raise Unavailable(
            "Omniglot: expected it on this machine, as the network is not to be used, found none"
        )
    fetched = {
        name: download(f"{URL}{name}.zip", limit=PNGS.zip_bytes, quiet=quiet) for name in kept
    }
    try:
        images = _read(fetched, edition, quiet)
    except DataError as error:
        raise Unavailable(f"{URL}: what was downloaded is not Omniglot: {error}") from error
    for name, zipped in fetched.items():
        zipped.seek(0)
        cache_file(kept[name], zipped.read())
    _save(decoded, images)
    return images, URL
