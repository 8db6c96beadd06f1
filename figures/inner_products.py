"""Inner products and cosines of minibatch gradients.

They are drawn along meta-training, pair by pair, and after one step.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.curves import seeds_in_words
from figures.style import COLOURS, finish
from reptile_core.meta_gradients import Variant, figure_3

LINES = {1: "-", 2: "--", 4: "-"}
MARKERS = {"joint": "o", "sum": "s", "last": "^"}
HOLLOW: dict[str, Any] = {"markersize": 5, "markerfacecolor": "none", "clip_on": False}
WHEN = {"before": "at the initialization", "after": "after adaptation"}
MAX_LABELS = 12  # tasks that are numbered along an axis
DIRECTIONS = {
    "beyond": ("beyond k AvgGrad", COLOURS["sum"]),
    "opposite": ("its opposite", COLOURS["average"]),
    "AvgGrad": ("AvgGrad", COLOURS["joint"]),
}


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables inner_products_intervals, inner_products_gram and inner_products_changes."""
    return {
        "inner_products": _along_training(tables["inner_products_intervals"], settings),
        "inner_products_gram": _matrices(tables["inner_products_gram"], settings),
        "inner_products_steps": _steps(tables["inner_products_changes"], settings),
    }


def _along_training(table: pd.DataFrame, settings: Mapping[str, Any]) -> Figure:
    variants = [variant for variant in figure_3() if variant.name in settings["variants"]]
    shown = [when for when in WHEN if when in set(table.when)]
    panels = (("cosine", "within", "cosine"), ("inner product", "within", "inner product"),
              ("inner product", "self", "squared norm"))  # fmt: skip
    size = (11, 2.4 + 2.2 * len(shown) + 0.6 * (len(shown) == 1))
    figure, axes = plt.subplots(len(shown), len(panels), figsize=size, sharex=True, squeeze=False)
    for row, when in enumerate(shown):
        for ax, (quantity, pairs, label) in zip(axes[row], panels, strict=True):
            part = table[(table.when == when) & (table.quantity == quantity)]
            for variant in variants:
                colour, marker = COLOURS[variant.kind], MARKERS[variant.kind]
                mine = part[part.variant == variant.name]
                train = mine[mine.characters == "train"]
                _line(ax, train[train.pairs == pairs], variant)
                if pairs == "within":
                    between = train[train.pairs == "between"]
                    ax.plot(between.iteration, between["mean"], ":", color=colour, linewidth=1.1)
                test = mine[(mine.characters == "test") & (mine.pairs == pairs)]
                # An empty line that is not clipped would widen the axes to the figure's corner.
                if len(test):
                    ax.plot(test.iteration, test["mean"], marker, color=colour, **HOLLOW)
            ax.set_title(f"{label}, {WHEN[when]}", fontsize=9.5)
            ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            ax.xaxis.set_major_formatter("{x:,.0f}")
            ax.yaxis.set_major_formatter("{x:.1f}" if quantity == "cosine" else "{x:,.0f}")
            ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    for ax in axes[-1]:
        ax.set_xlabel("meta-iterations")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    within = table[
        (table.when == "before") & (table.quantity == "cosine") & (table.pairs == "within")
    ]
    mean = within[within.characters == "train"].set_index(["variant", "iteration"])["mean"]
    joint = variants[0].name
    longest = max(variants, key=lambda variant: (sum(variant.weights), variant.k))
    (first, *_, end) = sorted(within.iteration.unique())
    finding = (
        f"Gradients of one task's minibatches: cosine {mean[joint, first]:.2f} before "
        f"meta-training, {mean[joint, end]:.2f} after joint training, "
        f"{mean[longest.name, end]:.2f} after Reptile, k = {longest.k}"
    )
    caption = (
        (
            "Pairs of different minibatches. Solid and dashed lines: of one task; dotted: of two "
            "tasks, whose labels are dealt independently; training characters"
        )
        + ("; hollow marks: test characters. " if "test" in settings["characters"] else ". ")
        + (
            f"{settings['tasks']} tasks of {settings['n_way']} characters a seed with "
            f"{settings['minibatches']} disjoint minibatches of {settings['batch']}, the same "
            "tasks for every variant; gradients of the summed loss. Runs on a schedule of "
            f"{settings['schedule']:,} iterations.\n"
        )
        + (_adaptation_in_words(settings) if "after" in shown else "")
        + seeds_in_words(settings)
    )
    return finish(figure, finding, caption, right=0.85)


def _adaptation_in_words(settings: Mapping[str, Any]) -> str:
    return (
        f"After adaptation: each task's gradients after {settings['adaptation_steps']} SGD steps "
        f"($\\alpha$ = {settings['learning_rate']}) on its first minibatch, of the others. "
    )


def _line(ax: Axes, curve: pd.DataFrame, variant: Variant) -> None:
    """Draw a mean along training with its interval over seeds."""
    colour = COLOURS[variant.kind]
    ax.plot(
        curve.iteration,
        curve["mean"],
        LINES[variant.k],
        color=colour,
        marker=MARKERS[variant.kind],
        markersize=4,
        linewidth=1.5,
        label=f"${variant.label}$",
    )
    if curve.low.notna().any():
        ax.fill_between(
            curve.iteration, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0
        )


def _matrices(table: pd.DataFrame, settings: Mapping[str, Any]) -> Figure:
    """Draw Gram matrices as heat maps, one column for each point.

    Cosines are above, inner products below.
    """
    by_point = list(table.groupby(["variant", "iteration"], sort=False))
    size, names = settings["minibatches"], settings["variants"]
    figure, axes = plt.subplots(
        2, len(by_point), figsize=(3.6 * len(by_point) + 0.4, 7.4), squeeze=False
    )
    for column, ((variant, iteration), part) in enumerate(by_point):
        for ax, quantity in zip(axes[:, column], ("cosine", "inner_product"), strict=True):
            grid = part.pivot(index="row", columns="column", values=quantity)
            top = 1 if quantity == "cosine" else grid.abs().to_numpy().max()
            sns.heatmap(
                grid,
                ax=ax,
                vmin=-top,
                vmax=top,
                cmap="RdBu_r",
                square=True,
                cbar_kws={"shrink": 0.7, "format": "{x:,g}"},
            )
            ax.collections[0].colorbar.ax.tick_params(labelsize=7.5)
            edges = range(0, len(grid), size)
            width = 0.6 if len(edges) <= MAX_LABELS else 0.25
            for edge in edges[1:]:
                ax.axhline(edge, color="0.25", linewidth=width)
                ax.axvline(edge, color="0.25", linewidth=width)
            named = range(0, len(edges), -(-len(edges) // MAX_LABELS))
            middles = [edges[task] + size / 2 for task in named]
            numbers = [str(task + 1) for task in named]
            ax.set_xticks(middles, numbers, fontsize=8, rotation=0)
            ax.set_yticks(middles, numbers, fontsize=8, rotation=0)
            ax.set(xlabel="task", ylabel="task")
        run = "before meta-training"
        if iteration:
            run = f"after {iteration:,} iterations of ${names[variant]}$"
        axes[0][column].set_title(f"cosine, {run}", fontsize=9)
        axes[1][column].set_title(f"inner product, {run}", fontsize=9)
    cosines_in_words = []
    for (variant, iteration), part in by_point:
        within, between = _within_and_between(part, size)
        when = "before" if iteration == 0 else f"after ${names[variant]}$"
        within, between = round(within, 2) + 0.0, round(between, 2) + 0.0  # no -0.00
        cosines_in_words.append(f"{within:.2f}, {between:.2f} ({when})")
    finding = f"Cosines within a task, and between tasks: {'; '.join(cosines_in_words)}"
    caption = (
        f"All pairs of gradients of {size} minibatches of each task at the initialization; seed "
        f"{table.seed.iloc[0]}, training characters, the same tasks throughout, summed loss of "
        f"{settings['batch']} examples. The diagonal is a gradient with itself: 1, and its squared "
        "norm. Each map of inner products has its own scale; with independent minibatches longer "
        "gradients raise them at an equal cosine."
    )
    return finish(figure, finding, caption)


def _within_and_between(cells: pd.DataFrame, size: int) -> tuple[float, float]:
    """Return mean cosines over pairs of different gradients of one task, and of two tasks."""
    same = cells.row // size == cells.column // size
    return cells[same & (cells.row != cells.column)].cosine.mean(), cells[~same].cosine.mean()


def _steps(table: pd.DataFrame, settings: Mapping[str, Any]) -> Figure:
    """Draw the change of inner product, cosine and squared norm after one step.

    It is drawn for each direction, at the start and at the end.
    """
    panels = (
        ("inner product", "inner product, bounded"), ("cosine", "cosine"),
        ("squared norm", "squared norm, bounded"),
    )  # fmt: skip
    iterations = sorted(table.iteration.unique())
    figure, axes = plt.subplots(1, len(panels), figsize=(10.5, 4.6))
    for ax, (quantity, label) in zip(axes, panels, strict=True):
        of_quantity = table[table.quantity == quantity]
        for shift, (direction, (words, colour)) in zip(
            (-0.2, 0, 0.2), DIRECTIONS.items(), strict=True
        ):
            mine = of_quantity[of_quantity.direction == direction].set_index("iteration")
            mine = mine.loc[iterations, ["mean", "low", "high"]]
            x = [position + shift for position in range(len(iterations))]
            ax.plot(x, mine["mean"], "o", color=colour, markersize=6, label=words)
            ax.vlines(x, mine.low, mine.high, color=colour, linewidth=1.6)
        ax.axhline(0, color="0.3", linewidth=1)
        labels = [f"after {iteration:,}\niterations" for iteration in iterations]
        ax.set_xticks(range(len(iterations)), labels)
        ax.set_xlim(-0.5, len(iterations) - 0.5)
        ax.grid(visible=False, axis="x")
        ax.set_title(f"change of the {label}", fontsize=9.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    beyond = table[(table.direction == "beyond") & (table.quantity == "inner product")]
    beyond = beyond.set_index("iteration")["mean"]
    finding = (
        "A step along Reptile's update less k AvgGrad: inner product "
        f"{beyond[iterations[0]]:+.2f} at the start, {beyond[iterations[-1]]:+.2f} at the end"
    )
    k = settings["minibatches"]
    caption = (
        (
            f"One task's {k} minibatches of {settings['batch']}, E[$g_1 + \\ldots + g_{k}$] over "
            f"all their orders, exact ($\\alpha$ = {settings['learning_rate']}), along runs of "
            f"Reptile; steps of equal length, {settings['step_share']:g} of the outer step "
            f"($\\epsilon = {settings['outer_step']:g}$) on that task. Inner product and cosine: "
            "means over pairs of different minibatches. Bounded: (after - before) / (|after| + "
            f"|before|). {settings['step_tasks']} tasks at a point of a seed. "
        )
        + ("Bars: 95 % Student-t intervals over " if settings["seeds"] > 1 else "")
        + f"{settings['seeds']} seeds."
    )
    return finish(figure, finding, caption, right=0.84)
