"""Figure 3: accuracy over meta-iterations for the sums of inner gradients.

There is a panel for each number of minibatches.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
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
from reptile_core.meta_gradients import Variant, figure_3, own

MARKERS = {"joint": "o", "sum": "s", "average": "D", "last": "^"}
OWN = [
    (COLOURS[colour], marker)
    for colour, marker in zip(("other", "another") * 2, "vPX*", strict=True)
]


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the tables ablation_intervals and ablation_summary.

    ablation_intervals: columns variant, iteration, mean, low, high.
    ablation_summary: columns variant, iteration, mean.
    """
    final = tables["ablation_summary"].set_index("variant")
    names = settings["variants"]
    k_max = max(map(len, names.values()))
    variants = [variant for variant in figure_3(k_max) if variant.name in names]
    of_paper = {variant.name for variant in variants}
    others = [own(name, weights) for name, weights in names.items() if name not in of_paper]
    curves = tables["ablation_intervals"]
    by_name: Mapping[str, pd.DataFrame] = {
        str(name): part for name, part in curves.groupby("variant")
    }
    words = caption(settings)
    for one in others:
        words += f" Not of the paper: {one.name}, weights {_numbers(one)}."
    return {
        "ablation": _draw(
            by_name, variants, others, finding(final, variants), words, 1 / settings["n_way"]
        )
    }


def finding(final: pd.DataFrame, variants: Sequence[Variant]) -> str:
    """Return the title: where g_1 ends, and where the longest sum does.

    final: iteration and mean, accuracy in [0, 1], by variant.
    """
    first = variants[0]
    longest = max(variants, key=lambda variant: (variant.k, sum(variant.weights)))
    ends, when = final["mean"], final["iteration"]
    return (
        f"g₁ alone is at {100 * ends[first.name]:.0f} % accuracy after {when[first.name]:,} "
        f"iterations, the sum of {longest.k} at {100 * ends[longest.name]:.0f} % after "
        f"{when[longest.name]:,}"
    )


def caption(settings: Mapping[str, Any]) -> str:
    """Return the caption, which explains the figure to a reader without the paper."""
    inner = settings["inner"]
    return (
        "Each curve uses one combination of a task's inner SGD gradients as the meta-gradient: "
        "$\\phi \\leftarrow \\phi - \\epsilon\\,\\alpha\\,(w_1 g_1 + \\ldots + w_k g_k)$, with "
        f"$g_i$ the gradient met at step i. {settings['n_way']}-way {settings['shots']}-shot, k "
        f"disjoint minibatches of {inner['batch']}, $\\alpha$ = {inner['learning_rate']} on the "
        f"summed loss, $\\epsilon$ = {settings['outer_step']['from']} "
        f"{schedule_in_words(settings)}{_further(settings)}. {seeds_in_words(settings)} "
        f"{evaluation_in_words(settings)}"
    )


def _numbers(variant: Variant) -> str:
    return ", ".join(f"{weight:g}" for weight in variant.weights)


def _further(settings: Mapping[str, Any]) -> str:
    """Say which curves are longer or shorter than the others."""
    end = settings["looks"][-1]
    others = {name: looks[-1] for name, looks in settings["looks_of"].items() if looks[-1] != end}
    by_end: dict[int, list[str]] = {}
    for name, until in others.items():
        by_end.setdefault(until, []).append(name)
    return "".join(f" ({until:,} of {', '.join(names)})" for until, names in by_end.items())


def _draw(
    by_name: Mapping[str, pd.DataFrame],
    variants: Sequence[Variant],
    others: Sequence[Variant],
    finding: str,
    caption: str,
    chance: float,
) -> Figure:
    sizes = sorted({variant.k for variant in (*variants, *others) if variant.k > 1}) or [1]
    styles = {variant: (COLOURS[variant.kind], MARKERS[variant.kind]) for variant in variants}
    styles |= dict(zip(others, cycle(OWN), strict=False))
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(max(3.5 * len(sizes), 8.4) + 0.6, 5.2), sharey=True, squeeze=False
    )
    for ax, k in zip(axes[0], sizes, strict=True):
        for variant, (colour, marker) in styles.items():
            if variant.k in (1, k) and variant.name in by_name:
                draw_curve(
                    ax,
                    by_name[variant.name],
                    colour=colour,
                    marker=marker,
                    label=f"${variant.label}$",
                )
        ax.set_title(f"k = {k} inner steps", fontsize=10)
        over_iterations(ax, chance)
        ax.set_ylim(0, 101)
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, fontsize=8.5, columnspacing=1.2
        )
    axes[0][0].set_ylabel("accuracy on test characters (%)")
    return finish(figure, finding, caption)
