"""The images that tasks are made of, by name: Omniglot or a stand-in, and colour photographs.

Where the stand-in is used, that is always announced.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args, overload

from reptile_core.datasets import cifar_fs, glyphs, mini_imagenet, omniglot
from reptile_core.datasets.common import (
    Characters,
    ColourImages,
    DataError,
    Unavailable,
    images_digest,
)

__all__ = ["Characters", "ColourImages", "DataError", "Unavailable", "load"]

OfCharacters = Literal["auto", "omniglot", "glyphs"]
OfPhotographs = Literal["cifar_fs", "mini_imagenet"]
PHOTOGRAPHS: dict[str, Callable[..., ColourImages]] = {
    "cifar_fs": cifar_fs.load,
    "mini_imagenet": mini_imagenet.load,
}
NAMES = (*get_args(OfCharacters), *get_args(OfPhotographs))

STAND_IN_SEED = 0  # everyone without Omniglot sees the same stand-in

NOTICE = """\
**********************************************************************
**  THIS IS NOT OMNIGLOT. The characters are made up, and no number **
**  that comes of them says anything about the paper's experiments. **
**********************************************************************
**  Why: {why}
**  To run on Omniglot, do one of these:
**    - pass --data DIR, where DIR (or DIR/omniglot) holds
**      images_background.zip and images_evaluation.zip
**    - set REPTILE_DATA to such a directory
**    - allow the network, to fetch them once (15 MB) from
**      {url}
**********************************************************************"""


def _glyphs() -> Characters:
    images = glyphs.generate(seed=STAND_IN_SEED)
    source = f"generated from seed {STAND_IN_SEED}"
    return Characters(
        name="glyphs", images=images, source=source, content=images_digest(images), real=False
    )


@overload
def load(
    name: OfCharacters = ...,
    *,
    data: Path | None = ...,
    cache: Path | None = ...,
    fetch: bool = ...,
    quiet: bool = ...,
) -> Characters: ...


@overload
def load(
    name: OfPhotographs, *, data: Path | None = ..., cache: Path | None = ..., quiet: bool = ...
) -> ColourImages: ...


def load(
    name: OfCharacters | OfPhotographs = "auto",
    *,
    data: Path | None = None,
    cache: Path | None = None,
    fetch: bool = True,
    quiet: bool = False,
) -> Characters | ColourImages:
    """Return images by name.

    name: for characters "omniglot", "glyphs", or "auto" for Omniglot if it can be found and else
        the glyphs; for photographs "cifar_fs" or "mini_imagenet".
    data: the directory to read from; without it $REPTILE_DATA. Without either, Omniglot and
        CIFAR-FS come from the cache. Not for the glyphs, which are generated.
    cache: directory of the cache, by default the user's.
    fetch: whether Omniglot, and only Omniglot, may also be fetched from the network.
    quiet: hide progress. The notice on stderr that glyphs took Omniglot's place is always shown.

    See `load` of each module. Raises DataError
    - for an unknown name;
    - where `data` or `$REPTILE_DATA` names a directory that does not exist;
    - where `data` does not hold what is named, or is given with "glyphs";
    - where data are not what they should be;
    - where what is named cannot be found.
    """
    if name not in NAMES:
        raise DataError(f"name: expected one of {', '.join(NAMES)}, found {name!r}")
    if name in PHOTOGRAPHS:
        return PHOTOGRAPHS[name](data=data, cache=cache, quiet=quiet)
    if name == "glyphs":
        if data is not None:
            raise DataError(
                f"data: expected none with the glyphs, which are generated, found {str(data)!r}"
            )
        return _glyphs()
    try:
        return omniglot.load(data=data, cache=cache, fetch=fetch, quiet=quiet)
    except Unavailable as error:
        if name == "omniglot":
            raise
        print(NOTICE.format(why=error, url=omniglot.URL), file=sys.stderr, flush=True)
        return _glyphs()
