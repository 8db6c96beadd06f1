"""Curves of means over seeds with their intervals, and words on them for captions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

FEW = 4  # points of a curve that are all given a tick


def draw_curve(
    ax: Axes,
    curve: pd.DataFrame,
    x: str = "iteration",
    *,
    colour: str,
    marker: str,
    label: str,
    line: str = "-",
) -> None:
    """Draw accuracy in % against the column x, with its interval over seeds.

    curve: columns x, mean, low, high, the last three in [0, 1].
    low and high are NaN where there is one seed.
    """
    every = max(1, len(curve) // 8)
    ax.plot(
        curve[x], 100 * curve["mean"], line, color=colour, marker=marker, markevery=every,
        markersize=4, linewidth=1.6, label=label,
    )  # fmt: skip
    if curve.low.notna().any():
        low, high = (100 * curve[side].clip(0, 1) for side in ("low", "high"))
        ax.fill_between(curve[x], low, high, color=colour, alpha=0.15, linewidth=0)


def over_iterations(ax: Axes, chance: float | None = None) -> None:
    """Set the axes of a learning curve: iterations with separators, and the line of chance.

    chance: accuracy in [0, 1], where the curves are to be compared with it.
    """
    measured = np.unique([x for line in ax.lines for x in np.asarray(line.get_xdata())])
    if chance is not None:
        ax.axhline(100 * chance, color="0.5", linestyle=":", linewidth=1)
        ax.annotate(
            "chance",
            (0.02, 100 * chance),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=7.5,
            color="0.35",
        )
    ax.set_xlabel("meta-iterations")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    if len(measured) <= FEW:
        ax.set_xticks(measured)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))


def seeds_in_words(settings: Mapping[str, Any]) -> str:
    """Describe lines and bands, for a caption.

    It names the curves that have more seeds than the others.
    """
    by_number: dict[int, list[str]] = {}
    for name, number in settings.get("seeds_of", {}).items():
        by_number.setdefault(number, []).append(name)
    others = "".join(f", {number} of {', '.join(names)}" for number, names in by_number.items())
    if settings["seeds"] > 1:
        return (
            f"Mean of {settings['seeds']} seeds{others}, band: 95 % Student-t interval of that "
            "mean."
        )
    return f"One seed{others}."


def evaluation_in_words(settings: Mapping[str, Any]) -> str:
    """Describe how accuracy is measured, for a caption."""
    return (
        f"Accuracy after {settings['evaluation_steps']} steps on the {settings['shots']}-shot "
        f"support of {settings['tasks']} test tasks at every point of a curve, "
        f"{settings['queries']} test examples a class, without transduction; the tasks are the "
        "same ones for every curve of a seed and others at every point."
    )


def schedule_in_words(settings: Mapping[str, Any]) -> str:
    """Describe the schedule of the outer step, for a caption.

    It names the iterations over which the step is annealed, and how many of them are trained.
    """
    until, iterations = settings["looks"][-1], settings["iterations"]
    whole = f"annealed linearly to 0 over {iterations:,} iterations"
    return whole if until == iterations else f"{whole}, of which the first {until:,} are trained"
