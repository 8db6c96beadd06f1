"""One look for all figures: type, colours and the line that names the data.

The colour-blind can tell the colours apart.
"""

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from reptile_core.files import write_atomically

# Okabe and Ito's palette (2008), by what a curve is: a method has one colour in all figures.
# "other" and "another" are for curves that belong to one figure alone.
COLOURS = {
    "joint": "#6b6b6b",
    "sum": "#0072B2",
    "average": "#56B4E9",
    "last": "#D55E00",
    "maml": "#CC79A7",
    "untrained": "#009E73",
    "other": "#E69F00",
    "another": "#000000",
}
WARNING = "#B00020"
FORMULA = r"\$[^$]*\$"
CHARACTERS_AN_INCH = 17.5  # of captions, at 7.5 points in DejaVu Sans


@contextmanager
def style() -> Iterator[None]:
    """Apply settings for drawing, and undo them afterwards.

    Text stays text in SVG, with ids that do not change from run to run.
    """
    settings: dict[Any, Any] = {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.dpi": 150,
        "font.family": "DejaVu Sans",
        "legend.frameon": False,
        "mathtext.fontset": "dejavusans",
        "pdf.fonttype": 42,  # text stays text in PDF too
        "svg.fonttype": "none",
        "svg.hashsalt": "reptile",
    }
    with (
        sns.axes_style("whitegrid"),
        sns.plotting_context("paper", font_scale=1.1),
        mpl.rc_context(settings),
    ):
        yield


def finish(figure: Figure, finding: str, caption: str, *, right: float = 1.0) -> Figure:
    """Add the finding as title, and the caption, wrapped, under the axes.

    There is room for the caption's lines and for the stamp.
    right: share of the width at which the axes end.
    """
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11.5, weight="bold")
    inch = figure.get_figheight()
    lines = _wrapped(caption, round(CHARACTERS_AN_INCH * figure.get_figwidth()))
    figure.text(0.01, 0.24 / inch, "\n".join(lines), fontsize=7.5, color="0.25", va="bottom")
    figure.tight_layout(rect=(0, (0.27 + 0.14 * len(lines)) / inch, right, 1 - 0.1 / inch))
    return figure


def _wrapped(caption: str, width: int) -> list[str]:
    """Return the caption in lines of at most `width` characters.

    Formulas are not broken. Each counts as about as many characters as are drawn of it.
    """
    formulas = re.findall(FORMULA, caption)
    held = re.sub(FORMULA, lambda formula: "\0" * _drawn(formula[0]), caption)
    lines: list[str] = []
    for part in held.split("\n"):
        lines += textwrap.wrap(part, width, break_on_hyphens=False)
    return re.sub("\0+", lambda _: formulas.pop(0), "\n".join(lines)).split("\n")


def _drawn(formula: str) -> int:
    """Return about how many characters are drawn of a formula: a command counts as one."""
    return max(1, len(re.sub(r"[{}$^_]|\\,", "", re.sub(r"\\[a-zA-Z]+ ?", "x", formula))))


def stamp(figure: Figure, text: str, *, real: bool) -> None:
    """Name data and scale under the figure.

    Data that are not the real ones get a colour that is not overlooked.
    """
    figure.text(
        0.01, 0.005, text, ha="left", va="bottom", fontsize=7.5,
        color="0.35" if real else WARNING, weight="normal" if real else "bold",
    )  # fmt: skip


def save(figure: Figure, folder: Path, name: str, *, experiment: str) -> list[Path]:
    """Write PNG, SVG and PDF, without dates, so that the same table gives the same file.

    The files' metadata hold the words of the figure. Title is the finding, Description (in PDF
    Subject) the caption and the data, Source (Keywords) the experiment.
    """
    finding = figure.get_suptitle()
    texts = [text.get_text() for text in figure.texts if text.get_text() != finding]
    title, description = {"Title": finding}, " ".join(" ".join(texts).split())
    words = title | {"Description": description, "Source": experiment}
    kinds: dict[str, dict[str, Any]] = {
        "png": words | {"Software": None},
        "svg": words | {"Date": None},
        "pdf": title | {"Subject": description, "Keywords": experiment, "CreationDate": None},
    }
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    for path, (kind, metadata) in zip(paths, kinds.items(), strict=True):
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata)
        write_atomically(path, content.getbuffer())
    plt.close(figure)
    return paths
