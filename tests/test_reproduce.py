"""The script as its users meet it.

It ends in one clear line and exit code 2 before any work, or leaves a whole set of files.
"""

import json
import os
from collections import namedtuple
from math import nan
from types import SimpleNamespace

import pandas as pd
import pytest

import reproduce
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.experiment import Asked, Experiment, Result
from analysis.paper import figure_3
from analysis.plan import begin_manifest
from analysis.results.manifest import read, write
from analysis.results.rerun import work
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from analysis.runs.store import Outcome
from tests.helpers.runs import FIRST_SEED
from tests.helpers.script import SMOKE, TINY_ABLATION, ablation_in, finished_in, script


@pytest.fixture
def tiny(monkeypatch):
    """Reduce the smoke profile to a few seconds."""
    monkeypatch.setitem(reproduce.EXPERIMENTS, "ablation", TINY_ABLATION)


def _run(tmp_path, *arguments):
    return reproduce.main([*map(str, ablation_in(tmp_path)), *arguments])


def test_main_job_leaves_table_figure_and_manifest(tiny, tmp_path, monkeypatch, capsys):
    assert _run(tmp_path) == 0
    table = pd.read_csv(tmp_path / "tables" / "ablation.csv")
    assert set(table.columns) >= {"experiment", "variant", "seed", "iteration", "quantity", "value"}
    assert set(table.variant) == set(figure_3.SETTINGS["variants"])
    assert set(table.iteration) == {0, 1, 2}
    for name in ("ablation.png", "ablation.svg"):
        assert (tmp_path / "figures" / name).stat().st_size > 10_000
    assert "NOT OMNIGLOT" in (tmp_path / "figures" / "ablation.svg").read_text()
    assert "NOT OMNIGLOT" in (tmp_path / "report.html").read_text()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["data"]["real"] is False
    assert manifest["experiments"]["ablation"]["looks"] == [1, 2]
    assert manifest["wall_seconds"].keys() == manifest["worker_seconds"].keys() == {"ablation"}
    assert "NOT OMNIGLOT" in capsys.readouterr().out

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    before = (tmp_path / "tables" / "ablation.csv").read_bytes()
    monkeypatch.setattr("figures.background.draw", lambda *_: [])
    assert _run(tmp_path, "--workers", "1") == 0  # the runs are reused
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == files
    assert (tmp_path / "tables" / "ablation.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers: expected at least 1, found 0"),
        (["--seeds", "-1"], "--seeds: expected at least 1, found -1"),
        (["--epoch", "-1"], "--epoch: expected at least 0, found -1"),
        (
            ["--budget", "30m"],
            "--budget: expected the quick profile, which it plans for, found smoke",
        ),
        (
            ["--budget", "30m", "--seeds", "7"],
            "--budget: expected no --seeds with it, which it chooses, found 7",
        ),
        (["--dataset", "auto", "--data", "/no/such/folder"], "data: expected a directory"),
        (["--data", "/"], "data: expected none with the glyphs"),
        (["--split", "authors"], "--split: expected Omniglot for the authors' split, found glyphs"),
        (
            ["--iterations", "40001"],
            "--iterations: expected at most the 40,000 of ablation, found 40001",
        ),
    ],
)
def test_bad_arguments_end_before_any_work(arguments, message, tmp_path, capsys):
    assert _run(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("reproduce.py: error: ") and error.count("\n") == 1
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("experiments", "option", "value"),
    [
        (["sgd"], "--iterations", "3"),
        (["theory", "variance"], "--iterations", "1000"),
        (["theory", "sine"], "--cells", "cifar-fs"),
        (["splits"], "--tail-shots", "2"),
        (["theory"], "--variant", "mine=0,0,1,1"),
        (["sgd"], "--split", "authors"),
        (["theory"], "--seeds", "50"),
        (["theory"], "--epoch", "4"),
    ],
)
def test_an_option_that_decides_nothing_is_refused(experiments, option, value, tmp_path, capsys):
    assert reproduce.main([*experiments, option, value, "--out", str(tmp_path / "x")]) == 2
    takes = {
        "--split": "on images of characters",
        "--seeds": "that has seeds",
        "--epoch": "that has seeds",
        "--iterations": "that takes it (ablation, few_shot)",
        "--variant": "that takes it (ablation)",
    }.get(option, "that takes it (few_shot)")
    expected = f"{option}: expected an experiment {takes}, found {', '.join(experiments)}"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["few_shot", "sgd", "--budget", "30m"], "--budget: expected experiments that the pilot"),
        (["--budget", "2m", "--iterations", "10"], "--iterations: expected an experiment that"),
        (["--budget", "2m", "--seeds-for", "meta-adam=40"], "--seeds-for: expected an experiment"),
        (["--budget", "30m", "--until-decided"], "--budget: expected no --until-decided"),
        (["--budget", "30m", "--epoch", "6"], "--epoch: expected another than 6 with --budget"),
        (["sine", "--strict"], "--strict: expected an experiment with theorems, found sine"),
        (["sine", "--dry-run", "--json"], "--json: expected no --dry-run with it"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, message, tmp_path, capsys):
    options = ["--dataset", "glyphs"] * ("sine" not in arguments)
    assert reproduce.main([*arguments, *options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_each_experiment_is_given_the_options_that_it_takes(tmp_path):
    options = ["few_shot", "sgd", "--profile", "smoke", "--dataset", "glyphs", "--iterations", "3"]
    (plan,) = reproduce.plans(reproduce.parse([*options, "--out", str(tmp_path)]))
    few_shot, sgd = (plan.context_of(experiment) for experiment in plan.experiments)
    assert (few_shot.options, sgd.options) == ({"iterations": 3}, {})
    assert begin_manifest(plan)["options"]["iterations"] == 3


def test_the_ablation_takes_iterations_and_has_a_folder_for_a_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "ablation",
        "few_shot",
        "--profile",
        "smoke",
        "--dataset",
        "glyphs",
        "--iterations",
        "3",
    ]
    (plan,) = reproduce.plans(reproduce.parse([*options, "--variant", "mine=0,0,1,1"]))
    ablation, few_shot = (plan.context_of(experiment).options for experiment in plan.experiments)
    assert ablation == {"iterations": 3, "variants": plan.options["variants"]} and few_shot == {
        "iterations": 3
    }
    assert str(plan.out) == "results/smoke-mine"
    assert begin_manifest(plan)["options"]["variants"] == ["mine=0.0,0.0,1.0,1.0"]
    (plan,) = reproduce.plans(reproduce.parse(options))
    assert (
        plan.context_of(plan.experiments[0]).options == {"iterations": 3}
        and str(plan.out) == "results/smoke"
    )


@pytest.mark.parametrize("experiments", [["theory"], ["sine", "sgd"], ["theory", "sine", "sgd"]])
def test_what_needs_no_omniglot_neither_fetches_nor_loads_it(experiments, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("expected no use of the network")

    monkeypatch.delenv("REPTILE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", forbidden)
    monkeypatch.setattr("reptile_core.datasets.omniglot.download", forbidden)
    (plan,) = reproduce.plans(
        reproduce.parse([*experiments, "--profile", "smoke", "--out", str(tmp_path / "out")])
    )
    theorems = "theory" in experiments  # its minibatches then come from the stand-in data
    assert (plan.data.name if plan.data else None) == ("glyphs" if theorems else None)
    record = begin_manifest(plan)
    assert (record["data"] is None) != theorems
    write(record, tmp_path / "manifest.json")
    assert work(read(tmp_path / "manifest.json")) == json.loads(json.dumps(work(record)))


@pytest.mark.parametrize(
    ("decision", "more", "code"),
    [
        (REFUTED, ["--strict"], 1),
        (UNDECIDED, ["--strict"], 1),
        (SUPPORTED, ["--strict"], 0),
        (REFUTED, [], 0),
    ],
)
def test_strict_fails_unless_all_theorems_are_supported(
    decision, more, code, tmp_path, monkeypatch
):
    theorem, *others = EXPERIMENTS["theory"].claims
    found = [SimpleNamespace(claim=claim, decision=SUPPORTED) for claim in others]
    found.append(SimpleNamespace(claim=theorem, decision=decision))
    monkeypatch.setattr(reproduce, "run", lambda plan: (found, {"tables": {}}))
    assert script("theory", *SMOKE, "--out", tmp_path, *more).code == code


def test_an_unknown_experiment_is_named(tmp_path, capsys):
    assert reproduce.main(["nonsense", "--out", str(tmp_path)]) == 2
    assert (
        f"EXPERIMENT: expected one of {', '.join(EXPERIMENTS)}, found 'nonsense'"
        in capsys.readouterr().err
    )


def test_cuda_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _run(tmp_path, "--device", "cuda") == 2
    assert "found none that torch can use" in capsys.readouterr().err


def test_out_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert _run(tmp_path / "file") == 2
    assert "--out: expected a folder that can be written" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_that_cannot_be_written(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert _run(tmp_path / "x") == 2
    assert "--out: expected a folder that can be written" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "30", "m", "0m", "1 h", "1e3s"])
def test_a_duration_that_is_none(text, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--budget", text])
    assert stop.value.code == 2
    assert "expected a duration such as 90s, 30m, 2h or 1d" in capsys.readouterr().err


def test_unknown_option_is_argparses_exit_2(tmp_path):
    with pytest.raises(SystemExit) as stop:
        _run(tmp_path, "--nonsense")
    assert stop.value.code == 2


def test_list_names_what_it_shows_and_takes(capsys):
    assert reproduce.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "ablation" in out and "shows" in out and "takes" in out


def test_damaged_run_file_ends_in_one_line_and_is_kept(tmp_path):
    finished_in(tmp_path)
    victim = next((tmp_path / "runs").glob("*.safetensors"))
    victim.write_bytes(b"nonsense")
    said = script(*ablation_in(tmp_path))
    assert said.code == 1 and str(victim) in said.error
    assert victim.read_bytes() == b"nonsense"
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "interrupted"


def test_an_experiment_may_have_data_of_its_own(tmp_path):
    options = ["ablation", "sine", *SMOKE, "--out", str(tmp_path)]
    (plan,) = reproduce.plans(reproduce.parse(options))
    images, waves = (plan.data_line(experiment) for experiment in plan.experiments)
    assert "NOT OMNIGLOT" in images
    assert waves == f"Data: {EXPERIMENTS['sine'].data} · profile: smoke"
    both = plan.data_line(plan.experiments[0], ("glyphs", "CIFAR-FS"))
    assert both == images.replace(" · profile", "; CIFAR-FS · profile")
    assert plan.data_line(plan.experiments[0], ("CIFAR-FS",)) == "Data: CIFAR-FS · profile: smoke"


def test_what_is_done_is_noted_and_each_experiment_has_asked_for_nothing_yet(tmp_path):
    def run(context):
        assert context.asked == Asked()
        context.asked.data["photographs"] = "0f"
        return Result({"made_up": pd.DataFrame({"x": [1.0]})})

    (plan,) = reproduce.plans(
        reproduce.parse(["sgd", "--profile", "smoke", "--out", str(tmp_path)])
    )
    one = Experiment(name="made_up", shows="", takes={}, claims=(), settings=lambda _: {}, run=run)
    done = reproduce.Done()
    for _ in range(2):
        reproduce.run_one(one, plan, done, SimpleNamespace(begin=lambda *_: None))
    assert done.other_data == {"made_up": {"photographs": "0f"}}
    assert done.tables["made_up"].keys() == {"made_up.csv"}


def test_another_seed_costs_what_its_runs_took(tmp_path, monkeypatch):
    """Where runs were trained before, a seed's price is not what reading them takes."""
    finished_in(tmp_path, only="runs")
    monkeypatch.setattr(Asked, "training_seconds", lambda self: 6_000.0 * len(self.runs))
    complete, prices = reproduce.folder.complete, []

    def noted(found, *, seconds, **more):
        prices.append(seconds)
        return complete(found, seconds=seconds, **more)

    monkeypatch.setattr(reproduce.folder, "complete", noted)
    assert script(*ablation_in(tmp_path, "--workers", 2)).code == 0
    assert prices == [6_000.0 * 10 / 2]  # ten variants on two workers


def test_training_of_a_run_is_counted_once():
    run = namedtuple("run", "key end")
    asked = Asked()
    for key, end, took in (("a", 5, 1.0), ("a", 10, 2.0), ("b", 10, 4.0)):
        asked.runs[run(key, end)] = Outcome("finished", took, end)
    assert asked.training_seconds() == 6.0


def test_times_of_an_experiment_add_up():
    done = reproduce.Done()
    done.add_time("sgd", 1.5, nan)
    done.add_time("sgd", 2.0, 3.0)
    done.add_time("sgd", 2.5, 4.0)
    assert (done.wall_seconds, done.worker_seconds) == ({"sgd": 6.0}, {"sgd": 7.0})


def test_seeds_are_added_until_it_is_decided(tmp_path, monkeypatch):
    """Seeds are added until a claim is decided.

    A second round with one seed more is a second look, and the manifest holds the final number of
    seeds.
    """
    claim = "ablation-more-is-better-last"
    rounds = iter([{"ablation": 2}, {claim: 3}, {}])
    monkeypatch.setattr(reproduce.budget, "more_seeds", lambda *_: next(rounds))
    finished_in(tmp_path, only="runs")
    said = script(*ablation_in(tmp_path, "--until-decided"))
    assert said.code == 0 and "ablation: 2 seeds, to decide more" in said.out
    assert f"{claim}: 3 seeds, to decide more" in said.out
    evidence = pd.read_csv(tmp_path / "tables" / "ablation_evidence.csv")
    looks = evidence.groupby("seed")["look"].first().to_dict()
    assert looks == {FIRST_SEED: 1, FIRST_SEED + 1: 2, FIRST_SEED + 2: 3}
    assert set(evidence[evidence.look == 3].claim) == {claim}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["options"]["seeds"] == {"ablation": 2}
    assert manifest["options"]["seeds_for"] == {claim: 3}
    assert manifest["experiments"]["ablation"]["seeds"] == 2


def test_other_seeds_by_epoch(tmp_path):
    assert script(*ablation_in(tmp_path, "--epoch", "7")).code == 0
    assert set(pd.read_csv(tmp_path / "tables" / "ablation.csv").seed) == {7000}
    claims = json.loads((tmp_path / "claims.json").read_text())
    assert next(claim for claim in claims if claim["id"] == "ablation-g1")["epochs"] == [7]


def test_a_budget_may_pay_for_what_its_profile_leaves_out(monkeypatch, tmp_path):
    asked: list[str] = []

    def choose(names, seconds, *, workers):
        asked.extend(names)
        return {"sgd": 5}

    monkeypatch.setattr("analysis.budget.choose", choose)
    options = ["--budget", "5m", "--dataset", "glyphs", "--out", str(tmp_path)]
    (plan,) = reproduce.plans(reproduce.parse(options))
    assert set(asked) == set(EXPERIMENTS) and "quick" not in EXPERIMENTS["rho"].profiles
    assert [experiment.name for experiment in plan.experiments] == ["sgd"]
