"""Accuracy on each kind of split, run by run, and what another split would change.

The change is shown with the paper's ±.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS, finish

KINDS = {"seed": "drawn by seed", "authors": "the authors' own"}
COLOUR = {"seed": COLOURS["sum"], "authors": COLOURS["last"]}
CELLS = [(1, False), (1, True), (5, False), (5, True)]


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables splits (a row for each run and cell) and splits_shares."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.2), width_ratios=(1, 1.6))
    table, shares = tables["splits"], tables["splits_shares"]
    _accuracies(left, table[(table.shots == 1) & ~table.transductive], settings)
    _shares(right, shares)
    return {"splits": finish(figure, finding(shares), caption(settings))}


def finding(shares: pd.DataFrame) -> str:
    """Return the title: the first cell's share, mean over runs, and the paper's."""
    cell = shares[(shares.shots == 1) & ~shares.transductive]
    return (
        "Another choice of characters moves the 1-shot error rate by ± "
        f"{100 * cell.share.mean():.0f} % (control: {100 * cell.shuffled.mean():.0f} %); the "
        f"paper's ± is {100 * cell.published.mean():.0f} %"
    )


def caption(settings: Mapping[str, Any]) -> str:
    """Return the caption, which explains the figure to a reader without the paper."""
    benchmark, runs = settings["benchmark"], settings["seeds"] * len(settings["kinds"])
    return (
        f"Reptile, Omniglot {benchmark['n_way']}-way, {settings['iterations']:,} of the table's "
        f"{benchmark['iterations']:,} meta-iterations, all else as there; {runs} runs, "
        f"{settings['tasks']:,} test tasks for each cell, {settings['evaluation_steps']} steps.\n"
        "Left: accuracy of every run, 1-shot without transduction; thick bar: 95 % interval over "
        "tasks; thin bar: over tasks and splits. Right: half of a 95 % interval over splits, as a "
        "share of the error rate: from the covariance of tasks that share a test character, in "
        "every run (dots; line: their mean); the same with characters exchanged among tasks "
        "(crosses: must be near 0); and the paper's ± over its own error rate (diamonds). T: with "
        "transduction."
    )


def _accuracies(ax: Axes, cell: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    for x, kind in enumerate(settings["kinds"]):
        colour = COLOUR[kind]
        part = cell[cell.split == kind].sort_values("seed")
        at = x + np.linspace(-0.2, 0.2, len(part)) if len(part) > 1 else [float(x)]
        ax.errorbar(
            at,
            100 * part.value,
            yerr=100 * part.over_both,
            fmt="none",
            ecolor=colour,
            elinewidth=1,
            capsize=3,
        )
        ax.errorbar(
            at,
            100 * part.value,
            yerr=100 * part.over_tasks,
            fmt="o",
            color=colour,
            elinewidth=3,
            markersize=5,
        )
    ax.set_xticks(range(len(settings["kinds"])), [KINDS[kind] for kind in settings["kinds"]])
    ax.set_xlim(-0.6, len(settings["kinds"]) - 0.4)
    ax.set_xlabel("characters that train")
    ax.set_ylabel("accuracy on test characters (%)")
    ax.set_title("1-shot, each run", fontsize=10)
    ax.grid(False, axis="x")


def _shares(ax: Axes, shares: pd.DataFrame) -> None:
    for x, (shots, transductive) in enumerate(CELLS):
        cell = shares[(shares.shots == shots) & (shares.transductive == transductive)]
        at = x + np.linspace(-0.18, 0.18, len(cell)) if len(cell) > 1 else np.array([float(x)])
        ax.plot(
            [x - 0.25, x + 0.25], [100 * cell.share.mean()] * 2, color=COLOURS["sum"], linewidth=1.2
        )
        drawn = [
            ax.plot(at, 100 * cell.share, "o", color=COLOURS["sum"], markersize=5),
            ax.plot(at, 100 * cell.shuffled, "x", color=COLOURS["joint"], markersize=5),
            ax.plot(
                x,
                100 * cell.published.mean(),
                "D",
                color=COLOURS["last"],
                markerfacecolor="white",
                zorder=3,
            ),
        ]
    ax.set_xticks(range(len(CELLS)), [f"{shots}-shot{', T' if t else ''}" for shots, t in CELLS])
    ax.set_ylabel("± as a share of the error rate (%)")
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    ax.set_title("what each run says of other splits", fontsize=10)
    labels = "another split", "the same, characters exchanged", "the paper's ±"
    ax.legend([lines[0] for lines in drawn], labels, loc="upper left", fontsize=8.5)
    ax.grid(False, axis="x")
