"""Noise of meta-gradients per unit of AvgGrad, relative to joint training's.

It is drawn by k, and along a run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from figures.style import COLOURS, finish
from reptile_core.meta_gradients import last, sum_of

FAMILIES = (
    ("Reptile", COLOURS["sum"], "s"),
    ("FOMAML", COLOURS["last"], "^"),
    ("MAML", COLOURS["maml"], "v"),
)


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the table variance_relative: columns update, iteration, mean, low, high, seeds."""
    table = tables["variance_relative"]
    iterations = sorted(table.iteration.unique())
    steps = [k for k in range(2, 10) if sum_of(k).name in settings["updates"]]
    ends = table[table.iteration == iterations[-1]].set_index("update")
    panels = 1 + (len(iterations) > 1)
    figure, axes = plt.subplots(1, panels, figsize=(3.2 + 4.8 * panels, 4.9), squeeze=False)
    _by_k(axes[0][0], ends, steps)
    axes[0][0].set_title(f"after {iterations[-1]:,} iterations", fontsize=10)
    if panels > 1:
        _along(axes[0][1], table, steps[-1])
    k = steps[-1]
    reptile, fomaml, maml = (ends["mean"][name] for name in _updates(k))
    finding = (
        f"Noise after {iterations[-1]:,} iterations, k = {k}: FOMAML "
        f"{fomaml / reptile:.2g}, MAML {maml / reptile:.2g} times Reptile's"
    )
    caption = (
        "$E|u - Eu|^2 / (\\sum w)^2$ of the update u from one task, relative to that of $g_1$, "
        "joint training: Reptile $g_1 + \\ldots + g_k$, FOMAML $g_k$, MAML with its second "
        "derivatives. This takes the mean of u to be $(\\sum w)$ AvgGrad, as the theory has it to "
        f"leading order. All at the same parameters, along runs of {settings['along']} on a "
        f"schedule of {settings['schedule']:,} iterations, on {settings['tasks']} tasks of a "
        f"point; geometric mean of {settings['seeds']} seeds"
    ) + (", bars: 95 % Student-t intervals of the log." if settings["seeds"] > 1 else ".")
    return {"variance": finish(figure, finding, caption)}


def _updates(k: int) -> tuple[str, str, str]:
    """Return the names of the updates of k steps in the table, in the order of FAMILIES."""
    return sum_of(k).name, last(k).name, f"MAML, k = {k}"


def _by_k(ax: Axes, rows: pd.DataFrame, steps: Sequence[int]) -> None:
    """Draw each update with its interval; joint training at k = 1."""
    _points(ax, [1], rows.loc[["g1"]], "joint training, $g_1$", COLOURS["joint"], "o")
    for shift, (family, (label, colour, marker)) in zip(
        (-0.12, 0, 0.12), enumerate(FAMILIES), strict=True
    ):
        mine = rows.loc[[_updates(k)[family] for k in steps]]
        _points(ax, [k + shift for k in steps], mine, label, colour, marker)
    ax.set_xticks([1, *steps])
    ax.set(xlabel="k", xlim=(0.6, steps[-1] + 0.4), ylabel="noise per unit of AvgGrad ($g_1$: 1)")
    ax.grid(visible=False, axis="x")
    _logarithmic(ax)
    ax.legend(fontsize=8)


def _along(ax: Axes, table: pd.DataFrame, k: int) -> None:
    """Draw each update of k steps at each point, with intervals."""
    for name, (_, colour, marker) in zip(_updates(k), FAMILIES, strict=True):
        mine = table[table["update"] == name].sort_values("iteration")
        _points(ax, mine.iteration.to_list(), mine, "", colour, marker)
        ax.plot(mine.iteration, mine["mean"], color=colour, linewidth=1)
    ax.axhline(1, color=COLOURS["joint"], linewidth=1)
    ax.set_xlabel("meta-iterations")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set_title(f"along the run, k = {k}", fontsize=10)
    _logarithmic(ax)


def _logarithmic(ax: Axes) -> None:
    """Make the axis logarithmic, with plain numbers at 1, 2 and 5."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _points(
    ax: Axes, x: Sequence[float], rows: pd.DataFrame, label: str, colour: str, marker: str
) -> None:
    ax.plot(x, rows["mean"], marker, color=colour, markersize=5.5, label=label)
    ax.vlines(x, rows.low, rows.high, color=colour, linewidth=1.4)
