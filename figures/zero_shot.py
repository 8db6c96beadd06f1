"""Accuracy and loss before adaptation along meta-training, and what adaptation gives."""

from collections.abc import Mapping
from math import log
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.style import COLOURS, finish
from reptile_core.meta_gradients import figure_3

SIGMAS = 2  # the band of chance: about 95 % of labellings
LINES = {1: "-", 2: ":", 3: "--", 4: "-"}


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw the table zero_shot: columns variant, seed, iteration, quantity, value."""
    table, n = tables["zero_shot"], settings["n_way"]
    means = table.groupby(["quantity", "variant", "iteration"]).value.mean()
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 5.2))
    panels = (
        ("accuracy", 100, 100 / n, "accuracy (%)", "chance"),
        ("loss", 1, log(n), "cross-entropy (nats an example)", "log N"),
    )
    for ax, (quantity, scale, level, label, name) in zip(axes, panels, strict=True):
        for variant in figure_3():
            if (f"{quantity}_before", variant.name) not in means:
                continue
            curve = scale * means[f"{quantity}_before", variant.name]
            colour, line = COLOURS[variant.kind], LINES[variant.k]
            ax.plot(
                curve.index, curve, line, color=colour, linewidth=1.4, label=f"${variant.label}$"
            )
            after = scale * means[f"{quantity}_after", variant.name]
            ax.plot(
                after.index,
                after,
                "o",
                color=colour,
                markersize=4,
                markerfacecolor="none",
                clip_on=False,
            )
        ax.axhline(level, color="0.3", linestyle=":", linewidth=1)
        if quantity == "accuracy":
            spread = means["accuracy_spread"].groupby("iteration").max()
            half = 100 * SIGMAS * spread / settings["seeds"] ** 0.5
            ax.fill_between(
                half.index, level - half, level + half, color="0.5", alpha=0.2, linewidth=0
            )
        ax.annotate(name, (0.02, level), xycoords=("axes fraction", "data"), xytext=(0, -10),
                    textcoords="offset points", fontsize=7.5, color="0.35")  # fmt: skip
        ax.set(xlabel="meta-iterations", ylabel=label)
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes[0].set_ylim(0, 101)
    axes[1].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    before = 100 * means["accuracy_before"]
    finding = (
        f"Before adaptation accuracy is {before.min():.0f} … {before.max():.0f} %, whatever is "
        "trained"
    )
    caption = (
        f"An initialization that has not seen a task's labels, which are dealt at random among {n} "
        f"classes. Lines: before the first inner step, {_seeds(settings['seeds'])}, "
        f"{settings['tasks']} test tasks each, labels as they are dealt. Grey: chance, twice the "
        "standard deviation over labellings. Circles: the support examples themselves, after "
        "adapting to them, at the "
        f"end ({settings['adapted_tasks']} tasks a seed). Averaged over all "
        f"{settings['labellings']} labellings every initialization has an accuracy of exactly 1/N "
        f"and a loss of log N or more. Runs on a schedule of {settings['schedule']:,} iterations."
    )
    return {"zero_shot": finish(figure, finding, caption, right=0.86)}


def _seeds(count: int) -> str:
    return f"mean of {count} seeds" if count > 1 else "one seed"
