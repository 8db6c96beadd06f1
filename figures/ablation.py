"""Figure 3: accuracy over meta-iterations for the sums of inner gradients, a panel for each number of minibatches."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS
from reptile_core.meta_gradients import Variant

MARKERS = {"joint": "o", "sum": "s", "average": "D", "last": "^"}


def family(variant: Variant) -> str:
    """What a variant is among its fellows with the same k, which gives it colour and marker."""
    if variant.k == 1:
        return "joint"
    if variant.weights[0] == 0:
        return "last"
    return "sum" if variant.weights[0] == 1 else "average"


def draw_curve(ax: Axes, curve: pd.DataFrame, variant: Variant) -> None:
    """One variant's mean with its interval over seeds; columns iteration, mean, low, high (NaN where there is none)."""
    kind = family(variant)
    every = max(1, len(curve) // 8)
    ax.plot(
        curve.iteration, 100 * curve["mean"], color=COLOURS[kind], marker=MARKERS[kind], markevery=every,
        markersize=4, linewidth=1.6, label=f"${variant.label}$",
    )  # fmt: skip
    if curve.low.notna().any():
        low, high = (100 * curve[side].clip(0, 1) for side in ("low", "high"))
        ax.fill_between(curve.iteration, low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)


def draw_ablation(
    curves: pd.DataFrame, variants: Sequence[Variant], finding: str, caption: str, *, chance: float
) -> Figure:
    """The whole figure from the interval table (columns variant, iteration, mean, low, high)."""
    by_name: Mapping[str, pd.DataFrame] = {str(name): part for name, part in curves.groupby("variant")}
    sizes = sorted({variant.k for variant in variants if variant.k > 1}) or [1]
    figure, axes = plt.subplots(1, len(sizes), figsize=(3.5 * len(sizes) + 0.6, 5.2), sharey=True, squeeze=False)
    for ax, k in zip(axes[0], sizes, strict=True):
        for variant in variants:
            if variant.k in (1, k):
                draw_curve(ax, by_name[variant.name], variant)
        ax.axhline(100 * chance, color="0.5", linestyle=":", linewidth=1)
        ax.annotate("chance", (0.02, 100 * chance), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", fontsize=7.5, color="0.35")  # fmt: skip
        ax.set_title(f"k = {k} inner steps", fontsize=10)
        ax.set_xlabel("meta-iterations")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.xaxis.set_major_locator(plt.MaxNLocator(4))
        ax.set_ylim(0, 101)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2, fontsize=8.5, columnspacing=1.2)
    axes[0][0].set_ylabel("accuracy on test characters (%)")
    figure.suptitle(finding, x=0.01, ha="left", fontsize=11.5, weight="bold")
    figure.text(0.01, 0.045, caption, fontsize=7.5, color="0.25", va="bottom")
    figure.tight_layout(rect=(0, 0.045 + 0.027 * (caption.count("\n") + 1), 1, 0.98))
    return figure
