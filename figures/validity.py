"""The validity map: what share of g_i - g_bar_i the Taylor series explains.

The share is given by step, learning rate and progress of training.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS, finish

ORDERS = {1: "first order", 2: "first and second order"}
MOSTLY = 2 / 3  # of q: more than half is explained
# Of the learning rates in the maps, as a multiple of the one used; the curves show them all.
SMALLEST = 2.0**-6


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables validity and validity_map.

    validity: columns seed, iteration, task, i, term, q, cosine.
    validity_map: columns seed, iteration, task, activation, alpha, i, order, explained, sharpness.
    """
    table, used = tables["validity_map"], settings["learning_rate"]
    table = table.assign(explained=100 * table.explained.clip(lower=0), multiple=table.alpha / used)
    relu = table[table.activation == "relu"]
    ends = sorted({table.iteration.min(), table.iteration.max()})
    widths = [1] * len(ends) + [1.2]
    figure, axes = plt.subplots(
        len(ORDERS), len(ends) + 1, figsize=(11.5, 6.6), width_ratios=widths, squeeze=False
    )
    for row, (order, words) in enumerate(ORDERS.items()):
        for column, iteration in enumerate(ends):
            ax = axes[row][column]
            here = (relu.order == order) & (relu.iteration == iteration)
            _draw_map(ax, relu[here & (relu.multiple >= SMALLEST)])
            ax.set_title(f"{words}, after {iteration:,} iterations", fontsize=9.5)
            if row == len(ORDERS) - 1:
                ax.set_xlabel(f"$\\alpha$ / {used} (1, framed: the one used)", fontsize=9)
        _draw_curves(axes[row][-1], table[table.order == order], ends)
        axes[row][-1].set_title(f"{words}, all steps", fontsize=9.5)
    axes[-1][-1].legend(fontsize=7.5, loc="lower left", handlelength=3.6)
    axes[-1][-1].set_xlabel("$\\alpha\\,\\lambda_{max}$ of a minibatch's Hessian", fontsize=9)
    own = tables["validity"][tables["validity"].term == "own"]
    cosine = own.groupby("iteration").cosine.mean()
    most = 100 * (own.q > MOSTLY).groupby(own.iteration).mean()
    finding = (
        f"First-order term and $g_i - \\bar g_i$: cosine {cosine.iloc[0]:.2f} at the start, "
        f"{cosine.iloc[-1]:.2f} at the end; more than half explained in {most.iloc[0]:.0f} %, "
        f"{most.iloc[-1]:.0f} % of cases"
    )
    caption = (
        f"Title: at the learning rate used; {settings['seeds']} seeds × {settings['tasks']} tasks "
        f"× {own.i.nunique()} steps. Panels: a picture of one seed, {table.seed.iloc[0]}, and "
        f"{_tasks(settings['map_tasks'])}. Explained share in %, $1 - |g_i - \\bar g_i - "
        "\\mathrm{terms}|^2 / |g_i - \\bar g_i|^2$ (below 0: 0), where $g_i$ is the gradient that "
        "SGD meets at step i and $\\bar g_i$ that of the same minibatch at the start. Maps: the "
        f"paper's ReLU network along a run of {settings['variant']}; minibatches of "
        f"{settings['batch']}, summed loss, {settings['dtype']}. Right: the same, and the network "
        "with softplus at the same parameters. Kinks of ReLU, which the series does not see, spoil "
        "it at small $\\alpha$, curvature at large; beyond $\\alpha\\,\\lambda_{max}$ = 2 (dotted) "
        "gradient descent on a quadratic is unstable."
    )
    return {"validity": finish(figure, finding, caption)}


def _tasks(count: int) -> str:
    return f"{count} task{'s' * (count > 1)}"


def _draw_map(ax: Axes, rows: pd.DataFrame) -> None:
    grid = rows.groupby(["i", "multiple"]).explained.mean().unstack("multiple")
    sns.heatmap(
        grid,
        ax=ax,
        vmin=0,
        vmax=100,
        cmap="cividis",
        annot=True,
        fmt=".0f",
        annot_kws={"fontsize": 7.5},
        cbar=False,
    )
    labels = [f"1/{1 / m:.0f}" if m < 1 else f"{m:.0f}" for m in grid.columns]
    ax.set_xticklabels(labels, rotation=0, fontsize=7.5)
    ax.set_yticklabels([f"$g_{i}$" for i in grid.index], rotation=0)
    ax.set(xlabel="", ylabel="")
    at = (list(grid.columns).index(1.0), 0)
    ax.add_patch(
        plt.Rectangle(at, 1, len(grid), fill=False, edgecolor=COLOURS["last"], linewidth=2)
    )


def _draw_curves(ax: Axes, rows: pd.DataFrame, ends: list[int]) -> None:
    """Draw the mean share over steps and tasks against the median of alpha lambda_max."""
    for activation, colour in (("relu", COLOURS["last"]), ("softplus", COLOURS["sum"])):
        for iteration, line in zip(ends, ("-", "--"), strict=False):
            mine = rows[(rows.activation == activation) & (rows.iteration == iteration)]
            by_alpha = mine[mine.sharpness > 0].groupby("alpha")
            by = by_alpha.agg({"explained": "mean", "sharpness": "median"})
            name = {"relu": "ReLU", "softplus": "softplus"}[activation]
            ax.plot(
                by.sharpness,
                by.explained,
                line,
                color=colour,
                marker=".",
                markersize=4,
                linewidth=1.3,
                label=f"{name}, after {iteration:,}",
            )
    ax.axvline(2, color="0.4", linestyle=":", linewidth=1)
    # Room for the legend where all is 100 %.
    ax.set(xscale="log", ylim=(-3, 103), xlim=(1e-10, None))
    ax.set_ylabel("explained share (%)", fontsize=9)
