"""Figures from made-up tables: they are drawn from the numbers given, the same table gives the same file."""

import matplotlib
import pandas as pd
import pytest

from analysis.tables import over_seeds
from figures.ablation import draw_ablation, family
from figures.style import save, stamp, style
from reptile_core.meta_gradients import average, figure_3, last, total

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def intervals():
    rows = [
        {"variant": variant.name, "iteration": iteration, "seed": seed, "value": 0.2 + 0.01 * iteration + 0.05 * seed}
        for variant in figure_3()
        for iteration in (0, 10, 20)
        for seed in (0, 1)
    ]
    return over_seeds(pd.DataFrame(rows), ["variant", "iteration"])


def _draw(intervals):
    return draw_ablation(intervals, figure_3(), "a finding", "a caption", chance=0.2)


def test_curves_are_the_numbers(intervals):
    with style():
        figure = _draw(intervals)
    assert len(figure.axes) == 3
    for ax in figure.axes:
        curves = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
        assert len(curves) == 4
        for line in curves:
            assert list(line.get_ydata()) == pytest.approx([22.5, 32.5, 42.5])
    assert figure.get_suptitle() == "a finding"


def test_same_table_same_file(intervals, tmp_path):
    contents = []
    for name in ("a", "b"):
        with style():
            paths = save(_draw(intervals), tmp_path / name, "figure")
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]


def test_stand_in_data_is_stamped_in_a_warning_colour(intervals):
    with style():
        figure = _draw(intervals)
        stamp(figure, "NOT OMNIGLOT", real=False)
    text = figure.texts[-1]
    assert text.get_text() == "NOT OMNIGLOT"
    assert text.get_color() == "#B00020"


def test_families():
    assert [family(v) for v in (last(1), total(3), average(3), last(3))] == ["joint", "sum", "average", "last"]
