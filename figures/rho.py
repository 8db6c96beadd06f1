"""Early curves of sums of inner gradients at an equal step along AvgGrad, and what they gain against rho and noise."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.curves import draw_curve, evaluation_in_words, over_iterations, seeds_in_words
from figures.style import finish

APART = 0.1  # of rho, between two variants that have the same
LINES = "-", "--", ":"  # of the quietest variant of a rho, and of the noisier ones


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables rho_intervals, rho_gains (columns variant, rho, noise, mean, low, high) and rho_pairs (differ,
    mean)."""
    gains = tables["rho_gains"].sort_values(["rho", "noise"])
    curves: Mapping[str, pd.DataFrame] = {str(name): part for name, part in tables["rho_intervals"].groupby("variant")}
    span = gains.rho.max() - gains.rho.min()
    ranks = gains.groupby("rho").cumcount()  # by noise, of those with the same rho
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.4))
    for row, rank in zip(gains.itertuples(), ranks, strict=True):
        colour = plt.colormaps["viridis"](0.92 * (row.rho - gains.rho.min()) / span)
        label = f"${settings['variants'][row.variant]['label']}$,  $\\rho$ = {row.rho:g}"
        draw_curve(
            left, curves[row.variant].assign(low=float("nan")), colour=colour, marker="", label=label,
            line=LINES[rank],
        )  # fmt: skip
        x, face = row.rho + rank * APART, "white" if rank else colour
        right.vlines(x, 100 * row.low, 100 * row.high, color=colour, linewidth=1.2)
        right.plot(x, 100 * row.mean, "o", color=colour, markersize=7, markerfacecolor=face)
    over_iterations(left, 1 / settings["n_way"])
    left.set(ylabel="accuracy on test characters (%)")
    left.set_title("early curves", fontsize=10)
    right.axhline(0, color="0.5", linestyle=":", linewidth=1)
    right.set(xlabel="$\\rho = \\sum w_i (i-1) \\,/\\, \\sum w_i$", ylabel="mean gain in accuracy (points)")
    right.set_title("what they gain", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, handlelength=3.2)
    return {"rho": finish(figure, finding(tables["rho_pairs"]), caption(settings), right=0.76)}


def finding(pairs: pd.DataFrame) -> str:
    """Return the title: what less noise gains at equal rho, and larger rho at equal noise; means over seeds."""
    points = 100 * pairs.set_index("differ")["mean"]
    return (
        f"Less noise at equal ρ gains {_signed(points['noise'])} points of accuracy early in training, "
        f"larger ρ at equal noise {_signed(points['rho'])}"
    )


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def caption(settings: Mapping[str, Any]) -> str:
    """Return what the figure shows, to be understood without the paper at hand."""
    inner, seeds = settings["inner"], seeds_in_words(settings["seeds"]).replace("band", "bar")
    return (
        "Meta-gradients $w_1 g_1 + \\ldots + w_4 g_4$ of a task's inner SGD gradients, scaled so that the expected "
        "step along AvgGrad is the same. To first order in $\\alpha$ they then differ in how far they move towards "
        "inner products of gradients of different minibatches, $\\rho\\,\\alpha$ AvgGradInner, and in noise. Dashed, "
        "dotted and hollow: noisier (larger $\\sum w_i^2$) than the first of the same $\\rho$. "
        f"{settings['n_way']}-way {settings['shots']}-shot; k = {settings['k']} disjoint minibatches of "
        f"{inner['batch']}, $\\alpha$ = {inner['learning_rate']} on the summed loss, $\\epsilon \\sum w_i$ = "
        f"{settings['outer_step']:g} throughout, {settings['looks'][-1]:,} iterations. Gain: mean accuracy at all "
        f"points measured after the start, less that at the start. {evaluation_in_words(settings)} {seeds}"
    )
