"""Runs as files: the same bits for any workers, in any number of steps.

What is asked for later is found or trained once more.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from analysis.experiments.shared.experiment import Context
from analysis.runs import advance
from analysis.runs.advance import RunInProgress, execute, execute_together, in_lanes, united
from analysis.runs.store import Outcome, load, state_at
from analysis.runs.workers import Workers, silent
from reptile_core import training
from reptile_core.checkpoints import CheckpointError
from reptile_core.lanes import lane_bytes
from reptile_core.training import Inner, Outer
from tests.helpers.jobs import (
    EACH_KIND,
    KINDS,
    RUN,
    Followed,
    a_job,
    assert_same_run,
    assert_same_state,
    counted,
    course,
)
from tests.helpers.script import InProcess

# Length of training and kept states


@EACH_KIND
def test_a_run_goes_where_the_core_goes_and_is_done_once(kind, source, tmp_path):
    job = a_job(source, tmp_path, keep=(4, 8), **KINDS[kind])
    states = course(job)
    outcome = execute(job)
    assert (outcome.status, outcome.iteration) == ("finished", 12)
    for iteration in (0, 4, 8, 12):
        assert_same_state(state_at(job, iteration), states[iteration])
    before = job.path.stat().st_mtime_ns
    assert execute(job) == outcome
    assert job.path.stat().st_mtime_ns == before


@pytest.mark.parametrize(("weights", "images"), [((1.0, 1.0), 2 * 4), ("maml", (2 + 2) * 4)])
def test_progress_is_of_the_images_that_are_differentiated(weights, images, source, tmp_path):
    """MAML's k - 1 products with Hessians count as two gradients each.

    Otherwise the longest runs would not go first.
    """
    job = a_job(source, tmp_path, weights=weights)
    followed = Followed()
    execute(job, followed)
    assert sum(followed.now) == job.images == 12 * images and sum(followed.there) == 0


def test_progress_tells_what_was_there(source, tmp_path):
    """A resumed run reports what its file holds as there, and a finished one all of it."""
    job, resumed, finished = a_job(source, tmp_path), Followed(), Followed()
    execute(a_job(source, tmp_path, until=5))
    execute(job, resumed)
    assert sum(resumed.there) == job.images * 5 // 12
    assert sum(resumed.now) == job.images * 7 // 12
    execute(job, finished)
    assert (finished.there, finished.now) == ([job.images], [])


@EACH_KIND
def test_a_prefix_and_then_further_is_as_in_one_go(kind, source, tmp_path, monkeypatch):
    """A prefix that is trained further gives the same as one go.

    It is a prefix of the whole run's schedule, not a shorter run.
    """
    short, long = (
        a_job(source, tmp_path / "steps", until=until, keep=(3,), **KINDS[kind]) for until in (5, 9)
    )
    states = course(long)
    trained = counted(monkeypatch)
    assert execute(short).iteration == 5
    assert_same_state(state_at(short, 5), states[5])
    assert execute(long).iteration == 9
    assert trained == list(range(1, 10)), "nothing is trained twice"
    whole = dataclasses.replace(long, folder=tmp_path / "whole", keep=(3, 5))
    execute(whole)
    assert_same_run(long.path, whole.path)
    assert execute(short).iteration == 5 and len(trained) == 18


@EACH_KIND
def test_a_state_that_is_asked_for_later_is_trained_once_more_from_the_nearest(
    kind, source, tmp_path, monkeypatch
):
    first = a_job(source, tmp_path / "twice", keep=(4,), **KINDS[kind])
    states = course(first)
    execute(first)
    seconds = load(first).seconds
    trained = counted(monkeypatch)
    later = dataclasses.replace(first, until=8, keep=(6,))
    with pytest.raises(CheckpointError, match="expected the state at iteration 6, found none"):
        state_at(later, 6)
    assert execute(later).iteration == 8
    assert trained == [5, 6, 7, 8]
    for iteration in (4, 6, 8, 12):
        assert_same_state(state_at(later, iteration), states[iteration])
    assert load(first).seconds == seconds, "what is done twice counts once"
    whole = dataclasses.replace(first, folder=tmp_path / "once", keep=(4, 6, 8))
    execute(whole)
    assert_same_run(first.path, whole.path)


def test_seconds_are_those_of_training_to_the_end(source, tmp_path):
    whole = execute(a_job(source, tmp_path))
    assert execute(a_job(source, tmp_path, until=3, keep=(3,))).seconds == pytest.approx(
        whole.seconds / 4
    )
    assert execute(a_job(source, tmp_path, until=0)) == Outcome("finished", 0.0, 0)


@pytest.mark.parametrize("stored", [True, False])
def test_no_iteration_at_all_trains_nothing(stored, source, tmp_path, monkeypatch):
    if stored:
        execute(a_job(source, tmp_path, until=2))
    trained = counted(monkeypatch)
    job = a_job(source, tmp_path, until=0, keep=(5,))
    assert execute(job).finished and not trained
    assert_same_state(state_at(job, 0), training.start(job.run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": 13}, "^until: expected 0 to 12 iterations, found 13"),
        ({"until": -1}, "^until: expected 0 to 12 iterations, found -1"),
        ({"keep": (1, 20)}, "^keep: expected 0 to 12 iterations, found 20"),
    ],
)
def test_errors_of_a_job(changes, message, source, tmp_path):
    with pytest.raises(ValueError, match=message):
        a_job(source, tmp_path, **changes)


def test_jobs_of_one_key_are_united(source, tmp_path):
    """Jobs with the same key are united: two that wrote one file at once would lose work."""
    job = a_job(source, tmp_path, until=4, keep=(1,))
    other = a_job(source, tmp_path, seed=1)
    found = united([job, other, dataclasses.replace(job, until=9, keep=(2, 11), variant="again")])
    assert found == [
        dataclasses.replace(job, until=9, keep=(1, 2, 4)),
        dataclasses.replace(other, until=12),
    ]
    assert united([job]) == [dataclasses.replace(job)]


# The same bits


def test_fresh_does_it_again_and_gets_the_same_bits(source, tmp_path):
    job = a_job(source, tmp_path / "a")
    execute(job)
    old = job.path.rename(tmp_path / "old.safetensors")
    execute(job)
    assert_same_run(job.path, old)
    before = job.path.stat().st_mtime_ns
    execute(dataclasses.replace(job, fresh=True))
    assert job.path.stat().st_mtime_ns != before
    assert_same_run(job.path, old)


def test_a_fresh_run_replaces_no_more_than_it_has_done(source, tmp_path, monkeypatch):
    """A finished run stays in its file until a fresh one has come as far."""
    job = a_job(source, tmp_path, keep=(3,))
    execute(job)
    before = job.path.read_bytes()
    monkeypatch.setattr("analysis.runs.advance.SAVE_SECONDS", 0.0)
    calls = iter(range(9))

    def stop(done, note="", **_):
        if next(calls):
            raise Killed

    with pytest.raises(Killed):
        execute(dataclasses.replace(job, fresh=True, keep=()), stop)
    assert job.path.read_bytes() == before
    execute(dataclasses.replace(job, fresh=True, until=5, keep=()))
    found = load(job)
    assert found.state.iteration == RUN.iterations and sorted(found.snapshots) == [3, 5, 12]
    job.path.write_bytes(b"damaged")
    assert execute(dataclasses.replace(job, fresh=True)).finished


def test_two_workers_give_the_bits_of_this_process(source, tmp_path):
    for name, workers in (("here", InProcess(1)), ("there", Workers(2, quiet=True))):
        jobs = [a_job(source, tmp_path / name, seed=seed, keep=(5,)) for seed in range(3)]
        with workers as pool:
            assert all(outcome.finished for outcome in pool.map("runs", execute, jobs))
    assert len(list((tmp_path / "here").iterdir())) == 3
    for one in (tmp_path / "here").iterdir():
        assert_same_run(one, tmp_path / "there" / one.name)


class Killed(BaseException):
    """An exception in place of the end of a killed process."""


@EACH_KIND
@pytest.mark.parametrize("written", [0, 4, 7])
def test_killed_and_resumed_is_as_never_killed(kind, written, source, tmp_path, monkeypatch):
    """A killed and resumed run is as one that was never killed.

    It is killed at iteration 7.
    Its file was last written before the first iteration, at the fourth, or just then.
    """
    job, whole = (
        a_job(source, tmp_path / name, keep=(4,) if written else (), **KINDS[kind]) for name in "ab"
    )
    execute(whole)
    with monkeypatch.context() as patch:
        patch.setattr(advance, "SAVE_SECONDS", 0.0 if written == 7 else 1e9)
        patch.setattr(RunInProgress, "follow", _killing(RunInProgress.follow, at=7))
        with pytest.raises(Killed):
            execute(job)
    assert job.path.exists() == (written > 0)
    if written:
        assert load(job).state.iteration == written and load(job).status == "running"
    trained = counted(monkeypatch)
    execute(job)
    assert trained == list(range(written + 1, 13))
    assert_same_run(job.path, whole.path)


def _killing(follow: Callable, *, at: int) -> Callable:
    def killed(self: RunInProgress, iteration: int, get_state: Callable) -> None:
        follow(self, iteration, get_state)
        if iteration == at:
            raise Killed

    return killed


def test_together_as_alone(source, tmp_path):
    """Lanes end where each run ends alone, up to round-off.

    Some of them have begun or finished before.
    """
    changes: list[dict[str, Any]] = [{}, {"weights": (0.0, 1.0)}, {"seed": 1}, {"seed": 2}]
    alone = [
        a_job(source, tmp_path / "alone", keep=(6,), **change, dtype="float64")
        for change in changes
    ]
    together = [dataclasses.replace(job, folder=tmp_path / "together") for job in alone]
    execute(together[2])  # has finished before
    execute(dataclasses.replace(together[3], until=3, keep=()))  # has begun before
    found = execute_together(together)
    for job, outcome, expected in zip(together, found, alone, strict=True):
        assert (outcome.status, outcome.iteration) == ("finished", 12)
        execute(expected)
        for iteration in (6, 12):
            ours, theirs = (
                state_at(j, iteration).phi - training.start(j.run).phi for j in (job, expected)
            )
            assert (ours - theirs).norm() <= 1e-3 * theirs.norm()  # kinks and Adam lift round-off


# Divergence


DIVERGES = {"inner": Inner("sgd", 1e30), "outer": Outer(1e30)}


def test_a_run_that_diverges_stops_and_says_where(source, tmp_path):
    job = a_job(source, tmp_path, **DIVERGES)
    outcome = execute(job)
    assert (outcome.status, outcome.iteration, outcome.finished) == (
        "diverged at iteration 1",
        1,
        False,
    )
    assert execute(job) == outcome
    with pytest.raises(CheckpointError, match="expected the state at iteration 1, found none"):
        state_at(job, 1)
    assert_same_state(state_at(job, 0), training.start(job.run))


def test_a_prefix_of_a_run_that_diverges_is_finished(source, tmp_path, monkeypatch):
    """A prefix that ends before a divergence is finished, asked for before or after it.

    The same holds for states that were kept before it.
    """
    monkeypatch.setattr(
        training.Outer,
        "size",
        lambda self, iteration, iterations: float("inf") if iteration == 7 else 1e-3,
    )
    job = a_job(source, tmp_path, outer=Outer(1e-3), keep=(2,))
    at_7 = a_job(source, tmp_path, outer=Outer(1e-3), until=7, keep=(5,))
    assert execute(job).status == "diverged at iteration 8"
    assert execute(at_7) == Outcome("finished", pytest.approx(load(job).seconds * 7 / 8), 7)
    assert [state_at(job, n).iteration for n in (2, 5, 7)] == [2, 5, 7]
    trained = counted(monkeypatch)
    again = dataclasses.replace(job, keep=(6,))
    assert execute(again).status == "diverged at iteration 8" and state_at(again, 6).iteration == 6
    assert trained == [6]
    assert load(job).status == "diverged at iteration 8"


def test_a_lane_that_diverges_ends_alone(source, tmp_path):
    """A lane that diverges ends alone, and the other lane reaches its end as it does alone.

    They differ in their weights. The second lane's take phi so far in its first iteration that
    float32 overflows in its second.
    """
    together = tmp_path / "together"
    jobs = [
        a_job(source, together, weights=weights, inner=Inner("sgd", 0.003), outer=Outer(0.25))
        for weights in ((1.0, 1.0), (1e38, 1e38))
    ]
    fine, broken = execute_together(jobs)
    assert (fine.status, fine.iteration) == ("finished", 12)
    assert broken.status == "diverged at iteration 2"
    alone = dataclasses.replace(jobs[0], folder=tmp_path / "alone")
    execute(alone)
    begin = training.start(alone.run).phi
    ours, theirs = (state_at(job, 12).phi - begin for job in (jobs[0], alone))
    assert (ours - theirs).norm() <= 1e-3 * theirs.norm()  # round-off, which kinks lift


# On a GPU


def test_a_gpu_is_asked_for_a_lane_only_where_it_is_due(source, tmp_path, monkeypatch):
    """A lane is taken out only where it is due, as each time costs a GPU launches."""
    # This machine may have no GPU to name.
    monkeypatch.setattr("analysis.runs.advance.kind", lambda device: f"a {device}")
    run = RunInProgress(a_job(source, tmp_path, keep=(4,)), silent)
    run.begin()
    run.job = dataclasses.replace(run.job, device="cuda")
    asked: list[int] = []
    for iteration in (1, 2, 3):
        run.follow(iteration, lambda: asked.append(1))
    assert not asked and run.state.iteration == 0
    state = dataclasses.replace(run.state, iteration=4)
    run.follow(4, lambda: state)
    assert run.state is state and run.stored.snapshots.keys() == {4}
    run.job = dataclasses.replace(run.job, device="cpu")
    state = dataclasses.replace(run.state, iteration=5)
    run.follow(5, lambda: state)
    assert run.state is state


def test_jobs_are_grouped_by_what_lanes_share(source, tmp_path):
    jobs = [
        a_job(source, tmp_path, seed=s, weights=w) for s in (0, 1) for w in ((1.0, 1.0), (0.0, 1.0))
    ]
    others = [
        a_job(source, tmp_path, meta_batch=2),
        a_job(source, tmp_path, until=6),
        a_job(source, tmp_path, keep=(3,)),
    ]
    assert in_lanes([*jobs, others[0]]) == [(job,) for job in (*jobs, others[0])]
    on_gpu = [dataclasses.replace(job, device="cuda") for job in (*jobs, *others)]
    apart = [(job,) for job in on_gpu[4:]]
    assert in_lanes(on_gpu, free=10**12) == [tuple(on_gpu[:4]), *apart]
    room = lane_bytes(jobs[0].run) * 3
    assert in_lanes(on_gpu, free=room) == [tuple(on_gpu[:3]), (on_gpu[3],), *apart]
    assert in_lanes(on_gpu, free=1) == [(job,) for job in on_gpu]


# In an invocation of the script


def test_fresh_means_once_in_an_invocation(source, tmp_path):
    """`fresh` applies once in an invocation: a second experiment finds a shared run done."""
    context, again = (
        Context("smoke", source, InProcess(1), tmp_path, fresh=True) for _ in range(2)
    )
    job = context.job(dataclasses.replace(RUN, iterations=1), "g1+g2")
    execute(job)
    times = []
    for _ in range(2):
        context.train("runs", [job])
        times.append(job.path.stat().st_mtime_ns)
    assert times[0] == times[1]
    again.train("runs", [job])
    assert job.path.stat().st_mtime_ns != times[1]


def test_one_run_may_be_asked_for_at_two_ends_at_once(source, tmp_path, monkeypatch):
    trained = counted(monkeypatch)
    context = Context("smoke", source, InProcess(1), tmp_path)
    jobs = [
        context.job(RUN, "g1+g2", until=until, keep=keep)
        for until, keep in ((9, ()), (4, (2,)), (4, (3,)))
    ]
    outcomes = context.train("runs", jobs)
    assert trained == list(range(1, 10)), "nothing is trained twice"
    assert [outcomes[job].iteration for job in jobs] == [9, 4, 4]
    assert all(state_at(jobs[0], n).iteration == n for n in (2, 3, 4, 9))
