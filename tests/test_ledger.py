"""The ledger as a file and in words, and the folder that holds its evidence."""

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pandas as pd
import pytest

from analysis.results import evidence, folder, ledger, looks, wording
from analysis.results.claims import Claim, Control
from analysis.results.evidence import rows
from analysis.results.judge import judge
from analysis.results.tables import ResultsError
from analysis.results.verdict import Case, SeedPlan, Verdict

CLAIM = Claim(
    id="c",
    kind="experiment",
    sources=("B", "P6.2"),
    statement="s",
    quantity="q",
    band=(0.0, inf),
    reason="r",
    control=Control(kind="sham", words="w", band=(-0.5, 0.5)),
    amended="a",
    epoch=1,
)


def found(values, *, sham=(0.0, 0.1, -0.1, 0.0, 0.1), first=1000, claim="c"):
    checks = rows(
        claim,
        "a",
        "check",
        {first + i: value for i, value in enumerate(values)},
        tasks=30,
        queries=5,
    )
    shams = rows(claim, "a", "control", {first + i: value for i, value in enumerate(sham)})
    return evidence.tabulate([*checks, *shams])


def write(out: Path, values, **more):
    table = folder.complete(
        found(values), data="Data: x", profile="quick", diverged=(), seconds=10.0, workers=2
    )
    return folder.write_evidence(out, "ablation", table.assign(**more))


def test_the_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    verdicts = judge(
        [CLAIM, replace(CLAIM, id="nothing")], found([1.0, 0.9, 1.2, 1.0, 0.8]).assign(epoch=1.0)
    )
    undecided = judge([CLAIM], found([1.0, -0.6, 1.6, 0.2, 0.9]).assign(epoch=1.0))
    for written in (verdicts, undecided):
        ledger.write(written, tmp_path)
        assert str(ledger.read(tmp_path)) == str(written)  # as text, as NaN is unequal to itself


def test_its_objects_hold_what_other_programs_ask_for() -> None:
    (verdict,) = judge([CLAIM], found([1.0, 0.9, 1.2, 1.0, 0.8]).assign(epoch=1.0))
    record = ledger.as_record(verdict)
    assert (record["id"], record["kind"], record["verdict"]) == ("c", "experiment", "supported")
    assert record["cases"][0]["seeds"] == [1000, 1001, 1002, 1003, 1004]
    assert record["control"]["outcome"] == "failed" and record["control"]["kind"] == "sham"
    assert record["band"] == [0.0, None]  # None: no upper end
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found none; python reproduce.py writes it"),
        ("{", "expected JSON"),
        ("{}", "expected a list of claims, found dict"),
        ("[1]", "expected a claim with its verdict, found 1"),
        ('[{"id": "x"}]', "expected a claim with its verdict, found 'x'"),
    ],
)
def test_a_ledger_that_is_none_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / ledger.NAME).write_text(content)
    with pytest.raises(ResultsError, match=message):
        ledger.read(tmp_path)


def test_words() -> None:
    assert wording.band((0.0, inf)) == "≥ 0" and wording.band((-inf, 0.1)) == "≤ 0.1"
    assert (
        wording.band((-0.25, 0.25)) == "[-0.25, 0.25]" and wording.band((-inf, inf)) == "any value"
    )
    assert wording.number(-0.0) == "0" and wording.number(nan) == "–"
    case = Case("a", "check", "supported", 0.5, 0.25, 0.75)
    assert wording.interval(case) == "0.5 [0.25, 0.75]"
    assert wording.interval(replace(case, low=nan, high=nan)) == "0.5"
    assert wording.plan(SeedPlan(4, 180.0)) == "4 more seeds, about 3 minutes"
    assert wording.plan(SeedPlan(1)) == "1 more seed"
    assert wording.plan(SeedPlan(None)).startswith("more than 200 seeds would be needed")
    verdict = Verdict(CLAIM, "undecided", "too wide", plan=SeedPlan(2, 1.0))
    assert wording.reason(verdict) == "the intervals are too wide; 2 more seeds, about 1 second"
    assert wording.reason(replace(verdict, decision="supported")) == ""
    assert ledger.count([verdict, verdict]) == {"supported": 0, "refuted": 0, "undecided": 2}


def test_the_script_completes_evidence() -> None:
    table = folder.complete(
        found([1.0] * 5), data="Data: x", profile="quick", diverged=("d",), seconds=10.0, workers=2
    )
    assert (
        set(table["data"]) == {"Data: x"}
        and set(table.epoch) == {1}
        and set(table.diverged) == {"d"}
    )
    assert set(table.seconds) == {2.0}  # ten seconds for five seeds
    own = folder.complete(
        found([1.0] * 5).assign(seconds=30.0, data="mine"),
        data="x",
        profile="q",
        diverged=(),
        seconds=1.0,
        workers=2,
    )
    assert set(own.seconds) == {15.0} and set(own["data"]) == {"mine"}


def test_more_seeds_in_one_folder_are_another_look(tmp_path: Path) -> None:
    claims = {"ablation": (CLAIM,)}
    write(tmp_path, [1.0, -1.0, 1.6, 0.2, 0.3])
    assert folder.judge_all(tmp_path, claims)[0].look == 1
    (path,) = write(tmp_path, [1.0, -1.0, 1.6, 0.2, 0.3, 0.5, 0.4])
    assert pd.read_csv(path).look.max() == 2
    assert folder.judge_all(tmp_path, claims)[0].look == 2
    write(tmp_path, [1.0, -1.0, 1.6, 0.2, 0.3, 0.5, 0.4])
    assert folder.judge_all(tmp_path, claims)[0].look == 2  # the same seeds are no new look


def test_other_seeds_or_another_scale_begin_from_the_first_look(tmp_path: Path) -> None:
    write(tmp_path, [1.0] * 5)
    for change in ({"epoch": 2.0}, {"profile": "paper"}):
        (path,) = write(tmp_path, [1.0] * 6, **change)
        assert set(pd.read_csv(path).look) == {1}


def test_a_folder_remembers_its_looks(tmp_path: Path) -> None:
    """A folder remembers its looks, whatever was written over the evidence in between."""
    many = [1.0, -1.0, 1.6, 0.2, 0.3, 0.5, 0.4, 1.0, -0.5, 0.1]
    write(tmp_path, many[:5])
    write(tmp_path, many[:8])
    write(tmp_path, many[:5])
    folder.write_evidence(tmp_path, "ablation", evidence.NO_EVIDENCE)
    write(tmp_path, many, data="Data: another")
    (path,) = write(tmp_path, many)
    table = pd.read_csv(path)
    assert table[table.role == "check"].look.tolist() == [1] * 5 + [2] * 3 + [3] * 2
    (path,) = write(tmp_path, many, epoch=2.0)
    assert set(pd.read_csv(path).look) == {1}
    (path,) = write(tmp_path, many)
    assert pd.read_csv(path).look.max() == 3
    (tmp_path / looks.NAME).write_text("look\n1\n")
    with pytest.warns(UserWarning, match="expected the columns claim"):
        (path,) = write(tmp_path, many)
    assert pd.read_csv(path).look.max() == 3  # as the evidence there says


def test_an_experiment_without_evidence_is_not_measured(tmp_path: Path) -> None:
    (verdict,) = folder.judge_all(tmp_path, {"ablation": (CLAIM,)})
    assert (verdict.decision, verdict.why) == ("undecided", "not measured")


def test_durations_have_a_unit_that_fits() -> None:
    seconds = (0, 0.2, 3, 150, 9000, 2e5)
    whole = ["0 seconds", "1 second", "3 seconds", "2 minutes", "2 hours", "2 days"]
    tenths = ["0 seconds", "1 second", "3 seconds", "2.5 minutes", "2.5 hours", "2.3 days"]
    assert [wording.duration(s) for s in seconds] == whole
    assert [wording.duration(s, digits=1) for s in seconds] == tenths
