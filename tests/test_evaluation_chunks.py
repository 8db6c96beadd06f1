"""Evaluations of runs: nothing is trained for them, and each is measured once.

How tasks are cut into chunks changes no number.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.experiments.shared.experiment import Context
from analysis.runs import evaluation_chunks
from analysis.runs.advance import execute
from analysis.runs.evaluation_chunks import (
    Accuracies,
    Evaluation,
    EvaluationChunk,
    chunks,
    evaluate_chunk,
    joined,
)
from analysis.runs.job import Job, Source
from analysis.runs.store import state_at
from analysis.runs.workers import silent
from reptile_core import training
from reptile_core.checkpoints import CheckpointError
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer
from tests.helpers.jobs import KINDS, RUN, Followed
from tests.helpers.script import InProcess

SAMPLING = Sampling(n_way=2, shots=1, batch=2, steps=2)
EVALUATION = Evaluation(SAMPLING, tasks=10)


@pytest.fixture
def job(source: Source, tmp_path: Path) -> Job:
    """Return a job that was trained to iteration 6 and kept at 3."""
    job = Job(RUN, source, tmp_path, "g1+g2", until=6, keep=(3,))
    execute(job)
    return job


def measured(job: Job, iteration: int, evaluation: Evaluation) -> Accuracies:
    return joined([evaluate_chunk(chunk, silent) for chunk in chunks(job, iteration, evaluation)])


def assert_equal(found: Accuracies, expected: Accuracies) -> None:
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("iteration", [0, 3, 6])
@pytest.mark.parametrize("evaluation", [EVALUATION, Evaluation(SAMPLING, 10, queries=3, look=6)])
def test_accuracies_are_those_of_the_core(iteration: int, evaluation: Evaluation, job: Job) -> None:
    """Accuracies are those that the core measures at that iteration's state, moments included."""
    found = measured(job, iteration, evaluation)
    state = ([training.start(RUN), *training.train(RUN, job.pool("train"), training.start(RUN))])[
        iteration
    ]
    expected = training.evaluate(
        RUN,
        job.pool("test"),
        state,
        SAMPLING,
        range(10),
        queries=evaluation.queries,
        look=evaluation.look,
    )
    assert_equal(found, {name: values.numpy() for name, values in expected.items()})
    assert found.keys() == {"accuracy"} | (
        {"accuracy_transductive"} if evaluation.queries == 1 else set()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_any_optimizer_is_evaluated_where_it_was_kept(
    kind: str, source: Source, tmp_path: Path
) -> None:
    run = dataclasses.replace(RUN, **KINDS[kind])
    job = Job(run, source, tmp_path, kind, until=4, keep=(2,))
    execute(job)
    state = list(training.train(run, job.pool("train"), training.start(run)))[1]
    expected = training.evaluate(run, job.pool("test"), state, SAMPLING, range(10))
    assert_equal(
        measured(job, 2, EVALUATION), {name: values.numpy() for name, values in expected.items()}
    )


@pytest.mark.parametrize("queries", [1, 3])
def test_how_tasks_are_cut_changes_no_number(
    queries: int, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = dataclasses.replace(EVALUATION, queries=queries)
    whole = measured(job, 6, evaluation)
    monkeypatch.setattr(evaluation_chunks, "CHUNK", 4)
    parts = chunks(job, 6, evaluation)
    assert [chunk.tasks for chunk in parts] == [range(0, 4), range(4, 8), range(8, 10)]
    assert_equal(measured(job, 6, evaluation), whole)


def test_more_tasks_begin_with_the_same(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tasks begin with the same ones, and whole chunks of them are not measured again."""
    monkeypatch.setattr(evaluation_chunks, "CHUNK", 5)
    more = dataclasses.replace(EVALUATION, tasks=15)
    assert [chunk.key for chunk in chunks(job, 6, more)[:2]] == [
        chunk.key for chunk in chunks(job, 6, EVALUATION)
    ]
    assert np.array_equal(
        measured(job, 6, more)["accuracy"][:10], measured(job, 6, EVALUATION)["accuracy"]
    )


def test_nothing_is_trained_for_more_queries_or_tasks(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = job.path.read_bytes()
    monkeypatch.setattr("reptile_core.training.train", lambda *arguments: pytest.fail("trained"))
    for change in (
        {"queries": 4},
        {"tasks": 20},
        {"look": 9},
        {"sampling": dataclasses.replace(SAMPLING, shots=3)},
    ):
        measured(job, 3, dataclasses.replace(EVALUATION, **change))
    assert execute(job).finished and job.path.read_bytes() == before


def test_each_is_measured_once_unless_it_is_to_be_fresh(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chunk,) = chunks(job, 6, EVALUATION)
    found, before = evaluate_chunk(chunk, silent), chunk.path.stat().st_mtime_ns
    assert_equal(evaluate_chunk(chunk, silent), found)
    assert chunk.path.stat().st_mtime_ns == before
    fresh = dataclasses.replace(chunk, job=dataclasses.replace(job, fresh=True))
    assert_equal(evaluate_chunk(fresh, silent), found)
    assert chunk.path.stat().st_mtime_ns != before


def test_key_depends_on_all_that_decides_and_on_nothing_else(job: Job, tmp_path: Path) -> None:
    chunk = EvaluationChunk(job, 6, EVALUATION, range(10))
    same = [
        dataclasses.replace(chunk, evaluation=dataclasses.replace(EVALUATION, tasks=20)),
        *(dataclasses.replace(chunk, job=dataclasses.replace(job, **change)) for change in (
            {"folder": tmp_path / "x"}, {"until": 9}, {"keep": ()}, {"variant": "x"},
            {"fresh": True}
        )),
    ]  # fmt: skip
    of_another_seed = dataclasses.replace(job, run=dataclasses.replace(RUN, seed=1))
    evaluations = [
        dataclasses.replace(EVALUATION, queries=2),
        dataclasses.replace(EVALUATION, look=6),
        dataclasses.replace(EVALUATION, sampling=dataclasses.replace(SAMPLING, steps=3)),
    ]
    other = [
        dataclasses.replace(chunk, iteration=3),
        dataclasses.replace(chunk, tasks=range(1, 10)),
        dataclasses.replace(chunk, tasks=range(11)),
        *(dataclasses.replace(chunk, evaluation=evaluation) for evaluation in evaluations),
        dataclasses.replace(chunk, job=of_another_seed),
        dataclasses.replace(chunk, job=dataclasses.replace(job, device="cuda")),
    ]
    assert {chunk.key} == {one.key for one in same}
    assert len({chunk.key} | {one.key for one in other}) == 1 + len(other)


def test_runs_that_begin_alike_share_their_start(source: Source, tmp_path: Path) -> None:
    """Runs share the measurement of their start where they adapt the same phi in the same way.

    Nothing else that training asks for matters, and each run by itself measures the same.
    """
    alike: Sequence[dict[str, Any]] = [
        {}, {"weights": (0.0, 1.0)}, {"weights": "maml"}, {"outer": Outer(0.1)}, {"meta_batch": 2},
        {"iterations": 5}, {"sampling": dataclasses.replace(RUN.sampling, shots=4)},
    ]  # fmt: skip
    others: Sequence[dict[str, Any]] = [
        {"seed": 1}, {"inner": Inner("sgd", 0.01)}, {"activation": "tanh"}, {"dtype": "float64"},
    ]  # fmt: skip

    def start_of(changes: dict[str, Any]) -> EvaluationChunk:
        (chunk,) = chunks(
            Job(dataclasses.replace(RUN, **changes), source, tmp_path, ""), 0, EVALUATION
        )
        return chunk

    first = start_of({})
    expected = evaluate_chunk(first, silent)
    for changes in alike:
        chunk = start_of(changes)
        assert chunk.key == first.key
        fresh = dataclasses.replace(
            chunk, job=dataclasses.replace(chunk.job, folder=tmp_path / "own", fresh=True)
        )
        assert_equal(evaluate_chunk(fresh, silent), expected)
    assert len({first.key} | {start_of(changes).key for changes in others}) == 1 + len(others)


def test_a_context_measures_shared_starts_once(source: Source, tmp_path: Path) -> None:
    context = Context("smoke", source, InProcess(1), tmp_path)
    jobs = [
        context.job(dataclasses.replace(RUN, weights=w), str(w), until=1)
        for w in ((1.0, 1.0), (0.0, 1.0))
    ]
    context.train("runs", jobs)
    found = context.evaluate("runs", [(job, n, EVALUATION) for job in jobs for n in (0, 1)])
    assert len(list((tmp_path / "evaluations").iterdir())) == 3
    assert_equal(found[jobs[0], 0, EVALUATION], found[jobs[1], 0, EVALUATION])
    for job in jobs:
        state = state_at(job, 1)
        expected = training.evaluate(job.run, job.pool("test"), state, SAMPLING, range(10))[
            "accuracy"
        ]
        assert found[job, 1, EVALUATION]["accuracy"] == pytest.approx(expected.numpy())


def test_what_was_not_kept_or_is_another_is_named(job: Job) -> None:
    (chunk,) = chunks(job, 4, EVALUATION)
    with pytest.raises(
        CheckpointError, match=f"{job.path.name}: expected the state at iteration 4, found none"
    ):
        evaluate_chunk(chunk, silent)
    (one,), (other,) = chunks(job, 3, EVALUATION), chunks(job, 6, EVALUATION)
    evaluate_chunk(one, silent)
    other.path.write_bytes(one.path.read_bytes())
    with pytest.raises(
        CheckpointError,
        match=f"expected the evaluation {other.key}, found the evaluation {one.key}",
    ):
        evaluate_chunk(other, silent)


@pytest.mark.parametrize("name", ["tasks", "queries"])
def test_errors(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected at least 1, found 0"):
        dataclasses.replace(EVALUATION, **{name: 0})


def test_progress_counts_images(job: Job) -> None:
    """Progress counts images.

    A task takes two steps of two examples.
    Each of its two queries is classified with the support set of two: three images, for one more.
    """
    first, second = Followed(), Followed()
    (chunk,) = chunks(job, 6, EVALUATION)
    evaluate_chunk(chunk, first)
    assert first.now == [chunk.images] == [round(10 * (2 * 2 + 2 * 3 / 3))] and not first.there
    evaluate_chunk(chunk, second)
    assert second.there == [chunk.images] and not second.now
