"""Few-shot evaluation against a naive one.

The naive one runs torch.optim on copied weights, then test examples one by one or together.
Predictions are compared exactly: logits agree to 1e-10 (test_networks), and the largest two are
never so close here.
The images are learnable, so that accuracies vary from task to task.
"""

from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reptile_core.evaluation import Estimate, accuracies, classify, estimate, evaluation_tasks
from reptile_core.inner_loop import SGD, Adam, InnerOptimizer, inner_loop
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.networks import omniglot
from reptile_core.philox import Purpose
from reptile_core.tasks import Sampling, Tasks, sample_tasks
from tests.helpers import oracles
from tests.helpers.data import image_pool, minibatches, pairs

NETWORK = omniglot(5)
LOSS = CrossEntropy(NETWORK, reduction="sum")
POOL = image_pool()
SAMPLING = Sampling(n_way=5, shots=2, batch=5, steps=3)
COUNT = 7
OPTIMIZERS: dict[str, tuple[InnerOptimizer, oracles.MakeOptimizer]] = {
    "sgd": (SGD(0.003), oracles.sgd(0.003)),
    "adam": (Adam(0.001), oracles.adam(0.001)),
}


@dataclass(frozen=True)
class Naive:
    """The oracle's accuracy of each task."""

    one_by_one: list[float]
    together: list[float]


def phi_1() -> Tensor:
    return NETWORK.initialize(0, dtype=torch.float64)


def tasks(queries: int = 1) -> Tasks:
    return evaluation_tasks(SAMPLING, POOL, seed=0, tasks=range(COUNT), queries=queries)


def pictures(part) -> tuple[Tensor, Tensor]:
    """Return images and labels of one task, looked up one at a time."""
    images = [
        POOL.images[i // POOL.drawings, i % POOL.drawings].double() for i in part.index.tolist()
    ]
    return torch.stack(images), part.label


def naive(optimizer: str, warm_up: list[Minibatch] | None = None, *, queries: int = 1) -> Naive:
    """Evaluate every task from phi_1 and, for Adam, from the moments that `warm_up` left."""
    result = Naive([], [])
    for t in range(COUNT):
        task = tasks(queries)[t]
        module = oracles.omniglot_module(5)
        theirs = OPTIMIZERS[optimizer][1](module.parameters())
        oracles.inner_loop(module, phi_1(), pairs(warm_up or []), theirs)
        oracles.inner_loop(module, phi_1(), [pictures(batch) for batch in task.minibatches], theirs)
        (test, y), (support, _) = pictures(task.test), pictures(task.support)
        predictions = (
            oracles.classify_one_by_one(module, test, support),
            oracles.classify_together(module, test),
        )
        for known, found in zip((result.one_by_one, result.together), predictions, strict=True):
            known.append(float(np.mean(np.array(found) == y.numpy())))
    return result


def evaluate(*arguments: Any, **options: Any) -> dict[str, Estimate]:
    """Return the mean of each accuracy over tasks."""
    return {
        name: estimate(per_task) for name, per_task in accuracies(*arguments, **options).items()
    }


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_the_naive_evaluation(optimizer: str, carried: bool) -> None:
    mine = OPTIMIZERS[optimizer][0]
    warm_up = minibatches(2) if carried else []
    state = list(inner_loop(LOSS, phi_1(), warm_up, mine))[-1].state if carried else None
    expected = naive(optimizer, warm_up)
    for lanes in (1, 3, COUNT, 100):
        found = evaluate(NETWORK, LOSS, phi_1(), POOL, tasks(), mine, state, lanes=lanes)
        assert found.keys() == {"accuracy", "accuracy_transductive"}
        for name, known in (
            ("accuracy", expected.one_by_one),
            ("accuracy_transductive", expected.together),
        ):
            assert found[name].mean == pytest.approx(np.mean(known), abs=1e-12)
            error = np.std(known, ddof=1) / np.sqrt(COUNT)
            assert found[name].standard_error == pytest.approx(error, abs=1e-12)
            assert found[name].count == COUNT


@pytest.mark.parametrize("queries", [2, 5])
def test_many_queries_equal_the_naive_evaluation(queries: int) -> None:
    """Without transduction each query is alone with the support set, however many there are."""
    expected = naive("sgd", queries=queries).one_by_one
    mine = OPTIMIZERS["sgd"][0]
    for lanes in (1, 3):
        found = accuracies(
            NETWORK, LOSS, phi_1(), POOL, tasks(queries), mine, transductive=False, lanes=lanes
        )
        assert found.keys() == {"accuracy"}
        assert found["accuracy"].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_two_ways_differ_and_learn() -> None:
    """The two ways of evaluating give different accuracies, above chance.

    This is the control of the test above, which equal or chance-level numbers could not fail.
    """
    accuracies = naive("adam")
    assert accuracies.one_by_one != accuracies.together
    assert np.mean(accuracies.together) > 0.3


@pytest.mark.parametrize("lanes", [0, 1, 3])
@pytest.mark.parametrize("transductive", [False, True])
def test_predictions_one_task_at_a_time(lanes: int, transductive: bool) -> None:
    """Predictions agree with the oracle's, with and without a lane axis.

    There are so many test examples that a coincidence is improbable.
    """
    shape = (lanes,) if lanes else ()
    test, support = minibatches(2, *shape, batch=9)
    phi = torch.stack(
        [NETWORK.initialize(seed, dtype=torch.float64) for seed in range(max(lanes, 1))]
    )
    found = classify(NETWORK, phi if lanes else phi[0], test, support, transductive=transductive)
    assert found.shape == (*shape, 9)
    for lane in range(max(lanes, 1)):
        module = oracles.load(oracles.omniglot_module(5), phi[lane])
        own = (lane,) if lanes else ()
        expected = (
            oracles.classify_together(module, test.x[own])
            if transductive
            else oracles.classify_one_by_one(module, test.x[own], support.x[own])
        )
        assert found[own].tolist() == expected


@pytest.mark.parametrize("lanes", [1, 4])
def test_nothing_is_changed(lanes: int) -> None:
    phi = phi_1()
    state = list(inner_loop(LOSS, phi, minibatches(2), Adam(0.001)))[-1].state
    before = [tensor.clone() for tensor in (phi, *state)]
    first = evaluate(NETWORK, LOSS, phi, POOL, tasks(), Adam(0.001), state, lanes=lanes)
    assert all(torch.equal(a, b) for a, b in zip((phi, *state), before, strict=True))
    assert evaluate(NETWORK, LOSS, phi, POOL, tasks(), Adam(0.001), state, lanes=lanes) == first


def test_one_task_has_no_standard_error() -> None:
    one = evaluation_tasks(SAMPLING, POOL, seed=0, tasks=range(1))
    found = evaluate(NETWORK, LOSS, phi_1(), POOL, one, SGD(0.003))
    assert all(isnan(e.standard_error) and e.count == 1 for e in found.values())


def test_no_task_has_no_mean() -> None:
    with pytest.raises(ValueError, match=r"^per_task: expected at least 1 task, found 0"):
        estimate(torch.zeros(0))


def test_tasks_are_those_of_the_evaluation_stream() -> None:
    """Tasks come from the evaluation stream.

    They are the same whatever their count, have one test example a class, and differ from the
    training tasks.
    """
    few, many = (evaluation_tasks(SAMPLING, POOL, seed=4, tasks=range(n)) for n in (2, 5))
    assert torch.equal(many.test.index[:2], few.test.index) and torch.equal(
        many.support.index[:2], few.support.index
    )
    assert few.test.label.tolist() == [list(range(5))] * 2
    arguments = {
        "classes": POOL.classes,
        "drawings": POOL.drawings,
        "seed": 4,
        "iteration": 0,
        "test_shots": 1,
    }
    for purpose in (Purpose.EVALUATION, Purpose.TRAINING):
        other = sample_tasks(SAMPLING, **arguments, purpose=purpose, task=torch.arange(2))
        assert torch.equal(other.support.index, few.support.index) == (
            purpose == Purpose.EVALUATION
        )
    later = evaluation_tasks(SAMPLING, POOL, seed=4, tasks=range(2), look=30)
    other = sample_tasks(
        SAMPLING, **arguments | {"iteration": 30}, purpose=Purpose.EVALUATION, task=torch.arange(2)
    )
    assert torch.equal(later.support.index, other.support.index)
    assert not torch.equal(later.support.index, few.support.index)


def test_too_small_a_pool() -> None:
    with pytest.raises(ValueError, match=r"^shots: expected at most 19 .*kept for testing"):
        evaluation_tasks(Sampling(5, 20, 5, 1), POOL, seed=0, tasks=range(1))
