"""Figures from made-up tables: they are drawn from the numbers given, the same table gives the same file."""

import matplotlib
import pandas as pd
import pytest

from analysis.experiments import ablation
from analysis.tables import over_seeds
from figures.ablation import draw
from figures.style import _wrapped, save, stamp, style
from reptile_core.meta_gradients import figure_3

matplotlib.use("Agg")


SETTINGS = ablation.SETTINGS | {"iterations": 20, "every": 10, "tasks": 4, "seeds": 2}


@pytest.fixture(scope="module")
def tables():
    rows = [
        {"variant": variant.name, "iteration": iteration, "seed": seed, "value": 0.2 + 0.01 * iteration + 0.05 * seed}
        for variant in figure_3()
        for iteration in (0, 10, 20)
        for seed in (0, 1)
    ]
    intervals = over_seeds(pd.DataFrame(rows), ["variant", "iteration"])
    final = pd.DataFrame({"variant": [v.name for v in figure_3()], "mean": [0.6, *[0.9] * 8, 0.8]})
    return {"ablation_intervals": intervals, "ablation_summary": final}


def _draw(tables):
    return draw(tables, SETTINGS)["ablation"]


def test_curves_are_the_numbers(tables):
    with style():
        figure = _draw(tables)
    assert len(figure.axes) == 3
    for ax in figure.axes:
        curves = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
        assert len(curves) == 4
        for line in curves:
            assert list(line.get_ydata()) == pytest.approx([22.5, 32.5, 42.5])
    assert figure.get_suptitle() == "g₁ alone ends at 60 % accuracy, the sum of 4 inner gradients at 90 %"


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
