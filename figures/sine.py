"""Section 4: steps on a few points of a sine wave, from each of three initializations.

They are an untrained network, joint training's and Reptile's.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from figures.style import COLOURS, finish

WORDS = {"untrained": "untrained", "joint": "joint training", "reptile": "Reptile"}
FIRST_WEIGHTS = {"pytorch": "and biases within ±1/√(fan-in)", "glorot": "Glorot's, biases 0"}
STYLES = {
    "untrained": (COLOURS["untrained"], "D"),
    "joint": (COLOURS["joint"], "o"),
    "reptile": (COLOURS["sum"], "s"),
}


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables sine_picture and sine_intervals, a figure for each network.

    The first network's figure is called sine.
    """
    waves, losses = tables["sine_picture"], tables["sine_intervals"]
    first = settings["networks"][0]
    figures = {}
    for network in settings["networks"]:
        name = "sine" if network == first else f"sine_{network.lower().replace(', ', '_')}"
        mine = waves[waves.network == network], losses[losses.network == network]
        figures[name] = _draw(*mine, network, settings)
    return figures


def finding(losses: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    """Return the title: how much of the waves is unexplained after the last step."""
    final = losses[losses.step == losses.step.max()].set_index("initialization")["mean"]
    left = {}
    for name in ("reptile", "joint"):
        digits = 0 if final[name] >= 0.1 else 1
        left[name] = f"{100 * final[name]:.{digits}f} %"
    return (
        f"What {losses.step.max()} steps on {settings['batch']} points leave unexplained of a "
        "sine:\n"
        f"{left['reptile']} from Reptile's initialization, {left['joint']} from joint training's"
    )


def caption(network: str, seed: int, settings: Mapping[str, Any]) -> str:
    """Return the caption, which explains the figure to a reader without the paper.

    seed: that of the curves shown.
    """
    inner, seeds = settings["inner"], settings["seeds"]
    band = "one seed"
    if seeds > 1:
        band = f"mean of {seeds} seeds, band: 95 % Student-t interval of that mean"
    widths = "-".join(map(str, settings["widths"]))
    activation, scheme = settings["activation_and_first_weights"][network]
    shown = ", ".join(map(str, settings["shown"]))
    low, high = settings["amplitude"]
    k = settings["points"] // settings["batch"]
    return (
        f"Tasks: $f(x) = a\\,\\sin(x + b)$, a uniform on [{low:g}, {high:g}], b on [0, 2π], at "
        f"{settings['points']} points; network {widths}, {activation}, first weights "
        f"{FIRST_WEIGHTS[scheme]}; SGD with $\\alpha$ = {inner['learning_rate']} on the mean "
        "squared error. Reptile: $\\phi \\leftarrow \\phi - \\epsilon\\,\\alpha\\,(g_1 + \\ldots + "
        f"g_{k})$, {k} disjoint minibatches of {settings['batch']}. Joint training: the same waves "
        f"and points, all $g_i$ taken at $\\phi_1$. Both: {settings['iterations']:,} iterations, "
        f"$\\epsilon$ from {settings['outer_step']['from']} linearly to 0. Curves: the first test "
        f"wave of seed {seed} after {shown} steps. Loss: on all {settings['points']} points of "
        f"{settings['tasks']} test waves a seed, over that of f = 0: {band}."
    )


def _draw(
    waves: pd.DataFrame, losses: pd.DataFrame, network: str, settings: Mapping[str, Any]
) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 8.2))
    panels = dict(zip(WORDS, axes.flat, strict=False))
    top = 1.15 * max(waves.y.abs().max(), waves.prediction.abs().max())
    for name, ax in panels.items():
        _draw_wave(ax, waves[waves.initialization == name], STYLES[name][0], settings)
        ax.set(title=f"start: {WORDS[name]}", xlabel="x", ylabel="f(x)", ylim=(-top, 1.25 * top))
    axes[0, 0].legend(loc="upper center", ncol=4, fontsize=7.5, columnspacing=1.0, handlelength=1.6)
    _draw_losses(axes[1, 1], losses, settings)
    for ax in axes.flat:
        ax.title.set_fontsize(10)
    return finish(
        figure, finding(losses, settings), caption(network, int(waves.seed.iloc[0]), settings)
    )


def _draw_wave(ax: Axes, curves: pd.DataFrame, colour: str, settings: Mapping[str, Any]) -> None:
    """Draw the wave, the points seen, and the prediction after each number of steps.

    Later predictions are darker.
    """
    steps = sorted(curves.step.unique())
    for order, step in enumerate(steps):
        curve = curves[curves.step == step]
        end = order == len(steps) - 1
        ax.plot(
            curve.x, curve.prediction, color=colour, alpha=1.0 if end else 0.25 + 0.12 * order,
            linewidth=2.0 if end else 1.2, linestyle=":" if order == 0 else "-",
            label=f"after {step}" if order in (0, len(steps) - 1) else None,
        )  # fmt: skip
    wave = curves[curves.step == steps[0]]
    ax.plot(wave.x, wave.y, color="black", linewidth=1.2, linestyle="--", label="wave")
    seen = wave[wave.seen]
    ax.scatter(seen.x, seen.y, s=30, color="black", zorder=3, label=f"{settings['batch']} points")


def _draw_losses(ax: Axes, losses: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    for name, (colour, marker) in STYLES.items():
        curve = losses[losses.initialization == name]
        ax.plot(
            curve.step,
            curve["mean"],
            color=colour,
            marker=marker,
            markevery=8,
            markersize=4,
            linewidth=1.6,
            label=WORDS[name],
        )
        if curve.low.notna().all():
            ax.fill_between(curve.step, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
    ax.axhline(1, color="0.5", linestyle=":", linewidth=1)
    ax.set(yscale="log", ylabel="loss / loss of f = 0", title="test waves")
    ax.set_xlabel(f"gradient steps on the {settings['batch']} points")
    ax.set_xticks(range(0, int(losses.step.max()) + 1, 8))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.legend(loc="center right", fontsize=8)
