"""Figure 3: accuracy over meta-iterations for the sums of inner gradients, a panel for each number of minibatches."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS, finish
from reptile_core.meta_gradients import Variant, figure_3

MARKERS = {"joint": "o", "sum": "s", "average": "D", "last": "^"}


def draw_curve(ax: Axes, curve: pd.DataFrame, variant: Variant) -> None:
    """One variant's mean with its interval over seeds; columns iteration, mean, low, high (NaN where there is none)."""
    kind = variant.kind
    every = max(1, len(curve) // 8)
    ax.plot(
        curve.iteration, 100 * curve["mean"], color=COLOURS[kind], marker=MARKERS[kind], markevery=every,
        markersize=4, linewidth=1.6, label=f"${variant.label}$",
    )  # fmt: skip
    if curve.low.notna().any():
        low, high = (100 * curve[side].clip(0, 1) for side in ("low", "high"))
        ax.fill_between(curve.iteration, low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """From the tables ablation_intervals (columns variant, iteration, mean, low, high) and ablation_summary."""
    final = tables["ablation_summary"].set_index("variant")["mean"]
    names = settings["variants"]
    variants = [variant for variant in figure_3(max(map(len, names.values()))) if variant.name in names]
    curves = tables["ablation_intervals"]
    by_name: Mapping[str, pd.DataFrame] = {str(name): part for name, part in curves.groupby("variant")}
    return {"ablation": _draw(by_name, variants, finding(final, variants), caption(settings), 1 / settings["n_way"])}


def finding(final: pd.Series, variants: Sequence[Variant]) -> str:
    """The title: where g_1 ended, and the longest sum beside it. final: accuracy in [0, 1] by variant."""
    first, longest = variants[0], max(variants, key=lambda variant: (variant.k, sum(variant.weights)))
    if not {first.name, longest.name} <= set(final.index):
        return "Learning curves of sums of inner gradients (some runs ended early)"
    return (
        f"g₁ alone ends at {100 * final[first.name]:.0f} % accuracy, "
        f"the sum of {longest.k} inner gradients at {100 * final[longest.name]:.0f} %"
    )


def caption(settings: Mapping[str, Any]) -> str:
    """What the figure shows, to be understood without the paper at hand."""
    seeds, inner = settings["seeds"], settings["inner"]
    band = f"Mean of {seeds} seeds, band: 95 % Student-t interval of that mean." if seeds > 1 else "One seed."
    return (
        "Each curve uses one combination of a task's inner SGD gradients as the meta-gradient: $\\phi \\leftarrow "
        "\\phi - \\epsilon\\,\\alpha\\,(w_1 g_1 + \\ldots + w_k g_k)$, with $g_i$ the gradient met at step i.\n"
        f"{settings['n_way']}-way {settings['shots']}-shot, k disjoint minibatches of {inner['batch']}, $\\alpha$ = "
        f"{inner['learning_rate']} on the summed loss, $\\epsilon$ = {settings['outer_step']['from']} annealed "
        f"linearly to 0 over {settings['iterations']:,} iterations. {band}\n"
        f"Accuracy after {settings['evaluation_steps']} steps on the {settings['shots']}-shot support of "
        f"{settings['tasks']} test tasks, the same ones at every point of every curve of a seed; one test example per "
        "class; no transduction."
    )


def _draw(
    by_name: Mapping[str, pd.DataFrame], variants: Sequence[Variant], finding: str, caption: str, chance: float
) -> Figure:
    sizes = sorted({variant.k for variant in variants if variant.k > 1}) or [1]
    figure, axes = plt.subplots(1, len(sizes), figsize=(3.5 * len(sizes) + 0.6, 5.2), sharey=True, squeeze=False)
    for ax, k in zip(axes[0], sizes, strict=True):
        for variant in variants:
            if variant.k in (1, k) and variant.name in by_name:
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
    return finish(figure, finding, caption)
