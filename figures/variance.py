"""Relative variance of meta-gradients along a run, and against how fast each of them learned."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS, finish
from reptile_core.meta_gradients import figure_3, last, total

MAML_COLOUR = "#009E73"
MARKERS = {"joint": "o", "sum": "s", "average": "D", "last": "^"}


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """From the tables variance_intervals and variance_speed."""
    steps = sorted({variant.k for variant in figure_3() if variant.k > 1 and variant.name in settings["variants"]})
    figure, axes = plt.subplots(1, len(steps) + 1, figsize=(12.5, 4.9), width_ratios=[1] * len(steps) + [1.35])
    by_name = {str(name): part for name, part in tables["variance_intervals"].groupby("update")}
    lines = list(axes[: len(steps)])
    for ax, k in zip(lines, steps, strict=True):
        for name, words, colour, marker in (
            ("g1", "$g_1$", COLOURS["joint"], MARKERS["joint"]),
            (total(k).name, "Reptile", COLOURS["sum"], MARKERS["sum"]),
            (last(k).name, "FOMAML", COLOURS["last"], MARKERS["last"]),
            (f"MAML, k = {k}", "MAML", MAML_COLOUR, "v"),
        ):
            _line(ax, by_name[name], words, colour, marker)
        ax.set_title(f"k = {k}", fontsize=10)
        ax.set_xlabel("meta-iterations")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=2, fontsize=8.5, columnspacing=1.0)
        ax.sharey(lines[0])
    lines[0].set_ylim(bottom=min(0.0, lines[0].get_ylim()[0]))
    lines[0].set_ylabel("signal to noise, $|E u|^2 / E|u - E u|^2$")
    speed = tables["variance_speed"].groupby("variant")[["relative_variance", "gain"]].mean()
    _against_speed(axes[-1], speed, settings)
    relative = speed.relative_variance
    k = steps[-1]
    finding = (
        f"Variance of the update relative to its squared mean, k = {k}: {relative[total(k).name]:.1f} for the sum, "
        f"{relative[last(k).name]:.1f} for the last gradient, {relative['g1']:.1f} for $\\mathbf{{g_1}}$"
    )
    caption = (
        "u: the update from one task, Reptile $g_1 + \\ldots + g_k$, FOMAML $g_k$, MAML with its second derivatives; "
        f"all at the same parameters, along a run of {settings['along']}, on {settings['tasks']} tasks a point "
        f"and seed, {settings['seeds']} seeds. Unbiased: $E|u - Eu|^2$ from the sample variance V, $|Eu|^2$ from "
        "$|\\bar u|^2 - V/n$ of n tasks. Bands: 95 % Student-t interval over seeds.\n"
        "Right: the inverse of the mean along the run, against figure 3's accuracy early in training less that at the "
        "start, means over seeds. Filled: variants with an equal step along AvgGrad; hollow: sums, which have their "
        "averages' relative variance at k times the step."
    )
    return {"variance": finish(figure, finding, caption)}


def _line(ax: Axes, curve: pd.DataFrame, label: str, colour: str, marker: str) -> None:
    ax.plot(curve.iteration, curve["mean"], color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
    if curve.low.notna().any():
        ax.fill_between(curve.iteration, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)


def _against_speed(ax: Axes, speed: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """A mark for each variant of figure 3, named."""
    for variant in figure_3():
        if variant.name not in speed.index:
            continue
        x, y = speed.loc[variant.name, "relative_variance"], 100 * speed.loc[variant.name, "gain"]
        colour, filled = COLOURS[variant.kind], variant.name in settings["equal_step"]
        ax.plot(x, y, MARKERS[variant.kind], color=colour, markersize=7, markerfacecolor=colour if filled else "none")
        ax.annotate(f"${settings['variants'][variant.name]}$", (x, y), xytext=(6, 3), textcoords="offset points",
                    fontsize=7.5)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("relative variance, $E|u - Eu|^2 / |Eu|^2$")
    ax.set_ylabel("early gain in accuracy (points)")
    ax.set_title("against speed", fontsize=10)
