"""Tidy tables: the interval against a hand calculation, the file against its table."""

import csv

import numpy as np
import pandas as pd
import pytest

from analysis.results.tables import COLUMNS, ResultsError, over_seeds, read_csv, tidy, write_csv


def _table(values):
    return pd.DataFrame({"variant": "g1", "seed": range(len(values)), "value": values})


def test_interval_over_three_seeds_by_hand():
    row = over_seeds(_table([0.1, 0.2, 0.6]), ["variant"]).iloc[0]
    # The mean is 0.3 and the standard deviation sqrt(0.07). Student's t with two degrees of freedom
    # is 4.30265 in printed tables.
    half = 4.30265 * np.sqrt(0.07) / np.sqrt(3)
    assert row["mean"] == pytest.approx(0.3)
    # The printed tables have six digits.
    assert (row.low, row.high) == pytest.approx((0.3 - half, 0.3 + half), rel=1e-5)
    assert row.seeds == 3


def test_one_seed_has_no_interval():
    row = over_seeds(_table([0.4]), ["variant"]).iloc[0]
    assert row["mean"] == 0.4
    assert np.isnan(row.low) and np.isnan(row.high)


def test_csv_keeps_every_bit(tmp_path):
    rows = [dict.fromkeys(COLUMNS, "x") | {"value": 0.1 + 0.2, "standard_error": 1 / 3, "count": 7}]
    table = tidy(rows)
    write_csv(table, tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        again = list(csv.DictReader(file))
    assert list(again[0]) == COLUMNS
    assert float(again[0]["value"]) == 0.1 + 0.2 and float(again[0]["standard_error"]) == 1 / 3


def test_a_table_that_another_program_saved_is_read_or_named(tmp_path):
    path, table = tmp_path / "a.csv", _table([0.5, 0.25])
    write_csv(table, path)
    text = path.read_text()
    for saved in ("\ufeff" + text, text + "\n", text.replace("\n", "\r\n")):
        path.write_bytes(saved.encode())
        pd.testing.assert_frame_equal(read_csv(path), table)
    path.write_text(text.replace(",", ";").replace(".", ","))
    with pytest.raises(
        ResultsError,
        match="expected columns that are separated by commas, found 'variant;seed;value'",
    ):
        read_csv(path)
