"""The characters that tasks are made of: Omniglot, as in the paper, or a stand-in that always says so."""

import sys
from pathlib import Path
from typing import Literal, get_args

from reptile_core.datasets import glyphs, omniglot
from reptile_core.datasets.common import Characters, DataError, Unavailable, digest

__all__ = ["Characters", "DataError", "Unavailable", "load"]

Name = Literal["auto", "omniglot", "glyphs"]

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
    return Characters(name="glyphs", images=images, source=source, content=digest(images), real=False)


def load(
    name: Name = "auto", *, data: Path | None = None, cache: Path | None = None, quiet: bool = False
) -> Characters:
    """The characters by name: "omniglot", "glyphs", or "auto" for Omniglot if it can be had, else the glyphs.

    Omniglot is looked for in `data`, `$REPTILE_DATA`, `cache` (by default the user's) and on the network;
    see `omniglot.load`. That glyphs took its place is announced on stderr whatever `quiet` says, which hides
    only progress. Raises DataError for an unknown name; for `data` or `$REPTILE_DATA` named but not there;
    for `data` without Omniglot, or beside "glyphs"; for data that are not Omniglot's; where "omniglot" is
    not to be had.
    """
    if name not in get_args(Name):
        raise DataError(f"name: expected one of {', '.join(get_args(Name))}, found {name!r}")
    if name == "glyphs":
        if data is not None:
            raise DataError(f"data: expected none with the glyphs, which are generated, found {str(data)!r}")
        return _glyphs()
    try:
        return omniglot.load(data=data, cache=cache, quiet=quiet)
    except Unavailable as error:
        if name == "omniglot":
            raise
        print(NOTICE.format(why=error, url=omniglot.URL), file=sys.stderr, flush=True)
        return _glyphs()
