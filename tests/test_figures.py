"""Figures from made-up tables: they show the numbers given.

The same table gives the same file.
"""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from analysis.experiments import ablation
from analysis.paper.figure_3 import SETTINGS as FIGURE_3
from analysis.results.tables import over_seeds
from figures import theory
from figures.ablation import draw
from figures.curves import schedule_in_words
from figures.style import _wrapped, save, stamp, style
from reptile_core.meta_gradients import figure_3

matplotlib.use("Agg")


SETTINGS = FIGURE_3 | {
    "iterations": 40_000, "looks": [10, 20], "looks_of": {"g1": [10, 20, 30]}, "tasks": 4,
    "queries": 5, "seeds": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tables():
    rows = [
        {
            "variant": variant.name,
            "iteration": iteration,
            "seed": seed,
            "value": 0.2 + 0.01 * iteration + 0.06 * seed,
        }
        for variant in figure_3()
        for iteration in ((0, 10, 20, 30) if variant.k == 1 else (0, 10, 20))
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows)
    intervals = over_seeds(table, ["variant", "iteration"])
    return {"ablation_intervals": intervals, "ablation_summary": ablation.summary(table)}


def _draw(tables):
    return draw(tables, SETTINGS)["ablation"]


def test_curves_are_the_numbers(tables):
    with style():
        figure = _draw(tables)
    assert len(figure.axes) == 3
    for ax in figure.axes:
        lines = [line for line in ax.get_lines() if len(line.get_xdata()) > 2]
        curves = {line.get_label(): list(line.get_ydata()) for line in lines}
        assert len(curves) == 4
        for label, heights in curves.items():
            assert heights == pytest.approx([23, 33, 43, 53][: 4 if label == "$g_1$" else 3])
        for line, band in zip(lines, ax.collections, strict=True):
            intervals = tables["ablation_intervals"]
            mine = intervals[intervals.variant == ("g1" if line.get_label() == "$g_1$" else "g2")]
            corners = [
                (x, min(max(100 * y, 0), 100))
                for side in ("low", "high")
                for x, y in zip(mine.iteration, mine[side], strict=True)
            ]
            np.testing.assert_allclose(
                np.unique(band.get_paths()[0].vertices, axis=0), np.unique(corners, axis=0)
            )
    assert (
        figure.get_suptitle()
        == "g₁ alone is at 53 % accuracy after 30 iterations, the sum of 4 at 43 % after 20"
    )


def test_captions_say_what_is_trained_and_measured(tables):
    with style():
        caption = _draw(tables).texts[-1].get_text().replace("\n", " ")
    assert "over 40,000 iterations, of which the first 20 are trained (30 of g1)" in caption
    assert "4 test tasks at every point of a curve, 5 test examples a class" in caption
    assert "others at every point" in caption
    assert (
        schedule_in_words({"looks": [1, 10], "iterations": 10})
        == "annealed linearly to 0 over 10 iterations"
    )


def test_methods_that_were_not_trained_have_no_panel(tables):
    names = {variant.name for variant in figure_3() if variant.k != 3}
    settings = SETTINGS | {"variants": {name: SETTINGS["variants"][name] for name in names}}
    shown = {name: table[table.variant.isin(names)] for name, table in tables.items()}
    with style():
        figure = draw(shown, settings)["ablation"]
    assert [ax.get_title() for ax in figure.axes] == ["k = 2 inner steps", "k = 4 inner steps"]
    assert _fits(figure)


def test_a_variant_of_ones_own_has_a_curve_and_is_named_in_the_caption(tables):
    """A variant of the user's own has a curve and is named in the caption.

    Its kind is "other", which had no colour once; its name may hold a space.
    """
    mine = SETTINGS | {"variants": SETTINGS["variants"] | {"my sum": (0.0, 0.0, 1.0, 1.0)}}
    shown = {
        name: pd.concat([table, table[table.variant == "g4"].assign(variant="my sum", mean=0.5)])
        for name, table in tables.items()
    }
    with style():
        figure = draw(shown, mine)["ablation"]
        figure.canvas.draw()  # fails where the legend's formula cannot be parsed
    curves = [{line.get_label() for line in ax.get_lines()} for ax in figure.axes]
    assert [r"$\mathrm{my~sum}$" in labels for labels in curves] == [False, False, True]
    words = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
    assert "Not of the paper: my sum, weights 0, 0, 1, 1." in words and _fits(figure)


def test_remainders_are_the_numbers():
    """The figure of remainders shows the slopes of each panel, of the right and the wrong term."""
    alpha = [0.1, 0.01]
    slopes = {
        ("taylor-gradient", "check"): 2.0,
        ("taylor-gradient", "control"): 1.0,
        ("taylor-second-order", "check"): 3.0,
        ("taylor-second-order", "control"): 2.25,
    }
    rows = [
        {"claim": claim, "case": "cubic: g_4", "role": role, "alpha": a, "remainder": a**slope}
        | {"slope": slope}
        for (claim, role), slope in slopes.items()
        for a in alpha
    ]
    with style():
        figure = theory.draw_remainders(pd.DataFrame(rows))
    assert "slopes 2.00 and 3.00; with a wrong term 1.00 and 2.25" in figure.get_suptitle()
    for ax, claim in zip(figure.axes, ("taylor-gradient", "taylor-second-order"), strict=True):
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        for role, line, label in zip(("check", "control"), ax.get_lines(), labels, strict=True):
            slope = slopes[claim, role]
            assert label.endswith(f"slope {slope:.3f}")
            assert list(line.get_xdata()) == alpha
            assert list(line.get_ydata()) == pytest.approx([a**slope for a in alpha])


def test_coefficients_are_the_numbers():
    """The figure of coefficients shows measured against predicted, and the largest difference."""
    predicted = {
        ("MAML", "AvgGrad"): 1.0,
        ("MAML", "AvgGradInner"): -2.0,
        ("g_1 + g_2", "AvgGrad"): 2.0,
        ("g_1 + g_2", "AvgGradInner"): -1.0,
    }
    rows = [
        {"update": update, "term": term, "k": 2, "data": "cubic", "predicted": value}
        | {"measured": value + (4.6e-6 if update == "MAML" else -1e-7)}
        for (update, term), value in predicted.items()
    ]
    with style():
        figure = theory.draw_coefficients(pd.DataFrame(rows))
    assert figure.get_suptitle().endswith("measured and predicted differ by at most 5e-06")
    for ax, term in zip(figure.axes, ("AvgGrad", "AvgGradInner"), strict=True):
        drawn = np.concatenate([points.get_offsets() for points in ax.collections])
        mine = [(row["predicted"], row["measured"]) for row in rows if row["term"] == term]
        np.testing.assert_array_equal(drawn, mine)


def test_titles_fit(tables):
    with style():
        assert _fits(_draw(tables))


def _fits(figure):
    """Tell whether the title ends within the figure, with room for larger numbers."""
    return (
        figure._suptitle.get_window_extent(figure.canvas.get_renderer()).x1
        <= 0.95 * figure.bbox.width
    )


def test_same_table_same_file(tables, tmp_path):
    contents = []
    for name in ("a", "b"):
        with style():
            paths = save(_draw(tables), tmp_path / name, "figure", experiment="ablation")
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]


def test_stand_in_data_is_stamped_in_a_warning_colour(tables):
    with style():
        figure = _draw(tables)
        stamp(figure, "NOT OMNIGLOT", real=False)
    text = figure.texts[-1]
    assert text.get_text() == "NOT OMNIGLOT"
    assert text.get_color() == "#B00020"


def test_captions_are_wrapped_between_formulas_by_what_is_drawn():
    lines = _wrapped("one $\\phi \\leftarrow \\phi - \\epsilon$ two\nthree four", 15)
    assert lines == ["one $\\phi \\leftarrow \\phi - \\epsilon$ two", "three four"]
    assert _wrapped("one two $a b$ three", 8) == ["one two", "$a b$", "three"]
