"""Early curves of sums of inner gradients at an equal step along AvgGrad, and what they gain against rho."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.curves import draw_curve, over_iterations, seeds_in_words
from figures.style import finish

BESIDE = 0.1  # of rho, between two variants that have the same


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """From the tables rho_intervals, rho_gains (columns variant, rho, noise, mean, low, high) and rho_correlations."""
    gains = tables["rho_gains"].sort_values(["rho", "noise"])
    curves: Mapping[str, pd.DataFrame] = {str(name): part for name, part in tables["rho_intervals"].groupby("variant")}
    span = gains.rho.max() - gains.rho.min()
    noisier = gains.rho.duplicated()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 5.4))
    for row, hollow in zip(gains.itertuples(), noisier, strict=True):
        colour = plt.colormaps["viridis"](0.92 * (row.rho - gains.rho.min()) / span)
        label = f"${settings['variants'][row.variant]['label']}$,  $\\rho$ = {row.rho:g}"
        draw_curve(
            left, curves[row.variant].assign(low=float("nan")), colour=colour, marker="", label=label,
            line="--" if hollow else "-",
        )  # fmt: skip
        x, face = (row.rho + BESIDE, "white") if hollow else (row.rho, colour)
        right.vlines(x, 100 * row.low, 100 * row.high, color=colour, linewidth=1.2)
        right.plot(x, 100 * row.mean, "o", color=colour, markersize=7, markerfacecolor=face)
    over_iterations(left, 1 / settings["n_way"])
    left.set(ylabel="accuracy on test characters (%)")
    left.set_title("early curves", fontsize=10)
    right.axhline(0, color="0.5", linestyle=":", linewidth=1)
    right.set(xlabel="$\\rho = \\sum w_i (i-1) \\,/\\, \\sum w_i$", ylabel="mean gain in accuracy (points)")
    right.set_title("what they gain", fontsize=10)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8, handlelength=3.2)
    return {"rho": finish(figure, finding(tables["rho_correlations"]), caption(settings), right=0.76)}


def finding(correlations: pd.DataFrame) -> str:
    """The title: Spearman's correlation of the gain, with rho and with less noise; means over seeds."""
    mean = correlations.mean()
    return (
        f"The gain early in training follows ρ with a rank correlation of {mean.rho:.2f}, "
        f"lower noise with one of {mean.noise:.2f}"
    )


def caption(settings: Mapping[str, Any]) -> str:
    """What the figure shows, to be understood without the paper at hand."""
    inner, seeds = settings["inner"], seeds_in_words(settings["seeds"]).replace("band", "bar")
    return (
        "Meta-gradients $w_1 g_1 + \\ldots + w_4 g_4$ of a task's inner SGD gradients, scaled so that the expected "
        "step along AvgGrad is the same. To first order in $\\alpha$ they then differ in how far they move towards "
        "inner products of gradients of different minibatches, $\\rho\\,\\alpha$ AvgGradInner, and in noise. Dashed "
        "and hollow: the noisier (larger $\\sum w_i^2$) of two with the same $\\rho$. "
        f"{settings['n_way']}-way {settings['shots']}-shot; k = {settings['k']} disjoint minibatches of "
        f"{inner['batch']}, $\\alpha$ = {inner['learning_rate']} on the summed loss, $\\epsilon \\sum w_i$ = "
        f"{settings['outer_step']:g} throughout, {settings['iterations']:,} iterations. Gain: mean accuracy at all "
        f"points measured after the start, less that at the start; after {settings['evaluation_steps']} steps on "
        f"{settings['tasks']} test tasks a seed, no transduction. {seeds}"
    )
