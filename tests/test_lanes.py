"""Lanes in float64 against single runs: the same sums in another order.

A few iterations of inner steps enlarge round-off, 1e-16, by far less than 1e5 on this network at
these learning rates.
"""

from dataclasses import replace

import pytest
import torch

from reptile_core import native
from reptile_core.lanes import lane, lane_bytes, shared, train_lanes
from reptile_core.losses import CrossEntropy
from reptile_core.tasks import training_stream
from reptile_core.training import OUTER_OPTIMIZERS, Outer, build_network, start, train
from tests.helpers.data import LANE_RUNS, assert_close, image_pool, minibatch

CLOSE = 1e-11
SGD_RUN = LANE_RUNS["sgd"]
SAMPLING = SGD_RUN.sampling
SMALL = replace(
    SGD_RUN,
    sampling=replace(SAMPLING, batch=2, steps=1),
    weights=(1.0,),
    iterations=2,
    meta_batch=1,
)
OUTER_RUNS = {
    f"outer {name}": replace(SMALL, outer=Outer(1e-3, optimizer=name)) for name in OUTER_OPTIMIZERS
}
RUNS = OUTER_RUNS | LANE_RUNS


def _lanes(run):
    """Return two variants of one seed, a run of another seed with other images, and their pools."""
    other = run.weights if run.weights == "maml" else (0.0, -0.5)[-len(run.weights) :]
    # No two lanes at the ends are alike, so that a reversed order shows.
    runs = [replace(run, weights=other), run, replace(run, seed=7)]
    first, second = image_pool(classes=6, seed=1), image_pool(classes=6, seed=2)
    return runs, [first, first, second]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_lane_is_its_run(run):
    runs, pools = _lanes(run)
    together = list(train_lanes(runs, pools, [start(run) for run in runs]))
    for index, (run, pool) in enumerate(zip(runs, pools, strict=True)):
        for found, expected in zip(together, train(run, pool, start(run)), strict=True):
            mine = lane(found, index)
            assert mine.iteration == expected.iteration
            assert_close(mine.phi, expected.phi, CLOSE)
            for ours, theirs in zip(mine.inner or (), expected.inner or (), strict=True):
                assert_close(ours, theirs, CLOSE)
            assert (mine.outer or {}).keys() == (expected.outer or {}).keys()
            for key, value in (mine.outer or {}).items():
                assert_close(value, expected.outer[key], CLOSE)


@pytest.mark.parametrize("name", ["sgd", "adam", "outer adam"])
def test_taken_up_again_gives_the_same_bits(name):
    runs, pools = _lanes(LANE_RUNS[name])
    whole = list(train_lanes(runs, pools, [start(run) for run in runs]))
    halfway = [lane(whole[0], index) for index in range(len(runs))]
    assert torch.equal(list(train_lanes(runs, pools, halfway))[-1].phi, whole[-1].phi)


def test_one_lane_alone_and_with_others():
    runs, pools = _lanes(SGD_RUN)
    whole = list(train_lanes(runs, pools, [start(run) for run in runs]))[-1]
    alone = list(train_lanes(runs[2:], pools[2:], [start(runs[2])]))[-1]
    assert_close(alone.phi[0], whole.phi[2], CLOSE)


def test_streams_of_many_seeds_are_each_ones_own():
    pool, span = image_pool(classes=6), range(60, 70)  # across the end of a block
    seeds = torch.tensor([3, 2**40 + 5])
    together = training_stream(SAMPLING, pool, seed=seeds, iterations=span, meta_batch=2)
    alone = [
        training_stream(SAMPLING, pool, seed=int(s), iterations=span, meta_batch=2) for s in seeds
    ]
    for tasks, *single in zip(together, *alone, strict=True):
        for index, expected in enumerate(single):
            for batch, own in zip(tasks.minibatches, expected.minibatches, strict=True):
                assert torch.equal(batch.index[:, index], own.index)
                assert torch.equal(batch.label[:, index], own.label)


def test_what_lanes_share():
    assert shared(SGD_RUN) == shared(replace(SGD_RUN, seed=5, weights=(0.0, 1.0)))
    assert shared(SGD_RUN) != shared(replace(SGD_RUN, outer=Outer(0.5)))
    assert shared(SGD_RUN) != shared(replace(SGD_RUN, weights="maml"))


def test_lanes_that_do_not_belong_together_are_refused():
    (two, one, _), (pool, *_) = _lanes(SGD_RUN)
    with pytest.raises(
        ValueError, match=r"^runs: expected as many pools and states, found 2, 1 and 2"
    ):
        next(train_lanes([one, two], [pool], [start(one)] * 2))
    with pytest.raises(
        ValueError, match=r"^runs: expected one kind in all lanes, found different outer"
    ):
        next(train_lanes([one, replace(two, outer=Outer(1.0))], [pool] * 2, [start(one)] * 2))
    with pytest.raises(ValueError, match=r"^states: expected one kind in all lanes, found 2"):
        next(train_lanes([one, two], [pool] * 2, [start(one), replace(start(two), iteration=1)]))
    with pytest.raises(ValueError, match=r"^pools: expected one kind in all lanes, found 2"):
        next(train_lanes([one, two], [pool, image_pool(classes=7)], [start(one), start(two)]))


def test_memory_of_a_lane_covers_what_an_inner_step_keeps(monkeypatch):
    """The memory computed for a lane covers what an inner step keeps.

    Torch counts on a step of one lane with autograd: each tensor saved for the backward pass, once.
    """
    monkeypatch.setattr(native, "supports_tensor", lambda x: False)  # as on a GPU
    run = replace(SGD_RUN, sampling=replace(SAMPLING, batch=9, shots=9), weights=(1.0, 1.0))
    network = build_network(run)
    phi, batch = (
        network.initialize(0, dtype=torch.float64).requires_grad_(),
        minibatch(batch=9, n_way=3),
    )
    saved: dict[int, int] = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = CrossEntropy(network, "sum")(phi, batch)
    assert loss.isfinite()
    # The estimate, 4.3 times that, adds 12 vectors as long as phi and eight outputs of each block.
    assert 3 < lane_bytes(run) / sum(saved.values()) < 6
    # MAML keeps the numbers of a step twice, and fewer vectors than twice: 1.8 times as much.
    assert 1.5 < lane_bytes(replace(run, weights="maml")) / lane_bytes(run) < 2
