"""Early curves of sums of inner gradients at an equal step along AvgGrad.

Next to them: what less noise and larger rho gain.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from figures.curves import draw_curve, evaluation_in_words, over_iterations, seeds_in_words
from figures.style import finish

WORDS = {"noise": "less noise,\nequal ρ", "rho": "larger ρ,\nequal noise"}  # others: both equal
LINES = ("-", "--", ":", "-.")  # by noise, the quietest first


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables rho_intervals and rho_pairs (columns differ, mean, low, high)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.8), width_ratios=(1.25, 1))
    _curves(left, tables["rho_intervals"], settings)
    pairs = tables["rho_pairs"]
    for x, row in enumerate(pairs.itertuples()):
        colour = "C0" if row.differ in WORDS else "0.55"
        right.vlines(x, 100 * row.low, 100 * row.high, color=colour, linewidth=1.4)
        right.plot(x, 100 * row.mean, "o", color=colour, markersize=7)
    right.axhline(0, color="0.5", linestyle=":", linewidth=1)
    labels = [
        WORDS.get(differ, "both equal\n" + differ[len("neither ") :]) for differ in pairs.differ
    ]
    right.set_xticks(range(len(pairs)), labels, fontsize=8)
    right.set(ylabel="difference in accuracy (points)", xlim=(-0.5, len(pairs) - 0.5))
    right.set_title("what pairs of sums differ by", fontsize=10)
    return {"rho": finish(figure, finding(pairs), caption(settings))}


def _curves(ax: plt.Axes, intervals: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """Draw a line for each pair of rho and noise, over all sums that have it."""
    arms = pd.DataFrame.from_dict(settings["variants"], orient="index")[["rho", "noise"]].round(3)
    span = arms.rho.max()
    by_place = intervals.join(arms, on="variant").groupby(
        ["rho", "noise", "iteration"], as_index=False
    )
    curves = by_place["mean"].mean()
    for (rho, noise), curve in curves.groupby(["rho", "noise"]):
        sums = int(((arms.rho == rho) & (arms.noise == noise)).sum())
        label = f"ρ = {rho:.2f}, noise {noise:.2f}"
        if sums > 1:
            label += f" (mean of {sums} sums)"
        draw_curve(
            ax, curve.assign(low=float("nan")),
            line=LINES[sorted(set(arms.noise)).index(noise) % len(LINES)], marker="o",
            colour=plt.colormaps["viridis"](0.92 * rho / span), label=label,
        )  # fmt: skip
    over_iterations(ax)
    ax.set(ylabel="accuracy on test characters (%)")
    ax.set_title("early curves", fontsize=10)
    ax.margins(y=0.3)
    ax.legend(fontsize=7.5, loc="upper left", handlelength=3.6)


def finding(pairs: pd.DataFrame) -> str:
    """Return the title: what less noise gains at equal rho, and larger rho at equal noise.

    The numbers are means over seeds.
    """
    points = 100 * pairs.set_index("differ")["mean"]
    return (
        f"Less noise at equal ρ gains {_signed(points['noise'])} points of accuracy early in "
        f"training, larger ρ at equal noise {_signed(points['rho'])}"
    )


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


def caption(settings: Mapping[str, Any]) -> str:
    """Return the caption, which explains the figure to a reader without the paper."""
    inner, seeds = settings["inner"], seeds_in_words(settings).replace("band", "bar")
    return (
        "Meta-gradients $w_1 g_1 + \\ldots + w_4 g_4$ of a task's inner SGD gradients, $\\sum w_i "
        "= 1$, so that the expected step along AvgGrad is the same. To first order in $\\alpha$ "
        "they then differ in how far they move towards inner products of gradients of different "
        "minibatches, $\\rho\\,\\alpha$ AvgGradInner, and in noise, $\\sum w_i^2$. Around the "
        "average lie two sums of other $\\rho$, two of its own as far from it, and four noisier "
        "ones. The last six are on axes that each seed draws. Grey: what sums of equal $\\rho$ and "
        f"noise differ by. {settings['n_way']}-way {settings['shots']}-shot; k = {settings['k']} "
        f"disjoint minibatches of {inner['batch']}, $\\alpha$ = {inner['learning_rate']} on the "
        f"summed loss, $\\epsilon$ = {settings['outer_step']:g} throughout, "
        f"{settings['looks'][-1]:,} iterations. {evaluation_in_words(settings)} {seeds}"
    )
