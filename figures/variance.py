"""Signal and noise of meta-gradients: by k, along a run, and against how fast each of them learned."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import COLOURS, finish
from reptile_core.meta_gradients import figure_3, last, total

MARKERS = {"joint": "o", "sum": "s", "average": "D", "last": "^"}
LABELS = {"joint": (7, "left"), "sum": (-7, "right"), "average": (12, "left"), "last": (-7, "right")}  # points aside
LINE = 12  # points from label to label
SIDES = ("mean", "low", "high")
FAMILIES = (("Reptile", COLOURS["sum"], "s"), ("FOMAML", COLOURS["last"], "^"), ("MAML", "#009E73", "v"))


def draw(tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """From the tables variance_intervals and variance_speed."""
    steps = sorted({variant.k for variant in figure_3() if variant.k > 1 and variant.name in settings["variants"]})
    table = tables["variance_intervals"].assign(**{side: 100 * tables["variance_intervals"][side] for side in SIDES})
    along, whole = table[table.iteration.notna()], table[table.iteration.isna()].set_index("update")
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 4.9), width_ratios=[1, 1, 1.25])
    _by_k(axes[0], whole, steps)
    _along(axes[1], along, steps[-1])
    speed = tables["variance_speed"].groupby("variant")[["ratio", "gain"]].mean()
    _against_speed(axes[2], speed, settings)
    axes[0].set_ylabel("$|E u|^2\\; /\\; E|u - E u|^2$ (%)")
    k = steps[-1]
    relative = {name: _two_digits(100 / value) for name, value in whole["mean"].items() if value > 0}
    named = {"Reptile": total(k).name, "FOMAML": last(k).name, "MAML": _maml(k), "joint training": "g1"}
    finding = f"Variance over squared mean of the update, k = {k}: " + ", ".join(
        f"{relative.get(name, 'no mean seen')} for {words}" for words, name in named.items()
    )
    caption = (
        "u: the update from one task, Reptile $g_1 + \\ldots + g_k$, FOMAML $g_k$, MAML with its second derivatives; "
        f"all at the same parameters along a run of {settings['along']}, on {settings['tasks']} tasks at each of "
        f"{settings['points']} points, {settings['seeds']} seeds. Unbiased: $E|u - Eu|^2$ from the sample variance V, "
        "$|Eu|^2$ from $|\\bar u|^2 - V/n$ over n tasks, which may be below 0. Bars: 95 % Student-t intervals over "
        "seeds. Left: means along the run.\n"
        "Right: the same against figure 3's accuracy early in training less that at the start, means over seeds. "
        "Filled: variants with an equal step along AvgGrad, which are compared; hollow: sums, their averages with k "
        "times the step."
    )
    finish(figure, finding, caption)
    _name_variants(axes[2], speed, settings)
    return {"variance": figure}


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def _maml(k: int) -> str:
    return f"MAML, k = {k}"


def _updates(k: int) -> tuple[str, str, str]:
    """Names in the table, in the order of FAMILIES."""
    return total(k).name, last(k).name, _maml(k)


def _by_k(ax: Axes, whole: pd.DataFrame, steps: Sequence[int]) -> None:
    """Means along the run with their intervals; joint training at k = 1."""
    _points(ax, [1], whole.loc[["g1"]], "joint training, $g_1$", COLOURS["joint"], "o")
    for shift, (family, (label, colour, marker)) in zip((-0.12, 0, 0.12), enumerate(FAMILIES), strict=True):
        mine = whole.loc[[_updates(k)[family] for k in steps]]
        _points(ax, [k + shift for k in steps], mine, label, colour, marker)
    ax.axhline(0, color="0.3", linewidth=1)
    ax.set_xticks([1, *steps])
    ax.set(xlabel="k", xlim=(0.6, steps[-1] + 0.4))
    ax.grid(visible=False, axis="x")
    ax.set_title("mean along the run", fontsize=10)
    ax.legend(fontsize=8)


def _along(ax: Axes, along: pd.DataFrame, k: int) -> None:
    """Each update of k steps at each point, with intervals."""
    iterations = sorted(along.iteration.unique())
    width = 0.02 * (iterations[-1] - iterations[0])
    lines = [("g1", "", COLOURS["joint"], "o"), *((n, *f) for n, f in zip(_updates(k), FAMILIES, strict=True))]
    for shift, (name, _, colour, marker) in zip((-1.5, -0.5, 0.5, 1.5), lines, strict=True):
        mine = along[along["update"] == name].set_index("iteration").loc[iterations]
        x = [iteration + shift * width for iteration in iterations]
        _points(ax, x, mine, "", colour, marker)
        ax.plot(x, mine["mean"], color=colour, linewidth=1)
    ax.axhline(0, color="0.3", linewidth=1)
    ax.set_xlabel("meta-iterations")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    ax.set_title(f"along the run, k = {k}", fontsize=10)


def _name_variants(ax: Axes, speed: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """A label beside each mark; those of one kind, which stand on one side of theirs, apart. After the layout, on which
    distances depend."""
    for kind, (aside, side) in LABELS.items():
        named = [v for v in figure_3() if v.name in speed.index and v.kind == kind]
        points = [(100 * speed.ratio[v.name], 100 * speed.gain[v.name]) for v in named]
        heights = [ax.transData.transform(point)[1] * 72 / ax.figure.dpi for point in points]
        for variant, point, height, moved in zip(named, points, heights, apart(heights, LINE), strict=True):
            ax.annotate(f"${settings['variants'][variant.name]}$", point, xytext=(aside, moved - height),
                        textcoords="offset points", fontsize=7.5, va="center", ha=side)  # fmt: skip


def apart(heights: Sequence[float], least: float) -> list[float]:
    """These heights, none less than `least` from another: from the lowest up, each raised as far as it must be."""
    moved = list(heights)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    for below, i in pairwise(order):
        moved[i] = max(moved[i], moved[below] + least)
    return moved


def _points(ax: Axes, x: Sequence[float], rows: pd.DataFrame, label: str, colour: str, marker: str) -> None:
    ax.plot(x, rows["mean"], marker, color=colour, markersize=5.5, label=label)
    ax.vlines(x, rows.low, rows.high, color=colour, linewidth=1.4)


def _against_speed(ax: Axes, speed: pd.DataFrame, settings: Mapping[str, Any]) -> None:
    """A mark for each variant of figure 3, named."""
    for variant in figure_3():
        if variant.name in speed.index:
            x, y = 100 * speed.loc[variant.name, ["ratio", "gain"]]
            colour, filled = COLOURS[variant.kind], variant.name in settings["equal_step"]
            ax.plot(x, y, MARKERS[variant.kind], color=colour, markersize=6.5,
                    markerfacecolor=colour if filled else "none")  # fmt: skip
    ax.margins(x=0.25, y=0.08)
    ax.set_xlabel("$|E u|^2\\; /\\; E|u - E u|^2$ (%): less variance →")
    ax.set_ylabel("early gain in accuracy (points)")
    ax.set_title("against speed", fontsize=10)
