"""Update directions against the naive loop, and MAML against functional_call.

functional_call keeps the graph through the loop.
"""

from dataclasses import dataclass
from functools import partial
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from reptile_core import native
from reptile_core.inner_loop import SGD, Adam, InnerOptimizer, gradient, inner_loop
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.meta_gradients import Variant, average, figure_3, last, maml, sum_of, weighted_sum
from reptile_core.networks import omniglot
from reptile_core.points import HELD
from tests.helpers import oracles
from tests.helpers.data import assert_close, minibatches, normal, pairs

# Softplus serves where second derivatives are taken: a ReLU that is off has gradient 0, where
# Adam's root has no derivative.
SMOOTH = omniglot(5, activation="softplus")
LOSS = CrossEntropy(SMOOTH, reduction="sum")
ALPHA = 0.003
OPTIMIZERS: dict[str, tuple[InnerOptimizer, oracles.MakeOptimizer]] = {
    "sgd": (SGD(ALPHA), oracles.sgd(ALPHA)),
    "adam": (Adam(ALPHA), oracles.adam(ALPHA)),
}
BOTH = pytest.mark.parametrize("optimizer", OPTIMIZERS)
# Round-off in g is 1e-13. Adam divides by |g| + 1e-8, and entries of g go down to 1e-5 here (see
# test_inner_loop).
TOLERANCES = {"sgd": 1e-10, "adam": 1e-7}


def phi_1() -> Tensor:
    return SMOOTH.initialize(0, dtype=torch.float64)


def naive(k: int, optimizer: str) -> oracles.Trace:
    module = oracles.omniglot_module(5, activation="softplus")
    make = OPTIMIZERS[optimizer][1]
    return oracles.inner_loop(module, phi_1(), pairs(minibatches(k)), make(module.parameters()))


@BOTH
@pytest.mark.parametrize("k", [1, 2, 4])
def test_reptile_is_the_way_travelled(k: int, optimizer: str) -> None:
    found, _ = weighted_sum(
        LOSS, phi_1(), minibatches(k), OPTIMIZERS[optimizer][0], sum_of(k).weights
    )
    phis = naive(k, optimizer).phis
    assert_close(found, phis[0] - phis[-1], TOLERANCES[optimizer])


@BOTH
@pytest.mark.parametrize("k", [1, 2, 4])
def test_fomaml_is_the_last_step(k: int, optimizer: str) -> None:
    found, _ = weighted_sum(
        LOSS, phi_1(), minibatches(k), OPTIMIZERS[optimizer][0], last(k).weights
    )
    phis = naive(k, optimizer).phis
    assert_close(found, phis[-2] - phis[-1], TOLERANCES[optimizer])


def test_any_weights() -> None:
    weights = (0.5, 0.0, -2.0)
    found, _ = weighted_sum(LOSS, phi_1(), minibatches(3), SGD(ALPHA), weights)
    expected = sum(w * ALPHA * g for w, g in zip(weights, naive(3, "sgd").gradients, strict=True))
    assert_close(found, expected, TOLERANCES["sgd"])


def test_directions_are_linear_in_the_weights() -> None:
    def direction(*weights: float) -> Tensor:
        return weighted_sum(LOSS, phi_1(), minibatches(3), Adam(ALPHA), weights)[0]

    expected = 2 * direction(1, 0, 0) - 3 * direction(0, 1, 0) + 0.25 * direction(0, 0, 1)
    assert_close(direction(2, -3, 0.25), expected, 1e-14)  # a dozen roundings


def test_state_after_the_task() -> None:
    batches = minibatches(3)
    _, state = weighted_sum(LOSS, phi_1(), batches, Adam(ALPHA), last(3).weights)
    expected = list(inner_loop(LOSS, phi_1(), batches, Adam(ALPHA)))[-1].state
    assert all(torch.equal(f, e) for f, e in zip(state, expected, strict=True))
    following = weighted_sum(LOSS, phi_1(), batches, Adam(ALPHA), (1, 1, 1), state)[0]
    steps = list(inner_loop(LOSS, phi_1(), batches, Adam(ALPHA), expected))
    # Differences of phi, off by 2^-52, are divided by ALPHA.
    assert_close(following, steps[0].before - steps[-1].after, 1e-10)
    assert float(state[1]) == 3


def test_lanes_equal_one_at_a_time() -> None:
    phi = torch.stack([SMOOTH.initialize(seed, dtype=torch.float64) for seed in range(2)])
    batches = minibatches(2, 2)
    for function in (partial(weighted_sum, weights=(1, 1)), maml):
        together, _ = function(LOSS, phi, batches, SGD(ALPHA))
        for lane in range(2):
            own = [Minibatch(batch.x[lane], batch.y[lane]) for batch in batches]
            assert_close(
                together[lane], function(LOSS, phi[lane], own, SGD(ALPHA))[0], TOLERANCES["sgd"]
            )


def test_one_step_of_reptile_is_joint_training() -> None:
    """One step of Reptile, averaged over tasks, is a step of SGD on the mixture of their losses."""
    tasks = minibatches(3)
    mean = sum(weighted_sum(LOSS, phi_1(), [task], SGD(ALPHA), (1.0,))[0] for task in tasks) / 3
    module = oracles.load(oracles.omniglot_module(5, activation="softplus"), phi_1())
    module.zero_grad()
    for x, y in pairs(tasks):  # not as one batch: batch norm treats each task by itself
        (torch.nn.functional.cross_entropy(module(x), y, reduction="sum") / 3).backward()
    joint = oracles.flat(p.grad for p in oracles.learned(module).values() if p.grad is not None)
    assert_close(mean, ALPHA * joint, TOLERANCES["sgd"])


# MAML


def maml_step(optimizer: str) -> oracles.WrittenAdam | None:
    return oracles.WrittenAdam(ALPHA) if optimizer == "adam" else None


@BOTH
@pytest.mark.parametrize("k", [1, 2, 3])
def test_maml_equals_functional_call(k: int, optimizer: str) -> None:
    module, batches = oracles.omniglot_module(5, activation="softplus"), minibatches(k)
    step = maml_step(optimizer) or (lambda phi, g: phi - ALPHA * g)
    expected = ALPHA * oracles.maml_gradient(module, phi_1(), pairs(batches), step)
    found, _ = maml(LOSS, phi_1(), batches, OPTIMIZERS[optimizer][0])
    assert_close(found, expected, TOLERANCES[optimizer])


@BOTH
def test_maml_by_the_tensor_code_alone(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAML by tensor code alone equals MAML by hand, with more steps than there are buffers."""
    batches = minibatches(5, batch=3)
    by_hand, state = maml(LOSS, phi_1(), batches, OPTIMIZERS[optimizer][0])
    monkeypatch.setattr(native, "supports_tensor", lambda x: False)
    found, after = maml(LOSS, phi_1(), batches, OPTIMIZERS[optimizer][0])
    assert_close(found, by_hand, TOLERANCES[optimizer])
    for part, expected in zip(after, state, strict=True):
        assert_close(part, expected, TOLERANCES[optimizer])
    step = maml_step(optimizer) or (lambda phi, g: phi - ALPHA * g)
    module = oracles.omniglot_module(5, activation="softplus")
    assert_close(
        by_hand,
        ALPHA * oracles.maml_gradient(module, phi_1(), pairs(batches), step),
        TOLERANCES[optimizer],
    )


@BOTH
@pytest.mark.parametrize("by_hand", [True, False])
def test_mamls_memory_does_not_grow_with_k(
    optimizer: str, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAML's memory does not grow with k.

    As many saved tensors of graphs are alive at a time, and at most HELD buffers are kept.
    """
    if not by_hand:
        monkeypatch.setattr(native, "supports_tensor", lambda x: False)
    loss = CrossEntropy(SMOOTH, reduction="sum")
    most = []
    for k in (3, 7):
        alive: WeakSet[Saved] = WeakSet()
        peak = 0

        def pack(tensor: Tensor, alive: WeakSet = alive) -> Saved:
            nonlocal peak
            alive.add(saved := Saved(tensor))
            peak = max(peak, len(alive))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            maml(loss, phi_1(), minibatches(k, batch=2), OPTIMIZERS[optimizer][0])
        most.append(peak)
    assert most[0] == most[1]
    # SGD by hand makes no graph. Without a compiler nothing is done by hand.
    no_graph = optimizer == "sgd" and native.supports_tensor(phi_1())
    assert (most[0] == 0) == no_graph
    assert all(len(buffers) <= HELD for buffers in loss._held.values())


@dataclass(eq=False)
class Saved:
    """A tensor that a graph keeps alive."""

    tensor: Tensor


def test_maml_with_moments_of_an_earlier_task() -> None:
    """MAML's derivative takes the moments of an earlier task as constants."""
    module, step = oracles.omniglot_module(5, activation="softplus"), oracles.WrittenAdam(ALPHA)
    state = None
    for task in range(2):
        batches = minibatches(3, seed=task)
        found, state = maml(LOSS, phi_1(), batches, Adam(ALPHA), state)
        expected = ALPHA * oracles.maml_gradient(module, phi_1(), pairs(batches), step)
        step.v = step.v.detach()
        assert_close(found, expected, TOLERANCES["adam"])
        assert_close(state[0], step.v, TOLERANCES["adam"])
        assert float(state[1]) == step.t and not any(tensor.requires_grad for tensor in state)


@BOTH
def test_maml_without_inner_steps_is_the_plain_gradient(optimizer: str) -> None:
    batches = minibatches(1)
    found, _ = maml(LOSS, phi_1(), batches, OPTIMIZERS[optimizer][0])
    assert_close(found, ALPHA * gradient(LOSS, phi_1(), batches[0]), 1e-15)


def test_maml_is_not_fomaml() -> None:
    """MAML differs from FOMAML: otherwise the tests above could not see second derivatives."""
    batches = minibatches(3)
    second_order, _ = maml(LOSS, phi_1(), batches, SGD(ALPHA))
    first_order, _ = weighted_sum(LOSS, phi_1(), batches, SGD(ALPHA), last(3).weights)
    assert (second_order - first_order).norm() > 0.01 * first_order.norm()


def test_maml_on_quadratics_in_closed_form() -> None:
    """MAML's gradient on quadratics is as in closed form.

    The losses are L_i = 1/2 (phi - c_i)' A_i (phi - c_i).
    Their gradient is g_MAML = (1 - a A_1)(1 - a A_2) A_3 (phi_3 - c_3).
    """
    a = [m @ m.mT for m in normal(3, 4, 4)]
    c, phi, one = normal(3, 4, seed=1), normal(4, seed=2), torch.eye(4, dtype=torch.float64)

    def quadratic(p: Tensor, b: Minibatch) -> Tensor:
        i = int(b.y)
        return 0.5 * (p - c[i]) @ a[i] @ (p - c[i])

    batches = [Minibatch(torch.zeros(1), torch.tensor(i)) for i in range(3)]
    found, _ = maml(quadratic, phi, batches, SGD(0.1))
    at = phi
    for i in range(2):
        at = at - 0.1 * a[i] @ (at - c[i])
    expected = (one - 0.1 * a[0]) @ (one - 0.1 * a[1]) @ a[2] @ (at - c[2])
    assert_close(found, 0.1 * expected, 1e-13)  # some tens of roundings


def test_maml_with_adam_where_gradients_are_exactly_zero() -> None:
    """MAML with Adam is finite where gradients are exactly zero.

    A ReLU that is off for a whole batch has step 0 for any phi_1.
    Its derivative is then 0, not nan.
    """
    relu = omniglot(5)
    loss, batches = CrossEntropy(relu, reduction="sum"), minibatches(2)
    phi = relu.initialize(0, dtype=torch.float64)
    assert (gradient(loss, phi, batches[0]) == 0).any()
    assert maml(loss, phi, batches, Adam(ALPHA))[0].isfinite().all()


# The variants of figure 3


def test_figure_3_has_the_papers_ten_curves() -> None:
    expected = [
        *("g1", "g1+g2", "(g1+g2)/2", "g2", "g1+g2+g3", "(g1+g2+g3)/3", "g3"),
        *("g1+g2+g3+g4", "(g1+g2+g3+g4)/4", "g4"),
    ]
    variants = figure_3()
    assert [v.name for v in variants] == expected
    assert [v.k for v in variants] == [1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    labels = [v.label for v in variants]
    assert labels[:4] == ["g_1", "g_1 + g_2", r"\frac{1}{2}(g_1 + g_2)", "g_2"]
    assert labels[7] == "g_1 + g_2 + g_3 + g_4" and len(set(labels)) == 10


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_weights_follow_from_k(k: int) -> None:
    """Weights follow from k: their total, and rho = sum w_i (i - 1) / sum w_i.

    rho is (k - 1) / 2 for sums and averages, and k - 1 for the last gradient.
    """
    for make, weight, rho in (
        (sum_of, k, (k - 1) / 2),
        (average, 1, (k - 1) / 2),
        (last, 1, k - 1),
    ):
        w = make(k).weights
        assert len(w) == make(k).k == k
        assert sum(w) == pytest.approx(weight, rel=1e-15)
        assert sum(w_i * i for i, w_i in enumerate(w)) / sum(w) == pytest.approx(rho, rel=1e-15)
    assert set(sum_of(k).weights) == {1.0} and set(average(k).weights) == {1 / k}
    assert last(k).weights[-1] == 1 and not any(last(k).weights[:-1])


@pytest.mark.parametrize("k_max", [1, 2, 6])
def test_figure_3_for_any_k(k_max: int) -> None:
    variants = figure_3(k_max)
    assert len(variants) == 1 + 3 * (k_max - 1) and len({v.weights for v in variants}) == len(
        variants
    )


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^k_max: expected at least 1 inner step, found 0"):
        figure_3(0)
    with pytest.raises(ValueError, match=r"^weights: expected one per inner step \(2\), found 3"):
        weighted_sum(LOSS, phi_1(), minibatches(2), SGD(ALPHA), (1, 1, 1))


def test_kinds():
    odd = Variant("odd", (0.5, 1.0), "odd")
    assert [v.kind for v in (last(1), sum_of(3), average(3), last(3), odd)] == [
        "joint",
        "sum",
        "average",
        "last",
        "other",
    ]
