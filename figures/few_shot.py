"""Section 6.1's tables as dots: our accuracy and, below it, the published one.

Each has its own interval. A panel is one benchmark with one number of shots.
"""

from collections.abc import Mapping
from textwrap import fill, shorten
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import COLOURS, finish

TITLES = {
    "omniglot-5way": "Omniglot 5-way",
    "omniglot-20way": "Omniglot 20-way",
    "mini-imagenet": "Mini-ImageNet 5-way",
    "cifar-fs": "CIFAR-FS 5-way",
}
# The paper's rows from the top, and what no meta-training gives.
ROWS = [
    ("maml", True),
    ("fomaml", True),
    ("reptile", False),
    ("reptile", True),
    ("untrained", False),
]
COLOUR = {
    "maml": COLOURS["maml"],
    "fomaml": COLOURS["last"],
    "reptile": COLOURS["sum"],
    "untrained": COLOURS["untrained"],
}
OURS: dict[str, Any] = {"fmt": "o", "markersize": 5.5, "capsize": 2}
PUBLISHED: dict[str, Any] = {
    "fmt": "D",
    "markersize": 4.5,
    "capsize": 2,
    "markerfacecolor": "white",
}
VALUE: dict[str, Any] = {
    "textcoords": "offset points",
    "ha": "right",
    "va": "center",
    "fontsize": 7.5,
    "color": "0.25",
}
APART = 0.15  # ours above the middle of its row, the published below
MEASURED, NOT_ASKED = "measured", "not asked for"  # statuses of a cell


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the table few_shot_summary: a row for each cell, in %.

    Benchmarks that were not asked for are left out.
    """
    summary = tables["few_shot_summary"]
    asked = set(summary.benchmark[summary.status != NOT_ASKED]) or set(TITLES)
    titles = {name: title for name, title in TITLES.items() if name in asked}
    if settings["main_data"] != "omniglot":
        titles = {
            name: title.replace("Omniglot", settings["main_data"]) for name, title in titles.items()
        }
    if len(titles) > 1:  # a column for each, a row for each number of shots
        figure, axes = plt.subplots(
            2, len(titles), figsize=(2.8 * len(titles) + 2.0, 8.6), sharey=True
        )
    else:
        figure, axes = plt.subplots(1, 2, figsize=(9.6, 5.2), sharey=True)
        axes = axes[:, None]
    for column, (benchmark, title) in enumerate(titles.items()):
        cells = summary[summary.benchmark == benchmark].groupby("shots")
        for ax, (shots, cell) in zip(axes[:, column], cells, strict=True):
            _draw_cell(ax, cell.set_index(["method", "transductive"]).loc[ROWS])
            ax.set_title(f"{title} {shots}-shot", fontsize=10)
    for ax in axes[-1] if len(titles) > 1 else axes.flat:
        ax.set_xlabel("accuracy on test classes (%)")
    axes[0, 0].errorbar([], [], xerr=[], color="0.2", label="here", **OURS)
    axes[0, 0].errorbar([], [], xerr=[], color="0.2", label="published", **PUBLISHED)
    axes[0, 0].legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.1), ncol=2, fontsize=9, columnspacing=1.2
    )
    return {
        "few_shot": finish(figure, finding(summary, settings, titles), caption(settings, titles))
    }


def finding(summary: pd.DataFrame, settings: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return the title: Reptile's first measured cell without transduction, and the paper's."""
    measured = summary[
        (summary.method == "reptile") & ~summary.transductive & (summary.status == MEASURED)
    ]
    if measured.empty:
        return "Few-shot accuracy: nothing measured of Reptile"
    cell = measured.iloc[0]
    benchmark = settings["benchmarks"][cell.benchmark]
    iterations, full = benchmark["scale"]["iterations"], benchmark["iterations"]
    words = f"{titles[cell.benchmark]} {cell.shots}-shot: Reptile reaches {cell['mean']:.1f} %"
    if iterations < full:
        words += f" after {iterations:,} of {full:,} meta-iterations"
    if pd.isna(cell.published) or settings["main_data"] != "omniglot":
        return words
    return f"{words}, the paper {cell.published:.1f} %"


def caption(settings: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return the caption, which explains the figure to a reader without the paper."""
    seeds, benchmarks = settings["seeds"], settings["benchmarks"]
    steps = {method: outer["step"] for method, outer in settings["outer"].items()}
    if seeds > 1:
        ours = f"mean of {seeds} seeds, bar: 95 % Student-t interval of that mean"
    else:
        ours = "one seed, bar: 95 % interval of the mean over tasks"
        if settings["split"] == "seed":
            ours += " and, where classes are drawn by seed, over splits"
    shots = settings["tail_shots"]
    tail = f"{shots} examples a class" if shots else "a minibatch of examples"
    trained = "; ".join(
        f"{TITLES[name]}: {b['scale']['iterations']:,} of {b['iterations']:,} meta-iterations, "
        f"{b['scale']['tasks']:,} test tasks"
        for name, b in benchmarks.items()
        if name in titles
    )
    return (
        "Reptile: $\\phi \\leftarrow \\phi - \\epsilon\\,(\\phi_1 - \\phi_{k+1})$, mean over "
        f"{settings['meta_batch']} tasks, $\\epsilon$ from {steps['reptile']:g} linearly to 0; k "
        "steps of Adam ($\\beta_1$ = 0, moments kept from task to task). FOMAML: the last step "
        f"alone, on {tail} that the steps before have not seen; MAML: the gradient of the loss on "
        f"those through the steps; both given to Adam ({steps['maml']:g}, annealed to 0).\n"
        f"Accuracy after {settings['evaluation_steps']} steps on the test task's shots, one test "
        "example per class; transduction: these are classified in one batch, so that batch norm "
        "sees them together; untrained: the random initialization.\n"
        f"Here: {ours}. Published: Reptile's from Nichol et al. 2018, MAML's and FOMAML's from "
        "Finn et al. 2017, MAML's on CIFAR-FS (not in the paper) from Bertinetto et al. 2019, in "
        "their own settings; bar: ± as published.\n"
        f"{trained}."
    )


def _draw_cell(ax: Axes, cell: pd.DataFrame) -> None:
    """Draw one panel: the rows of a cell from the top, each value written left of its bar."""
    middle = range(len(cell) - 1, -1, -1)
    for y, (method, _), row in zip(middle, cell.index, cell.itertuples(), strict=True):
        low, high = max(row.low, 0), min(row.high, 100)
        ours = [[row.mean - low], [high - row.mean]]
        ax.errorbar(row.mean, y + APART, xerr=ours, color=COLOUR[method], **OURS)
        ax.errorbar(
            row.published, y - APART, xerr=row.published_half, color=COLOUR[method], **PUBLISHED
        )
        low_published = row.published - row.published_half
        for value, end, side in ((row.mean, low, APART), (row.published, low_published, -APART)):
            if pd.notna(value):
                ax.annotate(f"{value:.1f}", (end, y + side), xytext=(-6, 0), **VALUE)
    ax.set_yticks(middle, cell.row)
    ax.set_ylim(-0.7, len(cell) - 0.4)
    trained = cell.drop("untrained", level="method")
    shown = cell if trained["mean"].isna().all() else trained
    half = shown.published_half
    parts = shown.low, shown.high, shown.published - half, shown.published + half
    ends = pd.concat(parts).clip(0, 100)
    left, right = ends.min(), ends.max()
    span = max(right - left, 5)
    ticks = MaxNLocator(5, integer=True).tick_values(left, right)
    ax.set_xticks([tick for tick in ticks if 0 <= tick <= 100])
    ax.set_xlim(left - 0.3 * span, right + 0.1 * span)
    for y, row in zip(middle, cell.itertuples(), strict=True):
        if row.mean < left - 0.3 * span:  # untrained, far below the others
            at = ax.get_yaxis_transform()
            ax.annotate(f"← {row.mean:.1f}", (0, y), xycoords=at, xytext=(40, 0), **VALUE)
    if cell["mean"].isna().all():
        row = cell.loc["reptile", False]
        reason = fill(
            shorten(f"not measured: {row.reason or row.status}", 80, placeholder=" …"), 36
        )
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # over the grid
        ax.text(0.03, 0.03, reason, transform=ax.transAxes, fontsize=7.5, color="0.35", bbox=box)
