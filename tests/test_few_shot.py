"""Section 6.1: settings against the paper's, chunks against the whole, data, ledger, figure."""

from dataclasses import replace
from math import isnan, log
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analysis.experiments import few_shot, few_shot_cells, few_shot_tables
from analysis.experiments.few_shot_cells import Unmeasured
from analysis.experiments.shared.experiment import EPOCH, Context
from analysis.paper.benchmarks import (
    BENCHMARKS,
    METHODS,
    PUBLISHED,
    SCALES,
    SEEDS,
    Scale,
    configure,
    evaluated,
)
from analysis.results.judge import judge
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from analysis.runs import evaluation_chunks
from analysis.runs.job import Source
from analysis.runs.store import Outcome
from analysis.runs.workers import silent
from figures.few_shot import MEASURED, NOT_ASKED, ROWS, draw
from figures.report.tables import papers
from figures.style import style
from reptile_core import datasets, training
from reptile_core.checkpoints import CheckpointError
from reptile_core.evaluation import estimate
from reptile_core.training import build_network
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

BENCHMARK = {benchmark.name: benchmark for benchmark in BENCHMARKS}
METHOD = {method.name: method for method in METHODS}


@pytest.fixture(scope="module")
def source():
    return Source("glyphs", None, datasets.load("glyphs").content, real=False)


@pytest.fixture
def context(source, tmp_path, monkeypatch):
    """Return a context on the glyphs, in this process, where no other data can be found."""
    monkeypatch.delenv("REPTILE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def in_turn(name, function, items, *, sizes=None, unit=""):
        return [function(item, silent) for item in items]

    workers = SimpleNamespace(map=in_turn, quiet=True)
    return Context("smoke", source, workers, tmp_path / "runs", epoch=EPOCH)  # type: ignore[arg-type]


# ---- settings


@pytest.mark.parametrize(
    ("name", "n_way", "rate", "batch", "steps", "train_shots", "iterations", "batches"),
    [
        ("omniglot-5way", 5, 1e-3, 10, 5, 10, 100_000, {1: 5, 5: 5}),
        ("omniglot-20way", 20, 5e-4, 20, 10, 10, 200_000, {1: 10, 5: 10}),
        ("mini-imagenet", 5, 1e-3, 10, 8, 15, 100_000, {1: 5, 5: 15}),
    ],
)
def test_settings_are_the_papers(name, n_way, rate, batch, steps, train_shots, iterations, batches):
    benchmark, scale = BENCHMARK[name], SCALES["paper"][name]
    run = configure(benchmark, METHOD["reptile"], scale, seed=1)
    assert (run.sampling.n_way, run.sampling.batch, run.sampling.steps) == (n_way, batch, steps)
    assert (run.sampling.shots, run.sampling.tail_shots, run.iterations) == (
        train_shots,
        0,
        iterations,
    )
    assert (run.inner.optimizer, run.inner.learning_rate, run.inner.moments) == (
        "adam",
        rate,
        "kept",
    )
    assert (run.outer.optimizer, run.outer.step, run.outer.final, run.meta_batch) == (
        "plain",
        1.0,
        0.0,
        5,
    )
    assert (run.weights, run.network, run.seed) == ((1.0,) * steps, benchmark.data, 1)
    assert (scale.tasks, SEEDS["paper"]) == (10_000, 5)
    for shots in (1, 5):
        cut = evaluated(benchmark, shots)
        assert (cut.n_way, cut.shots, cut.batch, cut.steps) == (n_way, shots, batches[shots], 50)


def test_cifar_fs_is_run_as_mini_imagenet_with_64_filters_of_32_pixels():
    cifar, mini = BENCHMARK["cifar-fs"], BENCHMARK["mini-imagenet"]
    assert replace(cifar, name=mini.name, data=mini.data) == mini
    shapes = build_network(configure(cifar, METHODS[0], SCALES["paper"]["cifar-fs"], 0)).shapes
    assert shapes["conv0.weight"] == (9 * 3, 64) and shapes["linear.weight"] == (2 * 2 * 64, 5)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=BENCHMARK)
def test_a_tail_is_a_minibatch_and_all_else_is_reptiles(benchmark):
    scale = SCALES["paper"][benchmark.name]
    reptile, fomaml, maml = (
        configure(benchmark, METHOD[m], scale, 0) for m in ("reptile", "fomaml", "maml")
    )
    assert fomaml.sampling.tail_shots * benchmark.n_way == benchmark.batch
    assert fomaml.weights == (0.0,) * (benchmark.steps - 1) + (1.0,)
    assert (
        replace(fomaml, weights=reptile.weights, sampling=reptile.sampling, outer=reptile.outer)
        == reptile
    )
    assert maml.weights == "maml"
    assert replace(maml, weights=fomaml.weights) == fomaml
    assert (fomaml.outer.optimizer, fomaml.outer.step, fomaml.outer.final) == ("adam", 1e-3, 0.0)


def test_published_numbers():
    """One number from each row and column of the paper's two tables is as published."""
    assert PUBLISHED["maml", True, "mini-imagenet", 1][:2] == (48.70, 1.84)
    assert PUBLISHED["fomaml", True, "mini-imagenet", 5][:2] == (63.15, 0.91)
    assert PUBLISHED["reptile", False, "omniglot-5way", 1][:2] == (95.39, 0.09)
    assert PUBLISHED["reptile", True, "omniglot-5way", 5][:2] == (99.48, 0.06)
    assert PUBLISHED["reptile", False, "omniglot-20way", 1][:2] == (88.14, 0.15)
    assert PUBLISHED["maml", True, "omniglot-20way", 5][:2] == (98.9, 0.2)
    assert PUBLISHED["maml", True, "cifar-fs", 1][:2] == (58.9, 1.9)
    assert len(PUBLISHED) == 4 * 6 + 2


# ---- running


def _small(monkeypatch, name, scale, **changes):
    """Reduce the smoke profile to one small benchmark, evaluated in chunks of two tasks."""
    small = replace(BENCHMARK[name], batch=5, steps=2, train_shots=2, **changes)
    for module in (few_shot, few_shot_cells, few_shot_tables):
        monkeypatch.setattr(module, "BENCHMARKS", [small])
    monkeypatch.setitem(SCALES, "smoke", {name: scale})
    for module in (few_shot_cells, evaluation_chunks):
        monkeypatch.setattr(module, "CHUNK", 2)
    return small


def test_chunks_give_what_the_whole_gives_and_are_kept(context, monkeypatch):
    benchmark = _small(monkeypatch, "omniglot-5way", Scale(iterations=2, tasks=3))
    result = few_shot.run(context)
    table = result.tables["few_shot"].set_index(["shots", "method", "quantity"])
    assert set(table.seed) == {FIRST_SEED}
    training_ = few_shot_cells.Training(
        benchmark, METHOD["reptile"], SCALES["smoke"]["omniglot-5way"], context.source
    )
    job = training_.job(FIRST_SEED, context)
    *_, end = training.train(job.run, job.pool("train"), training.start(job.run))
    for shots in (1, 5):
        for method, state, tasks in (
            ("reptile", end, 3),
            ("untrained", training.start(job.run), 2),
        ):
            sampling = evaluated(benchmark, shots)
            for quantity, values in training.evaluate(
                job.run, job.pool("test"), state, sampling, range(tasks)
            ).items():
                found, row = estimate(values), table.loc[shots, method, quantity]
                assert (row.value, row["count"]) == (pytest.approx(found.mean, abs=1e-12), tasks)
                assert row.standard_error == pytest.approx(found.standard_error, abs=1e-12)
    files = {path: path.stat().st_mtime_ns for path in context.runs.rglob("*.safetensors")}
    assert len(files) == 3 + 2 * (3 * 2 + 1)
    pd.testing.assert_frame_equal(
        few_shot.run(context).tables["few_shot"], result.tables["few_shot"]
    )
    assert {path: path.stat().st_mtime_ns for path in files} == files
    (cell,) = [c for c in few_shot_cells.cells([training_], context) if c.trained and c.shots == 1]
    chunk, _ = evaluation_chunks.chunks(*cell.measured)
    other = next(path for path in files if path.parent.name == "evaluations" and path != chunk.path)
    chunk.path.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="expected the evaluation"):
        few_shot.run(context)


def test_a_seed_that_diverged_counts_at_chance(context, monkeypatch):
    _small(monkeypatch, "omniglot-5way", Scale(iterations=2, tasks=3))

    def lost(self, name, jobs):
        return {job: Outcome("diverged at iteration 1", 4.0, 1) for job in jobs}

    monkeypatch.setattr(Context, "train", lost)
    result = few_shot.run(replace(context, seeds=2))
    table = result.tables["few_shot"]
    trained = table[table.method != "untrained"]
    assert trained.value.tolist() == pytest.approx([0.2] * len(trained))
    assert set(trained.seed) == {FIRST_SEED, FIRST_SEED + 1} and set(trained["count"]) == {3}
    assert set(result.tables["few_shot_summary"].status) == {MEASURED}


def test_what_a_training_takes_is_its_evaluations_too(context, monkeypatch):
    benchmark = _small(monkeypatch, "omniglot-5way", Scale(iterations=2, tasks=3))
    training_ = few_shot_cells.Training(
        benchmark, METHOD["reptile"], SCALES["smoke"]["omniglot-5way"], context.source
    )
    measured = [cell for cell in few_shot_cells.cells([training_], context) if cell.trained]
    job = measured[0].job
    images = sum(
        chunk.images for cell in measured for chunk in evaluation_chunks.chunks(*cell.measured)
    )
    found = few_shot_cells.seconds_of(measured, {job: Outcome("finished", 8.0, 2)})
    assert found == {"omniglot-5way-reptile": pytest.approx(8.0 * (1 + images / job.images))}


def test_what_one_more_seed_of_a_claim_takes_is_all_that_it_compares():
    seconds = {
        "omniglot-5way-reptile": 5.0,
        "omniglot-20way-reptile": 7.0,
        "omniglot-5way-maml": 40.0,
    }
    evidence = (
        few_shot.evidence(_table(_as_published), BOTH, seconds).groupby("claim").seconds.unique()
    )
    assert evidence.map(list).to_dict() == {
        "table-omniglot": [12.0],
        "table-omniglot-similar": [52.0],
    }


def test_cells_are_chosen_by_how_their_names_begin(context):
    quick = replace(context, profile="quick", options={"cells": ("omniglot-5way-reptile", "cifar")})
    trainings, others = few_shot_cells.plan(quick)
    assert [t.name for t in trainings] == ["omniglot-5way-reptile"]
    assert others["omniglot-5way-maml"] == Unmeasured(few_shot_cells.NOT_ASKED)
    assert others["omniglot-20way-reptile"] == Unmeasured(few_shot_cells.NOT_IN_PROFILE)
    assert others["cifar-fs-fomaml"].status == few_shot_cells.HINDERED
    assert "cifar_fs.zip" in others["cifar-fs-fomaml"].reason  # asked for, and nowhere to be found


def _omniglot(context):
    return replace(context.source, name="omniglot", real=True)


def test_iterations_of_the_users_are_run_and_not_judged(context):
    asked = replace(
        context, profile="quick", options={"cells": ("omniglot-5way-reptile",), "iterations": 7}
    )
    assert few_shot.settings(asked)["benchmarks"]["omniglot-5way"]["scale"]["iterations"] == 7
    of_profile = SCALES["quick"]["omniglot-5way"].iterations
    as_in_profile = replace(asked, options=asked.options | {"iterations": of_profile})
    for chosen, why in ((asked, "other settings"), (as_in_profile, "the quick profile")):
        ((training_,), _) = few_shot_cells.plan(chosen)
        assert training_.job(0, chosen).run.iterations == chosen.options["iterations"]
        assert training_.unjudged(chosen) == "other data"
        assert replace(training_, source=_omniglot(context)).unjudged(chosen) == why
    paper = replace(asked, profile="paper", options={"cells": ("omniglot-5way-reptile",)})
    ((training_,), _) = few_shot_cells.plan(paper)
    assert replace(training_, source=_omniglot(context)).unjudged(paper) is None


def test_a_tail_of_the_users(context):
    asked = replace(
        context, profile="quick", options={"cells": ("omniglot-5way",), "tail_shots": 3}
    )
    trainings, _ = few_shot_cells.plan(asked)
    tails = {t.method.name: t.job(0, asked).run.sampling.tail_shots for t in trainings}
    assert tails == {"reptile": 0, "fomaml": 3, "maml": 3}
    assert {replace(t, source=_omniglot(context)).unjudged(asked) for t in trainings} == {
        "other settings"
    }
    trainings, others = few_shot_cells.plan(
        replace(asked, options=asked.options | {"tail_shots": 1000})
    )
    assert [t.method.name for t in trainings] == ["reptile"]
    assert all(
        "expected" in others[f"omniglot-5way-{method}"].reason for method in ("fomaml", "maml")
    )


def test_unknown_cells_are_refused_before_work(tmp_path, capsys):
    import reproduce

    assert (
        reproduce.main(["few_shot", "--out", str(tmp_path), "--cells", "omniglot-5", "nonsense"])
        == 2
    )
    assert "--cells: expected beginnings of omniglot-5way-reptile, " in capsys.readouterr().err


def _photographs(folder, classes=5, images=3):
    """Write Mini-ImageNet in miniature: a colour for each class, and noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for c in range(classes):
            colour = rng.integers(40, 200, 3)
            for i in range(images):
                path = folder / "mini_imagenet" / split / f"{split}{c}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = (colour + rng.integers(0, 40, (84, 84, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(path)


def test_mini_imagenet_from_a_folder_of_the_users(context, monkeypatch, tmp_path):
    _photographs(tmp_path / "data")
    _small(monkeypatch, "mini-imagenet", Scale(iterations=1, tasks=2), shots={1: 5})
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path / "data"))
    result = few_shot.run(context)
    summary = result.tables["few_shot_summary"]
    assert set(summary.status) == {"measured"} and len(summary) == 8
    assert set(result.tables["few_shot"].method) == {"reptile", "fomaml", "maml", "untrained"}
    assert set(result.evidence.role) == {"shown"}  # these classes are not the published ones
    assert set(result.evidence.data) == {"Mini-ImageNet"}
    assert result.data == ["Mini-ImageNet"]
    near = replace(context, source=replace(context.source, directory=tmp_path / "data"))
    assert near.find("mini_imagenet").directory == tmp_path / "data"
    elsewhere = replace(context, source=replace(context.source, directory=tmp_path))
    assert elsewhere.find("mini_imagenet").directory is None  # None: found by $REPTILE_DATA


def test_too_few_photographs_are_a_reason(context, monkeypatch, tmp_path):
    _photographs(tmp_path, classes=4)
    _small(monkeypatch, "mini-imagenet", Scale(iterations=1, tasks=1), shots={1: 5})
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path))
    summary = few_shot.run(context).tables["few_shot_summary"]
    assert set(summary.status) == {few_shot_cells.HINDERED}
    assert set(summary.reason) == {"n_way: expected at most the 4 classes there are, found 5"}


def test_a_split_that_is_mapped_is_divided_by_255(context, monkeypatch, tmp_path):
    _photographs(tmp_path)
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path))
    scale = Scale(iterations=1, tasks=1)
    run = configure(BENCHMARK["mini-imagenet"], METHODS[0], scale, 0)
    pool = context.job(run, "", context.find("mini_imagenet")).pool("test")
    assert (pool.classes, pool.drawings, pool.white) == (5, 3, 255)
    assert pool.dtype == torch.float32


# ---- results


BOTH = dict.fromkeys(("omniglot-5way", "omniglot-20way"))


def _table(accuracy, *, benchmarks=tuple(BOTH), seeds=5, split="seed"):
    """Return made-up results: accuracy(method, transductive, benchmark, shots) in %.

    From seed to seed, error rates grow by a hundredth.
    """
    rows = []
    for benchmark in benchmarks:
        for shots in (1, 5):
            for method in ("reptile", "fomaml", "maml", "untrained"):
                for transductive in (False, True):
                    error = 1 - accuracy(method, transductive, benchmark, shots) / 100
                    cell = {
                        "benchmark": benchmark,
                        "shots": shots,
                        "method": method,
                        "transductive": transductive,
                    }
                    for seed in range(seeds):
                        value = {
                            "value": 1 - error * 1.01 ** (seed - seeds // 2),
                            "standard_error": 0.0001,
                        }
                        common = {
                            "seed": FIRST_SEED + seed,
                            "count": 10_000,
                            "split": split,
                            "split_error": 0.002,
                        }
                        rows.append(cell | value | common)
    return pd.DataFrame(rows)


def _as_published(method, transductive, benchmark, shots):
    """Return Reptile's published number for every method, but 20 % for the untrained network."""
    if method == "untrained":
        return 20.0
    return PUBLISHED["reptile", transductive, benchmark, shots][0]


def _worse(ratio, shots=1):
    """Return accuracies in which Reptile's error rate is `ratio` times the published one.

    That holds for one number of shots; all other accuracies are as published.
    """

    def accuracy(method, transductive, benchmark, cell):
        found = _as_published(method, transductive, benchmark, cell)
        return 100 - ratio * (100 - found) if method == "reptile" and cell == shots else found

    return accuracy


def _verdicts(table, unjudged=None):
    unjudged = dict.fromkeys(table.benchmark.unique()) if unjudged is None else unjudged
    return {
        found.claim.id: found
        for found in judge(few_shot.CLAIMS, few_shot.evidence(table, unjudged))
    }


def _decisions(table, unjudged=None):
    return {
        name: found.decision
        for name, found in _verdicts(table, unjudged).items()
        if found.cases or found.shown
    }


def test_verdicts_on_made_up_tables():
    assert _decisions(_table(_as_published)) == {
        "table-omniglot": SUPPORTED,
        "table-omniglot-similar": SUPPORTED,
    }
    assert _decisions(_table(_worse(1.4))) == {
        "table-omniglot": REFUTED,
        "table-omniglot-similar": SUPPORTED,
    }
    assert _decisions(_table(_worse(3.0)))["table-omniglot-similar"] == REFUTED
    assert _decisions(_table(_worse(1.28)))["table-omniglot"] == UNDECIDED  # near exp(1/4)
    mini = _decisions(_table(_as_published, benchmarks=("mini-imagenet",)))
    assert mini == {"table-mini-imagenet": SUPPORTED, "table-mini-imagenet-similar": SUPPORTED}


def test_cifar_fs_is_judged_under_its_own_name():
    def accuracy(method, transductive, benchmark, shots):
        return 20.0 if method == "untrained" else 60.0

    assert _decisions(_table(accuracy, benchmarks=("cifar-fs",))) == {
        "table-cifar-fs-similar": SUPPORTED
    }


def test_an_untrained_network_must_fall_outside():
    found = _verdicts(_table(lambda *cell: 95.0))
    assert found["table-omniglot-similar"].control == "passed"
    assert found["table-omniglot-similar"].decision == UNDECIDED
    assert _verdicts(_table(_as_published))["table-omniglot"].control == "failed"


def test_what_is_of_other_data_or_a_smaller_profile_is_only_shown():
    for found in _verdicts(_table(_as_published), dict.fromkeys(BOTH, "other data")).values():
        assert (found.decision, found.cases, found.controls) == (UNDECIDED, (), ())
    assert _decisions(_table(_as_published, seeds=4)) == dict.fromkeys(
        ("table-omniglot", "table-omniglot-similar"), UNDECIDED
    )


def test_evidence_is_the_log_of_a_ratio_of_error_rates():
    evidence = few_shot.evidence(_table(_worse(1.1)), BOTH).set_index(["claim", "case", "seed"])
    row = evidence.loc["table-omniglot", "omniglot-20way 1-shot, Reptile", FIRST_SEED + 2]
    assert row.value == pytest.approx(log(1.1))
    assert row.task_error == pytest.approx(0.0001 / (1.1 * 0.1186))
    assert (row.tasks, row.queries) == (10_000, 1)
    row = evidence.loc[
        "table-omniglot-similar", "omniglot-20way 1-shot, Reptile + transduction", FIRST_SEED + 2
    ]
    assert row.value == pytest.approx(log(1.1))
    assert row.task_error == pytest.approx(0.0001 / 0.1057 * (1 + 1 / 1.1**2) ** 0.5)


def test_where_no_answer_was_wrong_half_a_wrong_one_is_counted():
    evidence = few_shot.evidence(_table(lambda *cell: 100.0), BOTH)
    cell = evidence[evidence.case == "omniglot-20way 5-shot, Reptile"]
    assert cell.value.tolist() == pytest.approx([log(0.5 / (20 * 10_000) / 0.0335)] * 5)


def test_summary_and_the_papers_table():
    others = {"mini-imagenet-reptile": Unmeasured(few_shot_cells.HINDERED, "nowhere")}
    summary = few_shot_tables.summary(_table(_as_published), others)
    assert len(summary) == 4 * 2 * 4 * 2
    cell = summary.set_index(few_shot_tables.CELL).loc["omniglot-5way", 1, "reptile", False]
    assert (cell["mean"], cell.published, cell.seeds, cell.tasks) == (
        pytest.approx(95.39, abs=1e-3),
        95.39,
        5,
        50_000,
    )
    missing = summary.set_index(few_shot_tables.CELL).loc["mini-imagenet", 1, "reptile", False]
    assert isnan(missing["mean"]) and (missing.status, missing.reason) == (
        few_shot_cells.HINDERED,
        "nowhere",
    )
    # In % points: 0.01 from tasks alone; another 0.2 where seeds choose the split.
    for split, half in (("authors", 0.01), ("seed", 0.01 * (1 + 20**2) ** 0.5)):
        one = few_shot_tables.summary(_table(_as_published, seeds=1, split=split), {}).set_index(
            few_shot_tables.CELL
        )
        cell = one.loc["omniglot-5way", 1, "reptile", False]
        assert cell.high - cell["mean"] == pytest.approx(1.96 * half)
    table = papers(summary, "omniglot-5way").set_index("row")
    # Student's t with 4 degrees of freedom.
    ours = 2.776445 * 4.61 * np.std(1.01 ** np.arange(-2, 3), ddof=1) / 5**0.5
    assert table.loc["Reptile", "1-shot"] == f"95.39 ± {ours:.2f} (95.39 ± 0.09)"
    assert papers(summary, "mini-imagenet").row.tolist() == []
    here = (
        (summary.benchmark == "cifar-fs")
        & (summary.row == "MAML + transduction")
        & (summary.shots == 1)
    )
    table = papers(summary.assign(mean=summary["mean"].where(~here, 50.0)), "cifar-fs").set_index(
        "row"
    )
    assert table.loc["MAML + transduction", "5-shot"] == "- (71.50 ± 1.00)"


def test_report_says_what_hindered_before_what_was_not_asked_for():
    others = {"mini-imagenet-reptile": Unmeasured(few_shot_cells.HINDERED, "nowhere")}
    lines = few_shot.report(few_shot_tables.summary(_table(_as_published), others), BOTH)
    assert "  mini-imagenet: not measured: nowhere" in lines
    unasked = dict.fromkeys(
        [f"mini-imagenet-{method}" for method in METHOD], Unmeasured(few_shot_cells.NOT_ASKED)
    )
    others = unasked | {"mini-imagenet-maml": Unmeasured(few_shot_cells.HINDERED, "too few")}
    assert "  mini-imagenet: not measured: too few" in few_shot.report(
        few_shot_tables.summary(_table(_as_published), others), BOTH
    )
    assert "  mini-imagenet: not measured: not asked for" in few_shot.report(
        few_shot_tables.summary(_table(_as_published), unasked), BOTH
    )


def test_figure(context):
    others = {"mini-imagenet-reptile": Unmeasured(few_shot_cells.HINDERED, "nowhere to be found")}
    summary = few_shot_tables.summary(_table(_as_published), others)
    settings = few_shot.settings(
        replace(context, profile="paper", source=replace(context.source, name="omniglot"))
    )
    with style():
        figure = draw({"few_shot_summary": summary}, settings)["few_shot"]
    assert (
        figure.get_suptitle() == "Omniglot 5-way 1-shot: Reptile reaches 95.4 %, the paper 95.4 %"
    )
    assert (few_shot_cells.MEASURED, few_shot_cells.NOT_ASKED) == (MEASURED, NOT_ASKED)
    assert len(figure.axes) == 2 * 4
    ax = figure.axes[0]
    ours = [
        line.get_xdata()[0]
        for line in ax.get_lines()
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    expected = summary[(summary.benchmark == "omniglot-5way") & (summary.shots == 1)]
    assert ours == pytest.approx(
        expected.set_index(["method", "transductive"])["mean"].loc[ROWS].tolist()
    )
    texts = [text.get_text().replace("\n", " ") for ax in figure.axes for text in ax.texts]
    assert texts.count("not measured: nowhere to be found") == 2
    unasked = summary.assign(
        status=summary.status.where(summary.benchmark != "cifar-fs", NOT_ASKED)
    )
    with style():
        figure = draw({"few_shot_summary": unasked}, settings)["few_shot"]
    assert len(figure.axes) == 2 * 3
    assert "CIFAR-FS 5-way:" not in figure.texts[-1].get_text()
