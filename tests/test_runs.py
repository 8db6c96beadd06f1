"""Runs as files: the same bits for any workers, in any number of steps.

What is asked for later is found or trained once more.
Files of earlier versions are found, and wrong or damaged files are named.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.experiments.shared.experiment import Context
from analysis.runs import advance
from analysis.runs.advance import RunInProgress, execute, execute_together, in_lanes, united
from analysis.runs.job import Job, Source, record_digest
from analysis.runs.store import Outcome, load, state_at
from analysis.runs.workers import Workers, silent
from reptile_core import datasets, training
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.lanes import lane_bytes
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer, Run, TrainingState
from tests.helpers.script import InProcess

RUN = Run(
    network="omniglot",
    sampling=Sampling(n_way=2, shots=3, batch=4, steps=2),
    weights=(1.0, 1.0),
    inner=Inner("adam", 0.001),
    outer=Outer(0.5, optimizer="adam"),
    iterations=12,
    seed=0,
)
# The optimizers' state: none, in the inner loop, outside, or both.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"inner": Inner("sgd", 0.003), "outer": Outer(0.25)},
    "inner adam": {"outer": Outer(0.25)},
    "inner adam, reset": {"inner": Inner("adam", 0.001, moments="reset"), "outer": Outer(0.25)},
    "outer adam": {"inner": Inner("sgd", 0.003)},
    "both adam": {},
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def source() -> Source:
    return Source("glyphs", None, datasets.load("glyphs").content)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, as workers do: the number of threads may change the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _job(
    source: Source,
    folder: Path,
    *,
    until: int | None = None,
    keep: tuple[int, ...] = (),
    **changes: Any,
) -> Job:
    return Job(dataclasses.replace(RUN, **changes), source, folder, "g1+g2", until=until, keep=keep)


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a run's tensors and its record without the time that it took."""
    tensors, record = load_checkpoint(path)
    return tensors, {name: value for name, value in record.items() if name != "seconds"}


def assert_same_run(one: Path, other: Path) -> None:
    (tensors, record), (others, other_record) = _content(one), _content(other)
    assert record == other_record
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name])
        # This tells 0 from -0 too.
        assert tensor.numpy().tobytes() == others[name].numpy().tobytes()


def assert_same_state(one: TrainingState, other: TrainingState) -> None:
    assert one.iteration == other.iteration
    for part, known in zip(
        (one.phi, *(one.inner or ())), (other.phi, *(other.inner or ())), strict=True
    ):
        assert torch.equal(part, known)
    ours, theirs = one.outer or {}, other.outer or {}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def course(job: Job) -> list[TrainingState]:
    """Return the states of a job's run after each iteration, with the start, by the core alone."""
    begin = training.start(job.run)
    return [begin, *training.train(job.run, job.pool("train"), begin)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the iterations trained from now on."""
    trained: list[int] = []
    train = training.train

    def counting(run: Run, pool: Any, state: TrainingState) -> Iterator[TrainingState]:
        for after in train(run, pool, state):
            trained.append(after.iteration)
            yield after

    monkeypatch.setattr("reptile_core.training.train", counting)
    return trained


# Length of training and kept states


@EACH_KIND
def test_a_run_goes_where_the_core_goes_and_is_done_once(kind, source, tmp_path):
    job = _job(source, tmp_path, keep=(4, 8), **KINDS[kind])
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
    job = _job(source, tmp_path, weights=weights)
    reported: list[int] = []
    execute(job, lambda done, note="", **_: reported.append(done))
    assert sum(reported) == job.images == 12 * images


@EACH_KIND
def test_a_prefix_and_then_further_is_as_in_one_go(kind, source, tmp_path, monkeypatch):
    """A prefix that is trained further gives the same as one go.

    It is a prefix of the whole run's schedule, not a shorter run.
    """
    short, long = (
        _job(source, tmp_path / "steps", until=until, keep=(3,), **KINDS[kind]) for until in (5, 9)
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
    first = _job(source, tmp_path / "twice", keep=(4,), **KINDS[kind])
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
    whole = execute(_job(source, tmp_path))
    assert execute(_job(source, tmp_path, until=3, keep=(3,))).seconds == pytest.approx(
        whole.seconds / 4
    )
    assert execute(_job(source, tmp_path, until=0)) == Outcome("finished", 0.0, 0)


@pytest.mark.parametrize("stored", [True, False])
def test_no_iteration_at_all_trains_nothing(stored, source, tmp_path, monkeypatch):
    if stored:
        execute(_job(source, tmp_path, until=2))
    trained = counted(monkeypatch)
    job = _job(source, tmp_path, until=0, keep=(5,))
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
        _job(source, tmp_path, **changes)


def test_jobs_of_one_key_are_united(source, tmp_path):
    """Jobs with the same key are united: two that wrote one file at once would lose work."""
    job = _job(source, tmp_path, until=4, keep=(1,))
    other = _job(source, tmp_path, seed=1)
    found = united([job, other, dataclasses.replace(job, until=9, keep=(2, 11), variant="again")])
    assert found == [
        dataclasses.replace(job, until=9, keep=(1, 2, 4)),
        dataclasses.replace(other, until=12),
    ]
    assert united([job]) == [dataclasses.replace(job)]


# The same bits


def test_fresh_does_it_again_and_gets_the_same_bits(source, tmp_path):
    job = _job(source, tmp_path / "a")
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
    job = _job(source, tmp_path, keep=(3,))
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
        jobs = [_job(source, tmp_path / name, seed=seed, keep=(5,)) for seed in range(3)]
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
        _job(source, tmp_path / name, keep=(4,) if written else (), **KINDS[kind]) for name in "ab"
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
        _job(source, tmp_path / "alone", keep=(6,), **change, dtype="float64") for change in changes
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
    job = _job(source, tmp_path, **DIVERGES)
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
    job = _job(source, tmp_path, outer=Outer(1e-3), keep=(2,))
    at_7 = _job(source, tmp_path, outer=Outer(1e-3), until=7, keep=(5,))
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
        _job(source, together, weights=weights, inner=Inner("sgd", 0.003), outer=Outer(0.25))
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
    run = RunInProgress(_job(source, tmp_path, keep=(4,)), silent)
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
        _job(source, tmp_path, seed=s, weights=w) for s in (0, 1) for w in ((1.0, 1.0), (0.0, 1.0))
    ]
    others = [
        _job(source, tmp_path, meta_batch=2),
        _job(source, tmp_path, until=6),
        _job(source, tmp_path, keep=(3,)),
    ]
    assert in_lanes([*jobs, others[0]]) == [(job,) for job in (*jobs, others[0])]
    on_gpu = [dataclasses.replace(job, device="cuda") for job in (*jobs, *others)]
    apart = [(job,) for job in on_gpu[4:]]
    assert in_lanes(on_gpu, free=10**12) == [tuple(on_gpu[:4]), *apart]
    room = lane_bytes(jobs[0].run) * 3
    assert in_lanes(on_gpu, free=room) == [tuple(on_gpu[:3]), (on_gpu[3],), *apart]
    assert in_lanes(on_gpu, free=1) == [(job,) for job in on_gpu]


# Identity


def test_key_depends_on_all_that_decides_and_on_nothing_else(source, tmp_path):
    job = _job(source, tmp_path)
    same = [
        dataclasses.replace(job, folder=tmp_path / "x"),
        dataclasses.replace(job, fresh=True),
        dataclasses.replace(job, variant="another name"),
        dataclasses.replace(job, until=3),
        dataclasses.replace(job, keep=(1, 2)),
        dataclasses.replace(job, source=dataclasses.replace(source, directory=tmp_path)),
    ]
    changes: dict[str, Any] = {
        "network": "cifar_fs",
        "sampling": dataclasses.replace(RUN.sampling, shots=4),
        "weights": (0.0, 1.0),
        "inner": Inner("adam", 0.002),
        "outer": Outer(0.4, optimizer="adam"),
        "iterations": 13,
        "seed": 1,
        "meta_batch": 2,
        "activation": "tanh",
        "dtype": "float64",
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(Run)}
    other = [_job(source, tmp_path, **{name: value}) for name, value in changes.items()] + [
        dataclasses.replace(job, source=dataclasses.replace(source, content="0" * 64)),
        dataclasses.replace(job, source=dataclasses.replace(source, split="authors")),
        dataclasses.replace(job, device="cuda"),
        dataclasses.replace(job, device="cuda", tf32=True),
    ]
    assert {job.key} == {j.key for j in same}
    assert len({job.key} | {j.key for j in other}) == 1 + len(other)


def test_another_runs_file_is_refused_and_left_alone(source, tmp_path):
    job, other = _job(source, tmp_path), _job(source, tmp_path, seed=1)
    execute(other)
    job.path.write_bytes(other.path.read_bytes())
    before = job.path.read_bytes()
    with pytest.raises(
        CheckpointError,
        match=f"expected the run {job.key}, found the run {other.key}, of another conf",
    ):
        execute(job)
    assert job.path.read_bytes() == before


def test_a_damaged_file_is_named(source, tmp_path):
    job = _job(source, tmp_path)
    execute(job)
    job.path.write_bytes(job.path.read_bytes()[:1000])
    for use in (execute, load, lambda job: state_at(job, 12)):
        with pytest.raises(CheckpointError, match=job.path.name):
            use(job)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, record: (tensors | {"at.3": tensors["phi"][:5].clone()}, record),
        lambda tensors, record: (tensors | {"at.x": tensors["phi"].clone()}, record),
        lambda tensors, record: (
            {name: tensor for name, tensor in tensors.items() if name != "phi"},
            record,
        ),
        lambda tensors, record: (tensors, record | {"iteration": 13}),
        lambda tensors, record: (tensors, record | {"status": None}),
        lambda tensors, record: (
            tensors,
            {name: value for name, value in record.items() if name != "seconds"},
        ),
    ],
)
def test_another_versions_file_is_named(damage, source, tmp_path):
    job = _job(source, tmp_path)
    execute(job)
    save_checkpoint(job.path, *damage(*load_checkpoint(job.path)))
    with pytest.raises(
        CheckpointError,
        match=f"{job.path.name}: expected the state of a run as this version writes it",
    ):
        execute(job)


def test_data_that_changed_under_a_run_is_refused(source, tmp_path):
    job = dataclasses.replace(
        _job(source, tmp_path), source=dataclasses.replace(source, content="0" * 64)
    )
    with pytest.raises(datasets.DataError, match="found another"):
        execute(job)


# Files of an earlier version, whose keys held how a run is evaluated


def write_old(
    job: Job, states: list[TrainingState], *, at: int, snapshots: tuple[int, ...], every: int = 3
) -> Path:
    """Write a run's file as the earlier version did.

    It holds the state at iteration `at`, and phi alone at `snapshots`.
    """
    evaluation = {
        "sampling": asdict(Sampling(n_way=2, shots=1, batch=2, steps=1)),
        "tasks": 2,
        "every": every,
    }
    decisive = job.decisive | {"run": asdict(job.run) | {"evaluation": evaluation}}
    key, state = record_digest(decisive), states[at]
    tensors = {"phi": state.phi} | {f"at.{n}": states[n].phi.clone() for n in snapshots}
    tensors |= {f"inner.{i}": tensor for i, tensor in enumerate(state.inner or ())}
    tensors |= {f"outer.{name}": tensor for name, tensor in (state.outer or {}).items()}
    row = {"iteration": 0, "quantity": "accuracy", "value": 0.5, "standard_error": 0.1, "count": 2}
    record = {
        "key": key,
        **decisive,
        "variant": job.variant,
        "iteration": state.iteration,
        "inner": None if state.inner is None else len(state.inner),
        "rows": [row],
        "seconds": 1.5,
        "status": "finished" if at == job.run.iterations else "running",
    }
    path = job.folder / f"{key}.safetensors"
    save_checkpoint(path, tensors, json.loads(json.dumps(record)))
    return path


@EACH_KIND
def test_a_finished_file_of_before_is_used(kind, source, tmp_path, monkeypatch):
    job = _job(source, tmp_path, **KINDS[kind])
    states = course(job)
    old = write_old(job, states, at=12, snapshots=(0, 6, 12))
    before = old.read_bytes()
    trained = counted(monkeypatch)
    assert execute(job) == Outcome("finished", 1.5, 12)
    assert_same_state(state_at(job, 12), states[12])
    assert_same_state(state_at(job, 0), states[0])
    assert not trained and not job.path.exists() and old.read_bytes() == before

    earlier = dataclasses.replace(job, until=8, keep=(6,))  # only phi was kept at iteration 6
    assert execute(earlier).iteration == 8
    assert trained == (
        list(range(7, 9)) if kind.startswith(("plain", "inner adam, reset")) else list(range(1, 9))
    )
    for iteration in (6, 8, 12):
        assert_same_state(state_at(earlier, iteration), states[iteration])
    assert old.read_bytes() == before


@EACH_KIND
def test_an_interrupted_file_of_before_is_gone_on_from(kind, source, tmp_path, monkeypatch):
    job = _job(source, tmp_path, **KINDS[kind])
    states = course(job)
    write_old(job, states, at=3, snapshots=(0, 3), every=1)
    old = write_old(job, states, at=6, snapshots=(0, 3, 6))
    write_old(job, states, at=0, snapshots=(0,), every=2)
    before = old.read_bytes()
    trained = counted(monkeypatch)
    assert execute(job).finished
    assert trained == list(range(7, 13)), "the furthest of several is taken"
    assert_same_state(state_at(job, 12), states[12])
    assert job.path.exists() and old.read_bytes() == before


def test_a_file_of_before_that_diverged_says_so(source, tmp_path):
    job = _job(source, tmp_path, **KINDS["plain"])
    states = course(job)
    old = write_old(job, states, at=3, snapshots=(0, 3))
    tensors, record = load_checkpoint(old)
    save_checkpoint(
        old,
        tensors | {"phi": tensors["phi"] * float("nan")},
        record | {"status": "diverged at iteration 3"},
    )
    assert execute(job) == Outcome("diverged at iteration 3", 1.5, 3)


def test_other_or_damaged_files_of_before_are_no_hindrance(source, tmp_path, monkeypatch):
    job = _job(source, tmp_path)
    states = course(job)
    other = dataclasses.replace(job, run=dataclasses.replace(job.run, seed=1))
    old = write_old(other, states, at=12, snapshots=())
    (tmp_path / "broken.safetensors").write_bytes(old.read_bytes()[:100])
    (tmp_path / "nothing.safetensors").write_bytes(b"")
    trained = counted(monkeypatch)
    execute(job)
    assert trained == list(range(1, 13))


def test_a_file_of_before_that_was_altered_is_named(source, tmp_path):
    job = _job(source, tmp_path, **KINDS["plain"])
    old = write_old(job, course(job), at=12, snapshots=())
    content = bytearray(old.read_bytes())
    content[-1] ^= 1
    old.write_bytes(content)
    with pytest.raises(CheckpointError, match=old.name):
        execute(job)


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
