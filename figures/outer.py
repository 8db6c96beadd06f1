"""Learning curves of Reptile and MAML, and of the plain outer step and Adam."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.curves import (
    draw_curve,
    evaluation_in_words,
    over_iterations,
    schedule_in_words,
    seeds_in_words,
)
from figures.style import COLOURS, finish

STYLES = {
    "Reptile": (COLOURS["sum"], "s"),
    "Reptile, average": (COLOURS["average"], "D"),
    "FOMAML": (COLOURS["last"], "^"),
    "MAML": (COLOURS["maml"], "v"),
    "joint training": (COLOURS["joint"], "o"),
    "Reptile, Adam outside": (COLOURS["other"], "P"),
}
PANELS = {
    "which meta-gradient, by the plain step": (
        "Reptile",
        "Reptile, average",
        "FOMAML",
        "MAML",
        "joint training",
    ),
    "which outer step, for Reptile's": ("Reptile", "Reptile, Adam outside"),
}


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables outer_intervals and outer_validation.

    outer_intervals: columns variant, iteration, mean, low, high.
    """
    curves: Mapping[str, pd.DataFrame] = {
        str(name): part for name, part in tables["outer_intervals"].groupby("variant")
    }
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.5, 5.8), sharey=True)
    chance = 1 / settings["n_way"]
    from_chance = min(curve["mean"].min() for curve in curves.values()) < 2 * chance
    for ax, (title, methods) in zip(axes, PANELS.items(), strict=True):
        for method in (method for method in methods if method in curves):
            colour, marker = STYLES[method]
            draw_curve(ax, curves[method], colour=colour, marker=marker, label=method)
        over_iterations(ax, chance if from_chance else None)
        ax.set_title(title, fontsize=10)
        if from_chance:
            ax.set_ylim(0, 101)
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.19), ncol=3, fontsize=8.5, columnspacing=1.2
        )
    axes[0].set_ylabel("accuracy on test characters (%)")
    return {"outer": finish(figure, finding(curves), caption(settings, tables["outer_validation"]))}


def finding(curves: Mapping[str, pd.DataFrame]) -> str:
    """Return the title: where Reptile's sum and average, MAML and Adam outside end.

    The numbers are means over seeds.
    """
    end = max(curve.iteration.max() for curve in curves.values())
    ends = {}
    for name, curve in curves.items():
        ends[name] = 100 * curve.sort_values("iteration")["mean"].iloc[-1]
    return (
        f"After {end:,} iterations Reptile is at {ends['Reptile']:.0f} % (average: "
        f"{ends['Reptile, average']:.0f} %), MAML at {ends['MAML']:.0f} %, Adam outside at "
        f"{ends['Reptile, Adam outside']:.0f} %"
    )


def caption(settings: Mapping[str, Any], validation: pd.DataFrame) -> str:
    """Return the caption, which explains the figure to a reader without the paper."""
    inner, outer = settings["inner"], settings["outer_step"]["from"]
    chosen = validation.step[validation.accuracy.idxmax()]
    grid = ", ".join(f"{step:g}" for step in validation.step)
    fomaml = "FOMAML's is $g_k$, " if "FOMAML" in settings["methods"] else ""
    return (
        f"After k = {settings['k']} steps of inner SGD from $\\phi$ to W: Reptile's meta-gradient "
        f"is $g_1 + \\ldots + g_k = (\\phi - W)/\\alpha$ (or that over k), {fomaml}MAML's "
        "$\\partial L_k / \\partial \\phi$ with second derivatives; joint training's is $g_1$ "
        "alone. The average takes MAML's own step along AvgGrad, the sum one that is k times as "
        f"long. {settings['n_way']}-way {settings['shots']}-shot, disjoint minibatches of "
        f"{inner['batch']}, $\\alpha$ = {inner['learning_rate']} on the summed loss. Plain step: "
        f"$\\epsilon$ = {outer} on $\\alpha$ times the meta-gradient. Adam: $\\epsilon$ = "
        f"{chosen:g}, the best of {grid} on a seed that is not shown. Both are "
        f"{schedule_in_words(settings)}. {seeds_in_words(settings)} "
        f"{evaluation_in_words(settings)}"
    )
