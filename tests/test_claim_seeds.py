"""More seeds for one claim: which runs have them, what is judged by them, and what is refused."""

import json
from argparse import ArgumentTypeError
from dataclasses import replace

import pandas as pd
import pytest

from analysis.command_line import parse
from analysis.experiments import ablation, outer
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared import claim_seeds
from analysis.plan import begin_manifest
from analysis.prepare import plans
from analysis.results import manifest
from figures.ablation import caption
from figures.report import provenance
from tests.helpers.runs import FIRST_SEED, context, judged
from tests.helpers.script import SMOKE, ablation_in, finished_in, script

LAST = "ablation-more-is-better-last"
MORE = {LAST: 7}
TOO_FEW_OR_MANY = f"expected 2 to 1000 seeds for {LAST}, as all of ablation has 1, found"


def _context(more, *, seeds=5):
    def accuracy(job, iteration):
        return 0.5 + 0.01 * len(job.variant) * (iteration > 0) + 0.001 * (job.run.seed % 5)

    return replace(context(accuracy, seeds=seeds, profile="paper"), options={"seeds_for": more})


def _numbers(runs):
    """Return the number of seeds of each run."""
    return {name: len(mine) for name, mine in runs.items()}


def test_only_what_the_claim_compares_has_more_seeds():
    scale = ablation.SCALES["paper"]
    found = _numbers(ablation.seeds_of_runs(_context(MORE), scale))
    assert found == dict.fromkeys(found, 5) | {"g2": 7, "g4": 7}
    assert set(_numbers(ablation.seeds_of_runs(_context({}), scale)).values()) == {5}
    found = _numbers(outer.seeds_of_runs(_context({"meta-adam": 9, "faster-than-maml": 6}), scale))
    assert (found[outer.ADAM], found[outer.SUM], found[outer.MAML]) == (9, 9, 6)
    assert found[outer.AVERAGE] == 5


@pytest.mark.parametrize("experiment", [ablation, outer])
def test_claims_name_runs_that_their_experiment_has(experiment):
    assert experiment.COMPARES.keys() == {claim.id for claim in experiment.CLAIMS}
    names = experiment.seeds_of_runs(_context({}), experiment.SCALES["paper"]).keys()
    for compared in experiment.COMPARES.values():
        assert set(compared) <= names


@pytest.mark.parametrize("name", ["ablation", "outer"])
def test_a_claim_is_judged_by_all_seeds_of_what_it_compares(name):
    """Each check of a claim compares the runs that COMPARES names, and no others."""
    experiment = EXPERIMENTS[name]
    for claim in experiment.compares:
        found = judged(experiment, experiment.result(_context({claim: 7})))[claim]
        assert {len(case.seeds) for case in found.cases if case.role == "check"} == {7}
    every = judged(experiment, experiment.result(_context({})))
    assert {len(case.seeds) for one in every.values() for case in one.cases} == {5}


def test_rows_of_the_first_seeds_stay_as_they_are():
    few = ablation.EXPERIMENT.result(_context({})).tables["ablation"]
    many = ablation.EXPERIMENT.result(_context(MORE)).tables["ablation"]
    pd.testing.assert_frame_equal(many[: len(few)], few)
    assert set(many[len(few) :].variant) == {"g2", "g4"}
    assert set(many[len(few) :].seed) == {FIRST_SEED + 5, FIRST_SEED + 6}


def test_captions_say_which_curves_have_more_seeds():
    settings = ablation.EXPERIMENT.settings_in(_context(MORE))
    assert settings["seeds_of"] == {"g2": 7, "g4": 7}
    assert "Mean of 5 seeds, 7 of g2, g4, band:" in caption(settings)
    without = ablation.EXPERIMENT.settings_in(_context({}))
    assert "seeds_of" not in without and "Mean of 5 seeds, band:" in caption(without)


def test_text_of_a_claim_and_its_seeds():
    assert claim_seeds.parse(claim_seeds.as_text(LAST, 7)) == (LAST, 7)
    for odd in ("", "7", "=7", f"{LAST}=", f"{LAST}=x", f"{LAST}=-1", f"{LAST}=1.5"):
        with pytest.raises(ArgumentTypeError, match="expected CLAIM=N, such as"):
            claim_seeds.parse(odd)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ("sine=9", "--seeds-for: expected one of ablation-more-is-better, "),
        ("meta-adam=9", "ablation-sums-gain-more, found 'meta-adam'"),
        (f"{LAST}=1", f"{TOO_FEW_OR_MANY} 1"),
        (f"{LAST}=1001", f"{TOO_FEW_OR_MANY} 1001"),
    ],
)
def test_bad_requests_are_refused_before_any_work(tmp_path, claim, message):
    said = script(*ablation_in(tmp_path, "--seeds-for", claim))
    assert said.code == 2 and message in said.error
    assert not (tmp_path / "manifest.json").exists()


def test_from_the_command_line_to_the_manifest_and_back(tmp_path):
    """A command with more seeds for a claim is recorded, named on the page and rerun."""
    finished_in(tmp_path, only="runs")
    assert script(*ablation_in(tmp_path, "--seeds-for", f"{LAST}=2")).code == 0
    seeds = pd.read_csv(tmp_path / "tables" / "ablation.csv").groupby("variant").seed.nunique()
    assert seeds.to_dict() == dict.fromkeys(seeds.index, 1) | {"g2": 2, "g4": 2}
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert record["options"]["seeds_for"] == {LAST: 2}
    words = provenance.options(record, EXPERIMENTS["ablation"])
    assert words == ["--seeds-for", f"{LAST}=2"]
    again = script("--from", tmp_path / "manifest.json", "--out", tmp_path / "again", "--quiet")
    assert again.code == 0 and "5 of 5 tables are the same, bit for bit" in again.out


@pytest.mark.parametrize("option", [["--seeds-for", f"{LAST}=3"], ["--variant", "mine=0,1"]])
def test_a_part_of_a_manifest_leaves_other_experiments_options(tmp_path, option):
    """A command's options for the ablation do not keep its other experiments from a rerun."""
    command = ["ablation", "outer", *SMOKE, *option, "--out", str(tmp_path)]
    (plan,) = plans(parse(command))
    record = begin_manifest(plan) | {"finished": "2026-11-27T00:00:00+00:00", "status": "finished"}
    manifest.write(record, tmp_path / "manifest.json")
    again = ["--from", str(tmp_path / "manifest.json"), "--out", str(tmp_path / "again")]
    for name in ("ablation", "outer"):
        (part,) = plans(parse([name, *again]))
        assert bool(part.options) == (name == "ablation")
        assert not part.differences
