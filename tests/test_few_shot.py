"""Section 6.1: settings against the paper's numbers, pieces against the whole, data found or not, ledger, figure."""

from dataclasses import replace
from math import isnan
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import reproduce
from analysis.claims import CANNOT_FAIL, INCONCLUSIVE, NOT_JUDGED, REFUTED, SUPPORTED, TOO_SMALL, ledger
from analysis.experiment import Context
from analysis.experiments import few_shot
from analysis.experiments.few_shot import BENCHMARKS, METHODS, PUBLISHED, SCALES, Scale
from analysis.runs import Source
from figures.few_shot import NOT_ASKED, ROWS, draw
from figures.style import style
from reptile_core import datasets, training
from reptile_core.checkpoints import CheckpointError
from reptile_core.training import Evaluation, build_network

matplotlib.use("Agg")

BENCHMARK = {benchmark.name: benchmark for benchmark in BENCHMARKS}
METHOD = {method.name: method for method in METHODS}


@pytest.fixture(scope="module")
def source():
    return Source("glyphs", None, datasets.load("glyphs").content, real=False)


@pytest.fixture
def context(source, tmp_path, monkeypatch):
    """On the glyphs, in this process, where no other data are to be found."""
    monkeypatch.delenv("REPTILE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def in_turn(name, function, items, *, sizes=None, unit=""):
        return [function(item, lambda *_: None) for item in items]

    workers = SimpleNamespace(map=in_turn, quiet=True)
    return Context("smoke", source, workers, tmp_path / "runs")  # type: ignore[arg-type]


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
    run = few_shot.configure(benchmark, METHOD["reptile"], scale, seed=1)
    assert (run.sampling.n_way, run.sampling.batch, run.sampling.steps) == (n_way, batch, steps)
    assert (run.sampling.shots, run.sampling.tail_shots, run.iterations) == (train_shots, 0, iterations)
    assert (run.inner.optimizer, run.inner.learning_rate, run.inner.moments) == ("adam", rate, "kept")
    assert (run.outer.optimizer, run.outer.step, run.outer.final, run.meta_batch) == ("plain", 1.0, 0.0, 5)
    assert (run.weights, run.network, run.seed) == ((1.0,) * steps, benchmark.data, 1)
    assert (scale.tasks, few_shot.SEEDS["paper"]) == (10_000, 3)
    for shots in (1, 5):
        cut = few_shot.evaluated(benchmark, shots)
        assert (cut.n_way, cut.shots, cut.batch, cut.steps) == (n_way, shots, batches[shots], 50)


def test_cifar_fs_is_run_as_mini_imagenet_with_64_filters_of_32_pixels():
    cifar, mini = BENCHMARK["cifar-fs"], BENCHMARK["mini-imagenet"]
    assert replace(cifar, name=mini.name, data=mini.data) == mini
    shapes = build_network(few_shot.configure(cifar, METHODS[0], SCALES["paper"]["cifar-fs"], 0)).shapes
    assert shapes["conv0.weight"] == (9 * 3, 64) and shapes["linear.weight"] == (2 * 2 * 64, 5)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=BENCHMARK)
def test_a_tail_is_a_minibatch_and_all_else_is_reptiles(benchmark):
    scale = SCALES["paper"][benchmark.name]
    reptile, fomaml, maml = (few_shot.configure(benchmark, METHOD[m], scale, 0) for m in ("reptile", "fomaml", "maml"))
    assert fomaml.sampling.tail_shots * benchmark.n_way == benchmark.batch
    assert fomaml.weights == (0.0,) * (benchmark.steps - 1) + (1.0,)
    assert replace(fomaml, weights=reptile.weights, sampling=reptile.sampling, outer=reptile.outer) == reptile
    assert maml.weights == "maml"
    assert replace(maml, weights=fomaml.weights) == fomaml
    assert (fomaml.outer.optimizer, fomaml.outer.step, fomaml.outer.final) == ("adam", 1e-3, 0.0)


def test_published_numbers():
    """A number of each row and column of the paper's two tables."""
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
    """Smoke is one benchmark in miniature, evaluated in pieces of two tasks."""
    small = replace(BENCHMARK[name], batch=5, steps=2, train_shots=2, **changes)
    monkeypatch.setattr(few_shot, "BENCHMARKS", [small])
    monkeypatch.setitem(few_shot.SCALES, "smoke", {name: scale})
    monkeypatch.setattr(few_shot, "META_BATCH", 1)
    monkeypatch.setattr(few_shot, "EVALUATION_STEPS", 2)
    monkeypatch.setattr(few_shot, "PIECE", 2)
    return small


def test_pieces_give_what_the_whole_gives_and_are_kept(context, monkeypatch):
    benchmark = _small(monkeypatch, "omniglot-5way", Scale(iterations=2, tasks=3))
    tables = few_shot.run(context).tables
    table = tables["few_shot"].set_index(["shots", "method", "quantity"])
    training_ = few_shot.Training(benchmark, METHOD["reptile"], SCALES["smoke"]["omniglot-5way"], context.source)
    job = training_.job(0, context)
    *_, end = training.train(job.run, job.pool("train"), training.start(job.run))
    for shots in (1, 5):
        run = replace(job.run, evaluation=Evaluation(few_shot.evaluated(benchmark, shots), 3, 1))
        for method, state, tasks in (("reptile", end, 3), ("untrained", training.start(job.run), 2)):
            run = replace(run, evaluation=replace(run.evaluation, tasks=tasks))
            for quantity, found in training.evaluate(run, job.pool("test"), state).items():
                row = table.loc[shots, method, quantity]
                assert (row.value, row["count"]) == (pytest.approx(found.mean, abs=1e-12), tasks)
                assert row.standard_error == pytest.approx(found.standard_error, abs=1e-12)
    files = {path: path.stat().st_mtime_ns for path in context.runs.rglob("*.safetensors")}
    assert len(files) == 3 + 2 * (3 * 2 + 1)
    pd.testing.assert_frame_equal(few_shot.run(context).tables["few_shot"], tables["few_shot"])
    assert {path: path.stat().st_mtime_ns for path in files} == files
    (piece,) = [c.pieces[0] for c in few_shot.cells([training_], context) if c.trained and c.shots == 1]
    other = next(path for path in files if path.parent.name == "evaluations" and path != piece.path)
    piece.path.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="expected the evaluation"):
        few_shot.evaluate(piece, lambda done: None)


def test_cells_are_chosen_by_how_their_names_begin(context):
    quick = replace(context, profile="quick", cells=("omniglot-5way-reptile", "cifar"))
    trainings, reasons = few_shot.plan(quick)
    assert [t.name for t in trainings] == ["omniglot-5way-reptile"]
    assert reasons["omniglot-5way-maml"] == "not asked for"
    assert reasons["omniglot-20way-reptile"] == "not in the quick profile"
    assert "cifar_fs.zip" in reasons["cifar-fs-fomaml"]  # asked for, and nowhere to be found


def _omniglot(context):
    return replace(context.source, name="omniglot", real=True)


def test_iterations_of_the_users_are_run_and_not_judged(context):
    asked = replace(context, profile="quick", cells=("omniglot-5way-reptile",), iterations=7)
    assert few_shot.settings(asked)["benchmarks"]["omniglot-5way"]["scale"]["iterations"] == 7
    as_in_profile = replace(asked, iterations=SCALES["quick"]["omniglot-5way"].iterations)
    for chosen, role in ((asked, "other settings"), (as_in_profile, None)):
        ((training_,), _) = few_shot.plan(chosen)
        assert training_.job(0, chosen).run.iterations == chosen.iterations
        assert training_.unjudged(chosen) == "other data"
        assert replace(training_, source=_omniglot(context)).unjudged(chosen) == role


def test_a_tail_of_the_users(context):
    asked = replace(context, profile="quick", cells=("omniglot-5way",), tail_shots=3)
    trainings, reasons = few_shot.plan(asked)
    tails = {t.method.name: t.job(0, asked).run.sampling.tail_shots for t in trainings}
    assert tails == {"reptile": 0, "fomaml": 3, "maml": 3}
    assert {replace(t, source=_omniglot(context)).unjudged(asked) for t in trainings} == {"other settings"}
    trainings, reasons = few_shot.plan(replace(asked, tail_shots=1000))
    assert [t.method.name for t in trainings] == ["reptile"]
    assert "expected" in reasons["omniglot-5way-fomaml"] and "expected" in reasons["omniglot-5way-maml"]


def test_unknown_cells_are_told_before_work(tmp_path, capsys):
    assert reproduce.main(["few_shot", "--out", str(tmp_path), "--cells", "omniglot-5", "nonsense"]) == 2
    assert "--cells: expected beginnings of omniglot-5way-reptile, " in capsys.readouterr().err


def _photographs(folder, classes=5, images=3):
    """Mini-ImageNet in miniature: one colour for each class, and noise."""
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
    assert set(result.measurements.role) == {"other data"}  # five colours are not the published classes
    assert set(result.measurements.data) == {"Data: Mini-ImageNet · profile: smoke"}
    assert result.data == ["Mini-ImageNet"]
    beside = replace(context, source=replace(context.source, directory=tmp_path / "data"))
    assert beside.find("mini_imagenet").directory == tmp_path / "data"
    elsewhere = replace(context, source=replace(context.source, directory=tmp_path))
    assert elsewhere.find("mini_imagenet").directory is None  # found by $REPTILE_DATA


def test_too_few_photographs_are_a_reason(context, monkeypatch, tmp_path):
    _photographs(tmp_path, classes=4)
    _small(monkeypatch, "mini-imagenet", Scale(iterations=1, tasks=1), shots={1: 5})
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path))
    summary = few_shot.run(context).tables["few_shot_summary"]
    assert set(summary.status) == {"not measured: n_way: expected at most the 4 classes there are, found 5"}


def test_a_split_that_is_mapped_is_divided_by_255(context, monkeypatch, tmp_path):
    _photographs(tmp_path)
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path))
    scale = Scale(iterations=1, tasks=1)
    run = few_shot.configure(BENCHMARK["mini-imagenet"], METHODS[0], scale, 0)
    pool = context.job(run, "", context.find("mini_imagenet")).pool("test")
    assert (pool.classes, pool.drawings, pool.white) == (5, 3, 255)
    assert pool.dtype == torch.float32


# ---- what came of it


def _table(accuracy, *, benchmarks=("omniglot-5way", "omniglot-20way"), seeds=3, split="seed"):
    """Made-up results: accuracy(method, transductive, benchmark, shots) in %, and a little more for each seed."""
    rows = [
        {
            "benchmark": benchmark,
            "shots": shots,
            "method": method,
            "transductive": transductive,
            "seed": seed,
            "value": (accuracy(method, transductive, benchmark, shots) + 0.05 * seed) / 100,
            "standard_error": 0.001,
            "count": 10_000,
            "split": split,
            "split_error": 0.002,
        }
        for benchmark in benchmarks
        for shots in (1, 5)
        for method in ("reptile", "fomaml", "maml", "untrained")
        for transductive in (False, True)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def _as_published(method, transductive, benchmark, shots):
    """The paper's where it has a number, MAML near Reptile; little without training."""
    if method == "untrained":
        return 50.0
    return PUBLISHED["reptile", transductive, benchmark, shots][0] - 0.05


def _verdicts(table, unjudged=None, profile="paper"):
    unjudged = dict.fromkeys(table.benchmark.unique()) if unjudged is None else unjudged
    rows = pd.DataFrame(few_shot.measurements(table, unjudged, profile)).assign(profile=profile)
    return dict(ledger(few_shot.CLAIMS, rows)[["id", "verdict"]].to_numpy())


def test_verdicts_on_made_up_tables():
    def off(points, shots=1):
        return lambda m, t, b, s: _as_published(m, t, b, s) - points * (m == "reptile" and s == shots)

    assert _verdicts(_table(_as_published)) == {
        "table-omniglot": SUPPORTED,
        "table-omniglot-similar": SUPPORTED,
        "table-mini-imagenet": NOT_JUDGED,
        "table-mini-imagenet-similar": NOT_JUDGED,
    }
    assert _verdicts(_table(off(2)))["table-omniglot"] == REFUTED
    assert _verdicts(_table(off(2)))["table-omniglot-similar"] == SUPPORTED
    assert _verdicts(_table(off(5)))["table-omniglot-similar"] == REFUTED
    assert _verdicts(_table(off(0.9)))["table-omniglot"] == INCONCLUSIVE  # the paper's ± reaches across the edge
    assert _verdicts(_table(lambda *cell: 90.0))["table-omniglot-similar"] == CANNOT_FAIL
    mini = _verdicts(_table(_as_published, benchmarks=("mini-imagenet",)))
    assert (mini["table-mini-imagenet"], mini["table-omniglot"]) == (CANNOT_FAIL, NOT_JUDGED)  # 50 % is too near


def test_what_is_too_small_or_of_other_data_or_of_one_seed_is_not_judged():
    table = _table(_as_published)
    assert _verdicts(table, profile="quick")["table-omniglot"] == TOO_SMALL
    other = dict.fromkeys(("omniglot-5way", "omniglot-20way"), "other data")
    assert set(_verdicts(table, other).values()) == {NOT_JUDGED}
    assert not {SUPPORTED, REFUTED} & set(_verdicts(_table(_as_published, seeds=1)).values())


def test_the_papers_interval_and_ours_are_added_in_quadrature():
    rows = few_shot.measurements(_table(_as_published), dict.fromkeys(("omniglot-5way", "omniglot-20way")), "paper")
    row = next(r for r in rows if (r["claim"], r["case"]) == ("table-omniglot", "omniglot-20way 5-shot, Reptile"))
    ours = 4.302653 * 0.05 / 3**0.5  # Student's t with 2 degrees of freedom, of three seeds 0.05 apart
    assert row["value"] == pytest.approx(0.0)
    assert row["high"] == pytest.approx((ours**2 + 0.33**2) ** 0.5, rel=1e-5)
    assert row["low"] == pytest.approx(-row["high"])


def test_summary_and_layout():
    reasons = {"mini-imagenet-reptile": "nowhere"}
    summary = few_shot.summary(_table(_as_published), reasons)
    assert len(summary) == 4 * 2 * 4 * 2
    cell = summary.set_index(few_shot.CELL).loc["omniglot-5way", 1, "reptile", False]
    assert (cell["mean"], cell.published, cell.seeds, cell.tasks) == (pytest.approx(95.39), 95.39, 3, 30_000)
    missing = summary.set_index(few_shot.CELL).loc["mini-imagenet", 1, "reptile", False]
    assert isnan(missing["mean"]) and missing.status == "not measured: nowhere"
    for split, half in (("authors", 0.1), ("seed", 0.1 * 5**0.5)):  # over tasks alone, and over 0.2 of splits as well
        one = few_shot.summary(_table(_as_published, seeds=1, split=split), {}).set_index(few_shot.CELL)
        cell = one.loc["omniglot-5way", 1, "reptile", False]
        assert cell.high - cell["mean"] == pytest.approx(1.96 * half)
    layout = few_shot.layout(summary).set_index("row")
    assert layout.loc["Reptile", "omniglot-5way 1-shot"] == "95.39 ± 0.12 (95.39 ± 0.09)"
    assert layout.loc["MAML + transduction", "cifar-fs 5-shot"] == "- (71.50 ± 1.00)"
    lines = few_shot.report(summary, dict.fromkeys(("omniglot-5way", "omniglot-20way")))
    assert "  mini-imagenet: not measured: nowhere" in lines
    unasked = dict.fromkeys([f"mini-imagenet-{method}" for method in METHOD], few_shot.NOT_ASKED)
    summary = few_shot.summary(_table(_as_published), unasked | {"mini-imagenet-maml": "too few"})
    lines = few_shot.report(summary, dict.fromkeys(("omniglot-5way", "omniglot-20way")))
    assert "  mini-imagenet: not measured: too few" in lines


def test_figure(context):
    summary = few_shot.summary(_table(_as_published), {"mini-imagenet-reptile": "nowhere to be found"})
    settings = few_shot.settings(replace(context, profile="paper", source=replace(context.source, name="omniglot")))
    with style():
        figure = draw({"few_shot_summary": summary}, settings)["few_shot"]
    assert figure.get_suptitle() == "Omniglot 5-way 1-shot: Reptile reaches 95.4 %, the paper 95.4 %"
    assert f"not measured: {few_shot.NOT_ASKED}" == NOT_ASKED
    assert len(figure.axes) == 2 * 4
    ax = figure.axes[0]
    ours = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o" and len(line.get_xdata())]
    expected = summary[(summary.benchmark == "omniglot-5way") & (summary.shots == 1)]
    assert ours == pytest.approx(expected.set_index(["method", "transductive"])["mean"].loc[ROWS].tolist())
    texts = [text.get_text().replace("\n", " ") for ax in figure.axes for text in ax.texts]
    assert texts.count("not measured: nowhere to be found") == 2
    unasked = summary.assign(status=summary.status.where(summary.benchmark != "cifar-fs", NOT_ASKED))
    with style():
        figure = draw({"few_shot_summary": unasked}, settings)["few_shot"]
    assert len(figure.axes) == 2 * 3
    assert "CIFAR-FS 5-way:" not in figure.texts[-1].get_text()
