"""Small minibatches against the full batch at equal training loss.

The panels show how aligned gradients are, and the test loss.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.style import COLOURS, finish

PANELS = {
    "cosine": "cosine of two minibatch gradients",
    "inner product": "inner product of two minibatch gradients",
    "variance": "variance of minibatch gradients (trace)",
    "generalization gap": "test loss − training loss (nats)",
    "test accuracy": "test accuracy",
}
# colour, marker, place next to the minibatch's size, words
STYLES = {
    "plain": (COLOURS["sum"], "s", 1.0, "minibatches of this size"),
    "another order": (COLOURS["last"], "o", 1.15, "the smallest in another order"),
    "settled": (COLOURS["other"], "D", 1.32, "the smallest, settled by full batch"),
    "half of the images": (COLOURS["joint"], "v", 1.0, "all of half of the images"),
}
JUDGED = ("cosine", "generalization gap")


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables sgd and sgd_summary.

    sgd: a row for each batch, variant, seed and quantity. sgd_summary: the same over seeds.
    """
    rows, summary = tables["sgd"], tables["sgd_summary"]
    figure, axes = plt.subplots(2, 3, figsize=(12, 7.6))
    for ax, (quantity, words) in zip(axes.flat, PANELS.items(), strict=False):
        _draw_panel(ax, rows[rows.quantity == quantity], summary[summary.quantity == quantity])
        ax.set_title(words, fontsize=9.5)
    axes[1, 2].set_axis_off()
    axes[1, 2].legend(
        *axes[0, 0].get_legend_handles_labels(), loc="center", fontsize=9.5, labelspacing=1.2
    )
    return {"sgd": finish(figure, finding(summary), caption(summary, settings))}


def finding(summary: pd.DataFrame) -> str:
    """Return the title: alignment and gap, small minibatches against the full batch."""
    mean = summary[summary.variant == "plain"].set_index(["quantity", "batch"])["mean"]
    small, full = summary.batch.min(), summary.batch.max()
    (cosine, gap) = ((mean[quantity, small], mean[quantity, full]) for quantity in JUDGED)
    return (
        f"At equal training loss, minibatches of {small} against the full batch:\n"
        f"gradients' cosine {cosine[0]:.3f} against {cosine[1]:.3f}, "
        f"generalization gap {gap[0]:.3f} against {gap[1]:.3f}"
    )


def caption(summary: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    """Return the caption, which explains the figure to a reader without the paper."""
    steps = summary[(summary.quantity == "steps") & (summary.variant == "plain")]["mean"]
    seeds, count, on = settings["seeds"], settings["training_images"], settings["measured_on"]
    bars = "Marks: one seed"
    if seeds > 1:
        bars = f"Marks: mean of {seeds} seeds with its 95 % Student-t interval"
    return (
        f"Digits classifier ({settings['network']}), SGD $\\phi \\leftarrow \\phi - \\alpha g$ "
        f"with $\\alpha$ = {settings['learning_rate']} on the mean loss of minibatches (epochs "
        f"without repeats of {count} training images), from one initialization a seed to the point "
        f"where the loss on all training images first is {settings['target']} nats "
        f"({steps.min():,.0f} … {steps.max():,.0f} steps in the mean). Gradients there: of "
        f"{count // on} disjoint minibatches of {on}, the same for all; means over all pairs. "
        f"{bars}; dots: single seeds. Another order: other random numbers for the order of the "
        "images alone. Settled: by full batch from "
        f"{settings['settled_from'] * settings['target']:g} nats on, without what the noise of "
        f"small minibatches adds to the mean gradient. Half of the images: {settings['half']}, in "
        "one batch, to the same loss on these alone; fewer images are known to generalize worse."
    )


def _draw_panel(ax: Axes, rows: pd.DataFrame, summary: pd.DataFrame) -> None:
    for variant, (colour, marker, shift, words) in STYLES.items():
        mine, points = (table[table.variant == variant] for table in (summary, rows))
        ax.scatter(points.batch * shift, points.value, s=9, color=colour, alpha=0.25, linewidths=0)
        reach = [mine["mean"] - mine.low, mine.high - mine["mean"]]
        ax.errorbar(
            mine.batch * shift, mine["mean"], yerr=reach, fmt=marker, color=colour, markersize=6,
            capsize=3, linestyle="-" if len(mine) > 1 else "none", linewidth=1.4, label=words,
        )  # fmt: skip
    batches = sorted(summary[summary.variant == "plain"].batch.unique())
    ax.set(xscale="log", xlabel="images in a training minibatch")
    labels = [f"{batch:,}" for batch in batches]
    labels[-1] += " (all)"
    ax.set_xticks(batches, labels)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(x=0.12)
