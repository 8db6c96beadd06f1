"""The files of runs: what identifies them, earlier versions, and damage that is named."""

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from analysis.runs.advance import execute
from analysis.runs.job import Job, record_digest
from analysis.runs.store import Outcome, load, state_at
from reptile_core import datasets
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer, Run, TrainingState
from tests.helpers.jobs import (
    EACH_KIND,
    KINDS,
    RUN,
    a_job,
    assert_same_state,
    counted,
    course,
)

# Identity


def test_key_depends_on_all_that_decides_and_on_nothing_else(source, tmp_path):
    job = a_job(source, tmp_path)
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
    other = [a_job(source, tmp_path, **{name: value}) for name, value in changes.items()] + [
        dataclasses.replace(job, source=dataclasses.replace(source, content="0" * 64)),
        dataclasses.replace(job, source=dataclasses.replace(source, split="authors")),
        dataclasses.replace(job, device="cuda"),
        dataclasses.replace(job, device="cuda", tf32=True),
    ]
    assert {job.key} == {j.key for j in same}
    assert len({job.key} | {j.key for j in other}) == 1 + len(other)


def test_another_runs_file_is_refused_and_left_alone(source, tmp_path):
    job, other = a_job(source, tmp_path), a_job(source, tmp_path, seed=1)
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
    job = a_job(source, tmp_path)
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
    job = a_job(source, tmp_path)
    execute(job)
    save_checkpoint(job.path, *damage(*load_checkpoint(job.path)))
    with pytest.raises(
        CheckpointError,
        match=f"{job.path.name}: expected the state of a run as this version writes it",
    ):
        execute(job)


def test_data_that_changed_under_a_run_is_refused(source, tmp_path):
    job = dataclasses.replace(
        a_job(source, tmp_path), source=dataclasses.replace(source, content="0" * 64)
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
    job = a_job(source, tmp_path, **KINDS[kind])
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
    job = a_job(source, tmp_path, **KINDS[kind])
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
    job = a_job(source, tmp_path, **KINDS["plain"])
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
    job = a_job(source, tmp_path)
    states = course(job)
    other = dataclasses.replace(job, run=dataclasses.replace(job.run, seed=1))
    old = write_old(other, states, at=12, snapshots=())
    (tmp_path / "broken.safetensors").write_bytes(old.read_bytes()[:100])
    (tmp_path / "nothing.safetensors").write_bytes(b"")
    trained = counted(monkeypatch)
    execute(job)
    assert trained == list(range(1, 13))


def test_a_file_of_before_that_was_altered_is_named(source, tmp_path):
    job = a_job(source, tmp_path, **KINDS["plain"])
    old = write_old(job, course(job), at=12, snapshots=())
    content = bytearray(old.read_bytes())
    content[-1] ^= 1
    old.write_bytes(content)
    with pytest.raises(CheckpointError, match=old.name):
        execute(job)
