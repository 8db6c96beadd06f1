"""Gram matrices against stacked gradients, their means against loops over pairs.

Standard errors are tested against simulation.
ROUND_OFF: float64, inner products of some tens to some thousands of numbers about 1.
"""

import gc
from itertools import combinations, product
from math import isnan, nan

import pytest
import torch
from torch.func import grad, jacrev

from analysis.theory.inner_products import (
    cosines,
    example_gram,
    example_terms,
    gradient_gram,
    summarize,
)
from analysis.theory.losses import tanh_network
from reptile_core.inner_loop import gradient
from reptile_core.losses import CrossEntropy
from reptile_core.networks import omniglot
from tests.helpers.data import assert_close, generator, minibatch, normal

ROUND_OFF = 1e-12
N = 7


@pytest.fixture(scope="module")
def pool():
    return tanh_network(N)


@pytest.fixture(scope="module")
def gram(pool):
    gradients = torch.stack([grad(loss)(pool.phi) for loss in pool.losses])
    return gradients @ gradients.T


def _bytes(pool, gradients):
    return gradients * len(pool.phi) * 8


# Gram matrices


@pytest.mark.parametrize("block", [1, 2, 3, 4, 6, 7, 100])
def test_gram_of_minibatches_in_blocks(pool, gram, block):
    assert_close(
        gradient_gram(pool.losses, pool.phi, max_bytes=_bytes(pool, 2 * block)), gram, ROUND_OFF
    )


@pytest.fixture
def from_now_on():
    """Make the garbage collector list only objects that are made from now on.

    Going through all others would take a second.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("block", [1, 3, 7])
def test_no_more_than_two_blocks_are_held(pool, gram, block, from_now_on):
    """At most two blocks are held.

    They are counted among the living tensors whenever a gradient is taken.
    """

    def held():
        blocks = (t for t in gc.get_objects() if type(t) is torch.Tensor and t.ndim == 2)
        return sum(len(t) for t in blocks if t.shape[1] == len(pool.phi))

    seen = []

    def watched(loss):
        return lambda phi: (seen.append(held()), loss(phi))[1]

    losses = [watched(loss) for loss in pool.losses]
    assert_close(
        gradient_gram(losses, pool.phi, max_bytes=_bytes(pool, 2 * block)), gram, ROUND_OFF
    )
    assert max(seen) == min(2 * block, N)
    assert len(seen) <= N * (1 + -(-N // block)) / 2  # number of gradients computed


def test_too_little_memory_is_named(pool):
    two = _bytes(pool, 2)
    with pytest.raises(
        ValueError, match=f"max_bytes: expected room for two gradients, {two}, found {two - 1}"
    ):
        gradient_gram(pool.losses, pool.phi, max_bytes=two - 1)


@pytest.fixture(scope="module")
def examples():
    network, batch = omniglot(5, activation="softplus"), minibatch(batch=4)
    return network, batch, network.initialize(0, dtype=torch.float64)


def test_gram_of_examples_is_that_of_the_jacobian_of_their_terms(examples):
    network, batch, phi = examples
    jacobian = jacrev(example_terms(network, batch))(phi)
    room = 2 * 3 * len(phi) * 8  # room for blocks of 3 and 1
    assert_close(
        example_gram(example_terms(network, batch), phi, max_bytes=room),
        jacobian @ jacobian.T,
        ROUND_OFF,
    )


def test_gradients_of_examples_add_up_to_the_batchs_and_not_without_the_batch(examples):
    network, batch, phi = examples
    whole = gradient(CrossEntropy(network, reduction="sum"), phi, batch)
    found = example_gram(example_terms(network, batch), phi)
    assert float(found.sum()) == pytest.approx(float(whole @ whole), rel=1e-10)
    # Batch norm makes gradients differ where each example is a batch of its own.
    alone = torch.stack(
        [
            grad(lambda p, i=i: example_terms(network, _one(batch, i))(p).sum())(phi)
            for i in range(4)
        ]
    )
    assert (alone.sum(0) - whole).norm() > 0.1 * whole.norm()


def _one(batch, index):
    return type(batch)(batch.x[index : index + 1], batch.y[index : index + 1])


# Cosines


def test_cosines(gram):
    found = cosines(gram)
    for i, j in product(range(N), repeat=2):
        assert float(found[i, j]) == pytest.approx(
            float(gram[i, j] / (gram[i, i] * gram[j, j]) ** 0.5), rel=ROUND_OFF
        )
    vectors = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-5.0, 0.0], [0.0, 0.0]])
    found = cosines(vectors @ vectors.T)
    half = 0.5**0.5
    expected = [
        [1, 0, half, -1, nan],
        [0, 1, half, 0, nan],
        [half, half, 1, -half, nan],
        [-1, 0, -half, 1, nan],
    ]
    assert torch.allclose(found, torch.tensor([*expected, [nan] * 5]), equal_nan=True, atol=1e-6)


# Within and between tasks


def _naive(matrix, tasks):
    """Return means over pairs, by loops; every task and every pair of tasks has the same weight."""

    def pairs(s, t):
        return [
            float(matrix[i, j])
            for i, j in combinations(range(len(tasks)), 2)
            if {tasks[i], tasks[j]} == {s, t}
        ]

    def mean(numbers):
        return sum(numbers) / len(numbers)

    names = sorted(set(tasks))
    within = mean([mean(pairs(t, t)) for t in names])
    between = mean([mean(pairs(s, t)) for s, t in combinations(names, 2)])
    return within, between, within - between


TASKS = [3, 0, 0, 5, 3, 3, 0, 5, 0]  # labels in any order, tasks of 4, 3 and 2 gradients


def test_means_within_and_between_tasks_by_loops():
    matrix = normal(9, 9) + normal(9, 9).T
    found = summarize(matrix, torch.tensor(TASKS))
    for estimate, expected in zip(
        (found.within, found.between, found.difference), _naive(matrix, TASKS), strict=True
    ):
        assert estimate.value == pytest.approx(expected, abs=ROUND_OFF)
    changed = summarize(matrix + 100 * torch.eye(9), torch.tensor(TASKS))
    assert changed.within.value == pytest.approx(found.within.value)  # the diagonal does not count
    assert changed.between.value == pytest.approx(found.between.value)


def test_standard_errors_leave_out_one_task_at_a_time():
    matrix, tasks = normal(12, 12) + normal(12, 12).T, [i % 4 for i in range(12)]
    found = summarize(matrix, torch.tensor(tasks))
    without = []
    for left_out in range(4):
        kept = [i for i in range(12) if tasks[i] != left_out]
        without.append(_naive(matrix[kept][:, kept], [tasks[i] for i in kept]))
    spread = torch.tensor(without, dtype=torch.float64).var(0, correction=0)
    for estimate, variance in zip(
        (found.within, found.between, found.difference), spread, strict=True
    ):
        assert estimate.standard_error == pytest.approx(float(3 * variance) ** 0.5, rel=1e-10)


def test_standard_errors_are_those_of_repeated_experiments():
    """Standard errors are the spread of the means over 200 repeated experiments.

    Each experiment has 8 tasks with 6 gradients.
    A spread of 200 is known to 5 %, and the jackknife errs by some percent at 8 tasks.
    Standard errors computed over pairs would be less than half as large.
    """
    tasks = torch.arange(8).repeat_interleave(6)
    found, over_pairs = [], []
    for seed in range(200):
        g = generator(seed)
        centres = 1 + torch.randn(8, 5, generator=g, dtype=torch.float64)
        gradients = centres[tasks] + torch.randn(48, 5, generator=g, dtype=torch.float64)
        gram = gradients @ gradients.T
        found.append(summarize(gram, tasks))
        pairs = gram[(tasks.unsqueeze(0) != tasks.unsqueeze(1)).triu()]
        over_pairs.append(float(pairs.std()) / len(pairs) ** 0.5)
    for name in ("within", "between", "difference"):
        values = torch.tensor([getattr(s, name).value for s in found])
        errors = torch.tensor([getattr(s, name).standard_error for s in found])
        assert float(errors.mean() / values.std()) == pytest.approx(1, abs=0.2)
        if name == "between":
            assert float(torch.tensor(over_pairs).mean() / values.std()) < 0.5


def test_a_zero_gradient_makes_cosines_nan_and_says_so():
    vectors = normal(6, 4)
    vectors[2] = 0
    assert isnan(
        summarize(cosines(vectors @ vectors.T), torch.tensor([0, 0, 1, 1, 2, 2])).between.value
    )


def test_bad_labels_are_named():
    matrix = normal(6, 6)
    with pytest.raises(
        ValueError, match=r"tasks: expected one label for each of 6 gradients, found \(5,\)"
    ):
        summarize(matrix, torch.zeros(5, dtype=torch.int64))
    for labels, found in (
        ([0, 0, 0, 1, 1, 1], "2 tasks with 3"),
        ([0, 0, 1, 1, 2, 3], "4 tasks with 1"),
    ):
        with pytest.raises(
            ValueError, match=f"at least 3 tasks with at least 2 gradients each, found {found}"
        ):
            summarize(matrix, torch.tensor(labels))
