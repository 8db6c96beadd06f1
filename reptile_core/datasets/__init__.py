"""The images that tasks are made of, by name: Omniglot, or a stand-in that always says so; colour
photographs."""

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
    """Return images by name: of characters "omniglot", "glyphs", or "auto" for Omniglot if it can
    be had, else the glyphs; of photographs "cifar_fs" or "mini_imagenet".

    All but the glyphs are looked for in `data`, `$REPTILE_DATA`, `cache` (by default the user's)
    and, Omniglot alone, on the network, if `fetch` allows it; see `load` of each. That glyphs took
    Omniglot's place is announced on stderr whatever `quiet` says, which hides only progress. Raises
    DataError for an unknown name; for `data` or `$REPTILE_DATA` named but not there; for `data`
    without what is named, or with "glyphs"; for data that are not what they should be; where what
    is named is not to be had.
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
