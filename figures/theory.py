"""What the theorems look like: remainders and coefficients.

Remainders fall by the power they should. Coefficients are where they are predicted.
"""

from collections.abc import Mapping
from math import ceil, floor, log10
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS, WARNING, finish

PANELS = {
    "taylor-gradient": "order 1 kept: $\\alpha^2$ should be left",
    "taylor-second-order": "order 2 kept: $\\alpha^3$ should be left",
}
POOL_COLOURS = {
    "cubic": COLOURS["average"],
    "tanh network": COLOURS["sum"],
    "Omniglot network, softplus": COLOURS["last"],
}
UPDATES = {
    "MAML": (COLOURS["maml"], "D"),
    "last gradient (FOMAML)": (COLOURS["last"], "^"),
    "sum (Reptile)": (COLOURS["sum"], "s"),
    "average": (COLOURS["average"], "o"),
    "random weights": (COLOURS["joint"], "x"),
}
REMAINDERS_CAPTION = (
    "Norm of the difference between the gradient met at an inner SGD step and its series in the "
    "inner learning rate, $g_i = \\bar g_i - \\alpha \\bar H_i (\\bar g_1 + \\ldots + \\bar "
    "g_{i-1}) + O(\\alpha^2)$, for the last step i of each loss, in float64. Dashed: the same with "
    "a wrong term (the sum taken over j ≤ i; no third derivative), which must lose a power.\n"
    "Numbers: fitted slopes."
)
COEFFICIENTS_CAPTION = (
    "Expected updates over all ordered choices of k of 5 minibatches, in the limit $\\alpha \\to "
    "0$, as multiples of AvgGrad $= E[\\bar g_1]$ and of $\\alpha$ AvgGradInner $= \\alpha E[\\bar "
    "H_2 \\bar g_1]$. Predicted: $\\sum w_i$ and $-\\sum w_i (i-1)$ for any sum $\\sum w_i g_i$; 1 "
    "and $-2(k-1)$ for MAML. k = {least} … {most}, {losses} losses."
)


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables theory (with the columns of coefficients) and remainders."""
    rows = tables["theory"]
    coefficients = rows[(rows.role == "check") & rows["update"].notna()]
    return {
        "remainders": draw_remainders(tables["remainders"]),
        "coefficients": draw_coefficients(coefficients),
    }


def draw_remainders(points: pd.DataFrame) -> Figure:
    """Draw the table of remainders.

    points: columns claim, case ("pool: which"), role, order, alpha, remainder, slope.
    """
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.5, 5.8))
    for ax, (claim, title) in zip(axes, PANELS.items(), strict=True):
        mine = points[points.claim == claim]
        for pool, colour in POOL_COLOURS.items():
            of_pool = mine[mine.case.str.startswith(f"{pool}: g_")]
            if not of_pool.empty:
                _draw_pool(ax, of_pool[of_pool.case == of_pool.case.max()], colour)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="inner learning rate $\\alpha$",
            ylabel="norm of the remainder",
        )
        ax.set_title(title, fontsize=10)
        handles, labels = ax.get_legend_handles_labels()
        pairs = [handles[::2] + handles[1::2], labels[::2] + labels[1::2]]  # side by side
        ax.legend(*pairs, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2, fontsize=7.5)
    right, wrong = (_spans(points[points.role == role]) for role in ("check", "control"))
    return finish(
        figure,
        f"Remainders fall with slopes {right}; with a wrong term {wrong}",
        REMAINDERS_CAPTION,
    )


def _spans(points: pd.DataFrame) -> str:
    """Return the span of the slopes in each panel."""
    return " and ".join(_span(points[points.claim == claim].slope) for claim in PANELS)


def draw_coefficients(rows: pd.DataFrame) -> Figure:
    """Draw the theory table, with a row for each update, pool and k.

    rows: columns update, k, term, measured, predicted, data.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 5.2))
    for ax, term in zip(axes, ("AvgGrad", "AvgGradInner"), strict=True):
        mine = rows[rows.term == term]
        ends = [mine.predicted.min() - 0.5, mine.predicted.max() + 0.5]
        ax.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
        for kind, part in mine.groupby(mine["update"].map(_kind), sort=False):
            colour, marker = UPDATES[kind]
            ax.scatter(
                part.predicted,
                part.measured,
                s=34,
                color=colour,
                marker=marker,
                label=kind,
                linewidths=1,
            )
        ax.set(xlabel="predicted coefficient", ylabel="measured coefficient", title=f"of {term}")
    axes[0].legend(loc="upper left", fontsize=8)
    worst = (rows.measured - rows.predicted).abs().max()
    return finish(
        figure,
        (
            "What updates hold of AvgGrad and AvgGradInner: measured and predicted differ by at "
            f"most {_rounded_up(worst)}"
        ),
        COEFFICIENTS_CAPTION.format(
            least=int(rows.k.min()), most=int(rows.k.max()), losses=rows["data"].nunique()
        ),
    )


def _rounded_up(value: float) -> str:
    """Return a bound on a value in one digit."""
    exponent = floor(log10(value)) if value > 0 else 0
    return f"{ceil(value / 10.0**exponent)}e{exponent:+03d}"


def _draw_pool(ax: Axes, case: pd.DataFrame, colour: str) -> None:
    for role, line in (("check", "-"), ("control", "--")):
        mine = case[case.role == role]
        pool, which = mine.case.iloc[0].split(": ")
        words = f"{pool}, ${which}$" if role == "check" else "wrong term"
        opacity = 1 if role == "check" else 0.55
        colour_of_role = colour if role == "check" else WARNING
        ax.plot(
            mine.alpha,
            mine.remainder,
            line,
            color=colour_of_role,
            marker="o",
            markersize=3,
            alpha=opacity,
            label=f"{words}: slope {mine.slope.iloc[0]:.3f}",
        )


def _span(slopes: pd.Series) -> str:
    low, high = f"{slopes.min():.2f}", f"{slopes.max():.2f}"
    return low if low == high else f"{low} … {high}"


def _kind(update: str) -> str:
    if update in ("MAML", "random weights"):
        return update
    if "/" in update:
        return "average"
    return "sum (Reptile)" if "+" in update or update == "Reptile" else "last gradient (FOMAML)"
