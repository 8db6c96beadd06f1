"""Figure 4: final accuracy against inner steps, minibatch size and outer step.

Each method with its choice of minibatches is a curve.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.curves import draw_curve, schedule_in_words, seeds_in_words
from figures.style import COLOURS, finish

STYLES = {
    "Reptile, cycling": (COLOURS["sum"], "s", "-"),
    "FOMAML, separate tail": (COLOURS["last"], "^", "-"),
    "FOMAML, shared tail, cycling": (COLOURS["other"], "o", "--"),
    "FOMAML, shared tail, replacement": (COLOURS["another"], "D", ":"),
}

AT_THE_END_OF = {
    "steps": "After {:g} inner steps",
    "batch": "At {:g} samples in a minibatch",
    "outer_step": "With an outer step of {:g}",
}


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the table overlap_intervals: columns sweep, method, point, mean, low, high."""
    intervals, fixed = tables["overlap_intervals"], settings["fixed"]
    samples = settings["n_way"] * settings["train_shots"]
    titles = {
        "steps": (f"minibatches of {fixed['batch']}", "inner steps k", samples / fixed["batch"]),
        "batch": (
            f"{fixed['steps']} inner steps",
            "samples in a minibatch",
            samples / fixed["steps"],
        ),
        "outer_step": (f"{fixed['steps']} inner steps, full batch", "outer step $\\epsilon$", None),
    }
    shown = [sweep for sweep in titles if settings["grid"][sweep]]
    figure, axes = plt.subplots(1, len(shown), figsize=(10.5, 5.2), sharey=True, squeeze=False)
    for ax, sweep in zip(axes[0], shown, strict=True):
        for method, (colour, marker, line) in STYLES.items():
            mine = intervals[(intervals.sweep == sweep) & (intervals.method == method)]
            mine = mine.sort_values("point")
            if not mine.empty:
                draw_curve(ax, mine, "point", colour=colour, marker=marker, line=line, label=method)
        title, label, edge = titles[sweep]
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(label)
        if sweep != "steps":
            ax.set_xscale("log", base=2)
            ax.xaxis.set_minor_locator(NullLocator())
        places = settings["grid"][sweep]
        ax.set_xticks(places, [f"{x:g}" for x in places], fontsize=8)
        if edge is not None:
            _mark_overlap(ax, edge)
    axes[0][0].set_ylabel("final accuracy on test characters (%)")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return {"overlap": finish(figure, finding(intervals), caption(settings), right=0.76)}


def finding(intervals: pd.DataFrame) -> str:
    """Return the title: both tails of FOMAML at the last point of the first sweep that is there."""
    sweep = next(sweep for sweep in AT_THE_END_OF if (intervals.sweep == sweep).any())
    here = intervals[intervals.sweep == sweep]
    point = here.point.max()
    most = here[here.point == point].set_index("method")["mean"]
    separate = f"{100 * most['FOMAML, separate tail']:.0f} %"
    shared = f"{100 * most['FOMAML, shared tail, cycling']:.0f} %"
    return (
        f"{AT_THE_END_OF[sweep].format(point)} FOMAML ends at {separate} with a tail of its own, "
        f"{shared} without"
    )


def caption(settings: Mapping[str, Any]) -> str:
    """Return the caption, which explains the figure to a reader without the paper."""
    n, inner = settings["n_way"] * settings["train_shots"], settings["inner"]
    before_tail = n - settings["fixed"]["batch"]
    largest = max(
        [*settings["grid"]["batch"], *([n] * bool(settings["grid"]["outer_step"]))] or [0]
    )
    full = ""
    if largest > before_tail:
        full = (
            f"Before a separate tail there are {before_tail} samples, of which larger minibatches "
            "take all. "
        )
    has_replacement = any("replacement" in name for name in settings["methods"])
    afresh = " or each afresh (replacement)" if has_replacement else ""
    return (
        f"Meta-training on {settings['n_way']}-way tasks of {n} samples. Reptile's update is $g_1 "
        "+ \\ldots + g_k$, FOMAML's is $g_k$, the gradient of the last of k minibatches (the "
        f"tail). Separate tail: {settings['tail']}, that no earlier minibatch holds. Shared tail: "
        f"drawn as the others, by cycling through all {n}{afresh}. Right of the dotted line "
        f"cycling meets samples twice. {full}Inner SGD, "
        f"$\\alpha$ = {inner['learning_rate']:g} on the {inner['reduction']} loss; outer step "
        f"{settings['fixed']['outer_step']:g} where it is not varied, "
        f"{schedule_in_words(settings)}. The paper gives no rates: these are figure 3's. Accuracy "
        f"after {settings['evaluation_steps']} steps on the {settings['shots']}-shot support of "
        f"{settings['tasks']} test tasks a seed, {settings['queries']} test examples a class, "
        f"without transduction. {seeds_in_words(settings)}"
    )


def _mark_overlap(ax: Axes, edge: float) -> None:
    ax.axvline(edge, color="0.5", linestyle=":", linewidth=1)
    ax.annotate("overlap →", (edge, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", fontsize=7.5, color="0.35")  # fmt: skip
