"""The judge on made-up tables: supported, refuted, inconclusive, not judged, and a check that cannot fail."""

import dataclasses
import json

import pandas as pd
import pytest

from analysis.claims import (
    CANNOT_FAIL,
    INCONCLUSIVE,
    NOT_JUDGED,
    REFUTED,
    SUPPORTED,
    TOO_SMALL,
    Claim,
    Interval,
    counts,
    judge,
    ledger,
    lines,
    measurement,
    span,
    write_ledger,
)

NAN = float("nan")
CLAIM = Claim("a", "P5", "theorem", "slope 2", "slope", 1.95, 2.05, "fit", "a dropped term")
FAILS = Interval(0.99, 1.01)


@pytest.mark.parametrize(
    ("measured", "control", "verdict"),
    [
        (Interval(1.97, 2.03), FAILS, SUPPORTED),
        (Interval(1.95, 2.05), FAILS, SUPPORTED),
        (Interval(2.9, 3.1), FAILS, REFUTED),
        (Interval(1.0, 1.1), FAILS, REFUTED),
        (Interval(1.9, 2.0), FAILS, INCONCLUSIVE),
        (Interval(1.0, 3.0), FAILS, INCONCLUSIVE),
        (Interval(NAN, NAN), FAILS, INCONCLUSIVE),
        (None, FAILS, NOT_JUDGED),
        (Interval(2.0, 2.0), Interval(2.0, 2.0), CANNOT_FAIL),
        (Interval(2.0, 2.0), Interval(1.0, 2.0), CANNOT_FAIL),
        (Interval(2.0, 2.0), Interval(NAN, NAN), CANNOT_FAIL),
        (Interval(2.0, 2.0), None, CANNOT_FAIL),
        (Interval(3.0, 3.0), None, CANNOT_FAIL),
    ],
)
def test_verdicts(measured, control, verdict):
    assert judge(CLAIM, [measured] if measured else [], [control] if control else []) == verdict


def _judged(values, controls=(1.0,)):
    rows = [{"claim": "a", "case": "x", "role": "check", "value": value} for value in values]
    rows += [{"claim": "a", "case": "c", "role": "control", "value": value} for value in controls]
    return ledger([CLAIM], pd.DataFrame(rows)).iloc[0]


def test_one_counterexample_among_many_cases_refutes():
    row = _judged([2.0] * 9 + [1.2])
    assert row.verdict == REFUTED
    assert (row.measured_low, row.measured_high, row.cases) == (1.2, 2.0, 10)


def test_a_nan_case_is_not_overlooked():
    assert _judged([2.0, NAN]).verdict == INCONCLUSIVE
    assert _judged([2.0, NAN, 1.0]).verdict == REFUTED


def test_controls_may_fail_on_either_side_of_the_band_but_all_must():
    assert _judged([2.0], controls=(1.0, 3.0)).verdict == SUPPORTED
    assert _judged([2.0], controls=(1.0, 2.0, 3.0)).verdict == CANNOT_FAIL


def test_intervals_over_seeds_are_used_where_there_are_some():
    rows = [{"claim": "a", "case": "x", "role": "check", "value": 2.0, "low": 1.0, "high": 3.0}]
    rows += [{"claim": "a", "case": "c", "role": "control", "value": 1.0}]
    assert ledger([CLAIM], pd.DataFrame(rows)).verdict[0] == INCONCLUSIVE


def test_files_and_lines(tmp_path):
    rows = [{"claim": "a", "case": "x", "role": role, "value": v} for role, v in (("check", 2.0), ("control", 1.0))]
    other = Claim("b", "P6", "experiment", "more | is better", "gain", 0.0, 1.0, "r", "c")
    table = ledger([CLAIM, other], pd.DataFrame(rows))
    write_ledger(table, tmp_path)
    assert [row["verdict"] for row in json.loads((tmp_path / "claims.json").read_text())] == [SUPPORTED, NOT_JUDGED]
    assert list(pd.read_csv(tmp_path / "claims.csv").id) == ["a", "b"]
    assert "more \\| is better" in (tmp_path / "claims.md").read_text()
    assert [line.split()[:2] for line in lines(table)] == [["a", SUPPORTED], ["b", "not"]]
    assert counts(table) == "1 supported, 1 not judged"


def test_a_band_must_be_one():
    with pytest.raises(ValueError, match="band of a"):
        Claim("a", "P5", "theorem", "s", "q", 2.0, 1.0, "r", "c")


@pytest.mark.parametrize(
    ("least", "profile", "verdict"),
    [("quick", "smoke", TOO_SMALL), ("quick", "paper", SUPPORTED), ("paper", "quick", TOO_SMALL)],
)
def test_a_smaller_scale_than_the_claims_gives_no_verdict(least, profile, verdict):
    rows = [{"claim": "a", "role": role, "value": v, "profile": profile} for role, v in (("check", 2), ("control", 1))]
    claim = dataclasses.replace(CLAIM, least=least)
    assert ledger([claim], pd.DataFrame(rows)).verdict[0] == verdict
    assert ledger([claim], pd.DataFrame(rows[:0], columns=["claim"])).verdict[0] == NOT_JUDGED


def test_an_interval_ends_where_the_quantity_does():
    row = measurement("a", "x", "check", [0.9, 1.0, 0.95], least=-1.0, most=1.0)
    assert row["high"] == 1.0 and 0 < row["low"] < 0.9
    alone = measurement("a", "x", "check", [0.9], least=-1.0, most=1.0)
    assert (alone["low"], alone["high"]) == (-1.0, 1.0)
    assert measurement("a", "x", "check", [0.9])["high"] == float("inf")


def test_an_interval_in_words():
    assert (span(-0.0, 1e-16), span(-0.0, 0.0), span(None, 1.0)) == ("0 … 1e-16", "0", "not measured")
