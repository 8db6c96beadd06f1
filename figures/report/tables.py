"""The tables that the report shows whole, and how they are laid out there."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.results import wording
from analysis.results.tables import ResultsError, read_csv

INTERVAL = {"mean": "mean", "low": "from", "high": "to", "seeds": "seeds"}
BENCHMARKS = {
    "omniglot-5way": "Omniglot",
    "omniglot-20way": "Omniglot",
    "mini-imagenet": "Mini-ImageNet",
    "cifar-fs": "CIFAR-FS",
}
ENTRY = ("benchmark", "row", "shots", "mean", "low", "high", "published", "published_half")


@dataclass(frozen=True)
class Shown:
    """A table of the report.

    rows: text or numbers, as many as there are columns. data: the lines that name the data.
    """

    caption: str
    data: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Layout:
    """A table of an experiment and how it is shown.

    columns: headings of the columns that are shown, by name.
    images: what the line of its data names, where the experiment has several such lines.
    arrange: makes the columns from others, `of`. Without it they are the table's own.
    """

    experiment: str
    name: str
    caption: str
    columns: Mapping[str, str]
    images: str = ""
    arrange: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    of: tuple[str, ...] = ()


def in_percent(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of means and intervals of an accuracy, in % with one decimal."""
    words = {
        name: table[name].map(lambda share: "-" if pd.isna(share) else f"{100 * share:.1f}")
        for name in ("mean", "low", "high")
    }
    return table.assign(**words)


def papers(summary: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """Return the accuracies on a benchmark in the paper's layout.

    There is a row for each method with a measurement, and a column for each number of shots.
    Entries are "ours ± half its interval (published ± its own)", in %.
    """
    mine = summary[summary.benchmark == benchmark]
    mine = mine[mine.groupby("row")["mean"].transform("count") > 0]
    entries = []
    for cell in mine.itertuples():
        ours = _words(cell.mean, (cell.high - cell.low) / 2)
        published = _words(cell.published, cell.published_half)
        entries.append(f"{ours} ({published})")
    columns = mine.shots.astype(str) + "-shot"
    wide = mine.assign(entry=entries, column=columns).pivot(
        index="row", columns="column", values="entry"
    )
    return wide.loc[mine.row.unique()].reset_index()


def shown(folder: Path, experiment: str, data: tuple[str, ...]) -> Iterator[Shown]:
    """Yield the tables of LAYOUTS that the experiment has written, unless they are empty.

    data: the lines that name the data.
    Raises ResultsError where a column is missing, or a cell is not a number or not unique.
    """
    for layout in LAYOUTS:
        path = folder / f"{layout.name}.csv"
        if layout.experiment != experiment or not path.exists():
            continue
        table = read_csv(path)
        wanted = layout.of or layout.columns
        if missing := [column for column in wanted if column not in table.columns]:
            raise ResultsError(
                f"{path}: expected the column {missing[0]!r}, found {', '.join(table.columns)}"
            )
        if layout.arrange is not None:
            try:
                table = layout.arrange(table)
            except (TypeError, ValueError) as error:
                raise ResultsError(
                    f"{path}: expected a number in each cell and each once, found {error}"
                ) from error
        columns = [column for column in layout.columns if column in table.columns]
        rows = tuple(table[columns].itertuples(index=False, name=None))
        own = tuple(line for line in data if layout.images.lower() in line.lower())
        if rows:
            headings = tuple(layout.columns[column] for column in columns)
            yield Shown(layout.caption, own, headings, rows)


def _words(mean: float, half: float) -> str:
    return "-" if pd.isna(mean) else f"{mean:.2f} ± {half:.2f}"


def _of_benchmark(benchmark: str, images: str) -> Layout:
    return Layout(
        "few_shot",
        "few_shot_summary",
        (
            f"Accuracy in % on {images}: measured here ± half a 95 % interval, in brackets as "
            "published; - where not"
        ),
        {"row": "method"} | {f"{shots}-shot": f"{benchmark} {shots}-shot" for shots in (1, 5)},
        images,
        partial(papers, benchmark=benchmark),
        ENTRY,
    )


LAYOUTS = (
    Layout(
        "ablation",
        "ablation_summary",
        f"Accuracy in % after training by meta-gradient: {wording.MEASURED}",
        {"variant": "meta-gradient", **INTERVAL},
        arrange=in_percent,
    ),
    *(_of_benchmark(benchmark, images) for benchmark, images in BENCHMARKS.items()),
    Layout(
        "rho",
        "rho_pairs",
        (
            "Difference in accuracy early in training, in points, of sums of inner gradients that "
            f"differ in: {wording.MEASURED}"
        ),
        {"differ": "differ in", **INTERVAL},
        arrange=in_percent,
    ),
)
