"""Small runs as files: their jobs, the states that the core alone gives, and what must be equal."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.runs.job import Job, Source
from reptile_core import datasets, training
from reptile_core.checkpoints import load_checkpoint
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer, Run, TrainingState

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


def glyph_source() -> Source:
    return Source("glyphs", None, datasets.load("glyphs").content)


def a_job(
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


def short_job(folder: Path, iterations: int) -> Job:
    """Return the job of a run of so many iterations on the glyphs."""
    run = dataclasses.replace(RUN, iterations=iterations)
    return Job(run, glyph_source(), folder, "g1+g2")


class Followed:
    """Progress that is written down: the units done now, and those that were there."""

    def __init__(self) -> None:
        self.now: list[int] = []
        self.there: list[int] = []

    def __call__(self, done: int, note: str = "", /, *, there: bool = False) -> None:
        (self.there if there else self.now).append(done)
