"""Runs as files: the same bits whatever the workers; a wrong or damaged file is named."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from analysis.courses import Course, execute, execute_together, in_lanes
from analysis.experiment import Context
from analysis.runs import Job, Source, snapshots
from analysis.workers import Workers
from reptile_core import datasets, training
from reptile_core.checkpoints import CheckpointError, load_checkpoint
from reptile_core.lanes import lane_bytes
from reptile_core.tasks import Sampling
from reptile_core.training import Evaluation, Inner, Outer, Run

RUN = Run(
    network="omniglot",
    sampling=Sampling(n_way=2, shots=3, batch=4, steps=2),
    weights=(1.0, 1.0),
    inner=Inner("adam", 0.001),
    outer=Outer(0.5, optimizer="adam"),
    evaluation=Evaluation(Sampling(n_way=2, shots=1, batch=2, steps=1), tasks=2, every=3),
    iterations=30,
    seed=0,
)


@pytest.fixture(scope="module")
def source():
    return Source("glyphs", None, datasets.load("glyphs").content)


def _job(source, folder, **changes):
    return Job(dataclasses.replace(RUN, **changes), source, folder, "g1+g2")


def _content(path):
    """What a run left behind, but for how long it took."""
    tensors, record = load_checkpoint(path)
    return tensors, {name: value for name, value in record.items() if name != "seconds"}


def assert_same_run(one: Path, other: Path):
    (tensors, record), (others, other_record) = _content(one), _content(other)
    assert record == other_record
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name])
        assert tensor.numpy().tobytes() == others[name].numpy().tobytes()  # which tells 0 from -0 too


def test_rows_cover_the_schedule_and_a_finished_run_is_reused(source, tmp_path):
    job = _job(source, tmp_path)
    outcome = execute(job)
    assert outcome.status == "finished"
    assert sorted({row["iteration"] for row in outcome.rows}) == list(range(0, 31, 3))
    assert {row["quantity"] for row in outcome.rows} == {"accuracy", "accuracy_transductive"}
    before = job.path.stat().st_mtime_ns
    again = execute(job)
    assert (again.rows, again.status) == (outcome.rows, outcome.status)
    assert job.path.stat().st_mtime_ns == before


def test_snapshots_are_where_the_run_went(source, tmp_path):
    """A run of 30 measured every 3: ten measurements are about as many as are kept."""
    job = _job(source, tmp_path)
    execute(job)
    kept = snapshots(job)
    assert sorted(kept) == list(range(0, 31, 3))
    shorter = _job(source, tmp_path, iterations=1, outer=Outer(0.5, 0.5, "adam"))
    longer = dataclasses.replace(shorter, run=dataclasses.replace(shorter.run, iterations=3))
    execute(shorter), execute(longer)  # without annealing the one is the beginning of the other
    assert torch.equal(snapshots(shorter)[0], kept[0])
    assert torch.equal(snapshots(longer)[3], load_checkpoint(longer.path)[0]["phi"])


def test_fresh_does_it_anew_and_gets_the_same_bits(source, tmp_path):
    job = _job(source, tmp_path / "a")
    execute(job)
    old = job.path.rename(tmp_path / "old.safetensors")
    execute(job)
    assert_same_run(job.path, old)
    before = job.path.stat().st_mtime_ns
    execute(dataclasses.replace(job, fresh=True))
    assert job.path.stat().st_mtime_ns != before
    assert_same_run(job.path, old)


def test_one_or_two_workers_give_the_same_bits(source, tmp_path):
    outcomes = []
    for workers in (1, 2):
        jobs = [_job(source, tmp_path / str(workers), seed=seed) for seed in range(3)]
        with Workers(workers, quiet=True) as pool:
            outcomes.append([outcome.rows for outcome in pool.map("runs", execute, jobs)])
    assert outcomes[0] == outcomes[1]
    for one in (tmp_path / "1").iterdir():
        assert_same_run(one, tmp_path / "2" / one.name)


def test_stopped_before_the_second_measurement_measures_nothing_twice(source, tmp_path, monkeypatch):
    job, whole = _job(source, tmp_path / "a"), _job(source, tmp_path / "b")
    execute(whole)
    with monkeypatch.context() as patch:
        patch.setattr("reptile_core.training.train", lambda *arguments: iter(()))
        execute(job)
    execute(job)
    assert_same_run(job.path, whole.path)


def test_together_as_alone(source, tmp_path):
    """Lanes, some of them already on their way, measure what each measures by itself, up to round-off."""
    changes = [{}, {"weights": (0.0, 1.0)}, {"seed": 1}, {"seed": 2}]
    alone = [_job(source, tmp_path / "alone", **change) for change in changes]
    together = [dataclasses.replace(job, folder=tmp_path / "together") for job in alone]
    execute(together[2])  # finished before
    found = execute_together(together)
    for job, outcome, expected in zip(together, found, map(execute, alone), strict=True):
        assert outcome.status == expected.status == "finished"
        assert [row["iteration"] for row in outcome.rows] == [row["iteration"] for row in expected.rows]
        assert load_checkpoint(job.path)[1]["rows"] == outcome.rows
        assert outcome.rows[:2] == expected.rows[:2]  # at the start, before anything is rounded otherwise


def test_a_lane_that_diverges_ends_alone(source, tmp_path):
    jobs = [_job(source, tmp_path, seed=seed, outer=Outer(1e38 if seed else 0.1)) for seed in (0, 1)]
    fine, broken = execute_together(jobs[:1]) + execute_together(jobs[1:])
    assert fine.status == "finished" and broken.status.startswith("diverged at iteration")


def test_a_gpu_is_asked_for_a_lane_only_where_it_is_due(source, tmp_path):
    """Taking a lane out of the others costs launches: not at every iteration."""
    course = Course(_job(source, tmp_path), lambda *_: None)
    course.begin()
    course.job = dataclasses.replace(course.job, device="cuda")
    asked = []
    for iteration in range(1, RUN.evaluation.every):
        course.follow(iteration, lambda: asked.append(1))
    assert not asked and course.state.iteration == 0
    course.job = dataclasses.replace(course.job, device="cpu")
    state = dataclasses.replace(course.state, iteration=1)
    course.follow(1, lambda: state)
    assert course.state is state


def test_jobs_are_grouped_by_what_lanes_share(source, tmp_path):
    jobs = [_job(source, tmp_path, seed=s, weights=w) for s in (0, 1) for w in ((1.0, 1.0), (0.0, 1.0))]
    other = _job(source, tmp_path, meta_batch=2)
    assert in_lanes([*jobs, other]) == [(job,) for job in (*jobs, other)]
    on_gpu = [dataclasses.replace(job, device="cuda") for job in (*jobs, other)]
    assert in_lanes(on_gpu, free=10**12) == [tuple(on_gpu[:4]), (on_gpu[4],)]
    room = lane_bytes(jobs[0].run) * 3
    assert in_lanes(on_gpu, free=room) == [tuple(on_gpu[:3]), (on_gpu[3],), (on_gpu[4],)]
    assert in_lanes(on_gpu, free=1) == [(job,) for job in on_gpu]


def test_where_runs_begin_alike_they_are_measured_once(source, tmp_path, monkeypatch):
    """Variants of a seed share their start; what is kept for them is what each would have measured."""
    looks = []

    def evaluate(run, pool, state, **options):
        looks.append((run.seed, run.inner, state.iteration))
        return training.evaluate(run, pool, state, **options)

    changes = [{}, {"weights": (0.0, 1.0)}, {"outer": Outer(0.1)}, {"meta_batch": 2}, {"inner": Inner("sgd", 0.01)}]
    jobs = [_job(source, tmp_path, seed=7, iterations=1, **change) for change in changes]
    own = [training.evaluate(job.run, job.pool("test"), training.start(job.run)) for job in jobs]
    monkeypatch.setattr("analysis.courses.training", SimpleNamespace(**vars(training) | {"evaluate": evaluate}))
    for job, expected in zip(jobs, own, strict=True):
        found = {row["quantity"]: row["value"] for row in execute(job).rows if row["iteration"] == 0}
        assert found == {name: estimate.mean for name, estimate in expected.items()}
    assert [look for look in looks if look[2] == 0] == [(7, RUN.inner, 0), (7, Inner("sgd", 0.01), 0)]


def test_key_depends_on_all_that_decides_and_on_nothing_else(source, tmp_path):
    job = _job(source, tmp_path)
    same = [dataclasses.replace(job, folder=tmp_path / "x"), dataclasses.replace(job, fresh=True)]
    other = [
        _job(source, tmp_path, seed=1),
        _job(source, tmp_path, weights=(0.0, 1.0)),
        _job(source, tmp_path, inner=Inner("adam", 0.002)),
        _job(source, tmp_path, activation="tanh"),
        dataclasses.replace(job, source=dataclasses.replace(source, content="0" * 64)),
        dataclasses.replace(job, source=dataclasses.replace(source, split="authors")),
        dataclasses.replace(job, device="cuda"),
    ]
    assert {job.key} == {j.key for j in same}
    assert len({job.key} | {j.key for j in other}) == 1 + len(other)


def test_another_runs_file_is_refused_and_left_alone(source, tmp_path):
    job, other = _job(source, tmp_path), _job(source, tmp_path, seed=1)
    execute(other)
    job.path.write_bytes(other.path.read_bytes())
    before = job.path.read_bytes()
    with pytest.raises(CheckpointError, match=f"expected the run {job.key}, found the run {other.key}"):
        execute(job)
    assert job.path.read_bytes() == before


def test_a_damaged_file_is_named(source, tmp_path):
    job = _job(source, tmp_path)
    execute(job)
    job.path.write_bytes(job.path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=job.path.name):
        execute(job)


def test_data_that_changed_under_a_run_is_refused(source, tmp_path):
    job = dataclasses.replace(_job(source, tmp_path), source=dataclasses.replace(source, content="0" * 64))
    with pytest.raises(datasets.DataError, match="found another"):
        execute(job)


def test_a_run_that_diverges_stops_and_says_where(source, tmp_path):
    job = _job(source, tmp_path, inner=Inner("sgd", 1e30), outer=Outer(1e30))
    outcome = execute(job)
    assert outcome.status == "diverged at iteration 1"
    assert {row["iteration"] for row in outcome.rows} == {0}
    assert execute(job).status == outcome.status


def test_fresh_means_once_in_an_invocation(source, tmp_path):
    """Experiments share runs: the second that asks for one finds it done."""
    with Workers(1, quiet=True) as workers:
        context = Context("smoke", source, workers, tmp_path, fresh=True)
        job = context.job(dataclasses.replace(RUN, iterations=1), "g1+g2")
        execute(job)
        times = []
        for _ in range(2):
            context.train("runs", [job])
            times.append(job.path.stat().st_mtime_ns)
    assert times[0] == times[1]
    with Workers(1, quiet=True) as workers:
        Context("smoke", source, workers, tmp_path, fresh=True).train("runs", [job])
    assert job.path.stat().st_mtime_ns != times[1]
