"""A file of the user's own: its claim is in the ledger, the report and the figures.

An error in such a file is named.
"""

import json
from pathlib import Path

import pytest

import reproduce
from analysis.ending import UsageError
from analysis.experiments.registry import EXPERIMENTS
from analysis.plugins import loaded
from tests.helpers.script import InProcess

EXAMPLE = Path(__file__).parent / "own_claim.py"


def test_a_claim_of_ones_own_is_in_the_ledger_the_report_and_the_figures(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("analysis.prepare.Workers", InProcess)
    options = ["--profile", "smoke", "--dataset", "glyphs", "--quiet", "--out", str(tmp_path)]
    assert reproduce.main(["own_claim", "--plugin", str(EXAMPLE), *options]) == 0, (
        capsys.readouterr().err
    )
    ledger = json.loads((tmp_path / "claims.json").read_text())
    (mine,) = [row for row in ledger if row["id"] == "own-claim"]
    assert mine["verdict"] == "supported"
    report = (tmp_path / "report.md").read_text()
    assert (
        "our method is right nine times in ten" in report
        and "Ours is right nine times in ten" in report
    )
    assert {path.suffix for path in (tmp_path / "figures").glob("own_claim.*")} == {
        ".png",
        ".svg",
        ".pdf",
    }
    assert "own_claim" not in EXPERIMENTS
    assert reproduce.main(["report", "--out", str(tmp_path), "--plugin", str(EXAMPLE)]) == 0
    assert reproduce.main(["report", "--out", str(tmp_path)]) == 1
    assert "--plugin FILE names a claim of your own" in capsys.readouterr().err


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 45


WRONG = {
    "nothing": ("", "expected EXPERIMENT, an Experiment, in .*found none"),
    "another": ("EXPERIMENT = 1", r"expected EXPERIMENT, an Experiment, in .*found \[1\]"),
    "broken": ("import nowhere_at_all", "expected a file that can be imported.*nowhere_at_all"),
    "json": ("EXPERIMENT = 1", "expected a name that no other module has, found 'json'"),
    "twice": (
        "from tests.own_claim import EXPERIMENT as one\nEXPERIMENTS = [one, one]",
        "expected a name that no experiment has, found 'own_claim'",
    ),
    "taken": (
        "from dataclasses import replace\nfrom tests.own_claim import EXPERIMENT as one\n"
        "EXPERIMENT = replace(one, name='theory')",
        "expected a name that no experiment has, found 'theory'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_plugin_is_named(tmp_path, name):
    content, message = WRONG[name]
    (tmp_path / f"{name}.py").write_text(content)
    before = dict(EXPERIMENTS)
    with pytest.raises(UsageError, match=f"--plugin: {message}"), loaded([tmp_path / f"{name}.py"]):
        pass
    assert before == EXPERIMENTS


def test_a_file_that_is_not_there_is_named(tmp_path):
    with (
        pytest.raises(UsageError, match="--plugin: expected a Python file"),
        loaded([tmp_path / "none.py"]),
    ):
        pass
