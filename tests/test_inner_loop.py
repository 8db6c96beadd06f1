"""The inner loop against torch.optim on copied weights: phi_1 … phi_{k+1} and g_1 … g_k.

Tolerances for SGD and Adam.
Two programs differ by round-off in g, r times its largest number, where r is 1e-12 in float64 and
1e-4 in float32 (test_networks: sums and batch norm).
Adam divides g by its own size.
This lifts round-off in small numbers of g to any height up to its eps of 1e-8, that is to
1e-12 / 1e-8 = 1e-4 of a step.
Hence Adam is compared in the norm over all parameters, and in displacements, not in phi itself,
which hardly moves.
Over several steps a ReLU network at this learning rate lifts round-off a thousandfold or more,
differently on each machine.
Float64 bears that; float32 is compared step by step.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reptile_core.inner_loop import SGD, Adam, InnerOptimizer, Step, gradient, inner_loop
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.networks import omniglot
from tests.helpers import oracles
from tests.helpers.data import assert_close, minibatches, normal, pairs

NETWORK = omniglot(5)
LOSS = CrossEntropy(NETWORK, reduction="sum")
K = 4

OPTIMIZERS: dict[str, tuple[InnerOptimizer, oracles.MakeOptimizer]] = {
    "sgd": (SGD(0.003), oracles.sgd(0.003)),
    "adam": (Adam(0.001), oracles.adam(0.001)),
}
TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
BOTH = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def assert_same_course(steps: list[Step], trace: oracles.Trace, tolerance: float) -> None:
    """Check each step's gradient and displacement, in norm."""
    assert len(steps) == len(trace.gradients)
    for i, step in enumerate(steps):
        found, expected = step.after - step.before, trace.phis[i + 1] - trace.phis[i]
        for f, e in ((step.gradient, trace.gradients[i]), (found, expected)):
            assert f.dtype == e.dtype and (f - e).norm() <= tolerance * e.norm()


@BOTH
@DTYPES
def test_equals_torch_optim_over_two_tasks(optimizer: str, dtype: torch.dtype) -> None:
    """Two tasks in a row give the same steps as torch.optim.

    The second task starts from phi_1 again, with the state that the first one left.
    In float64 the oracle runs through the whole task by itself.
    In float32 it starts each step from our phi.
    """
    mine, make = OPTIMIZERS[optimizer]
    module = oracles.omniglot_module(5, dtype=dtype)
    theirs = make(module.parameters())
    phi, state = NETWORK.initialize(0, dtype=dtype), None
    for task in range(2):
        batches = minibatches(K, dtype=dtype, seed=task)
        steps = list(inner_loop(LOSS, phi, batches, mine, state))
        state = steps[-1].state
        length = K if dtype == torch.float64 else 1
        for i in range(0, K, length):
            trace = oracles.inner_loop(
                module, steps[i].before, pairs(batches[i : i + length]), theirs
            )
            assert_same_course(steps[i : i + length], trace, TOLERANCES[dtype])


@BOTH
def test_state_makes_a_difference(optimizer: str) -> None:
    """The state changes Adam's steps: otherwise the test above would miss lost moments."""
    mine, _ = OPTIMIZERS[optimizer]
    phi, batches = NETWORK.initialize(0), minibatches(1, dtype=torch.float32)
    first = next(inner_loop(LOSS, phi, batches, mine))
    again = next(inner_loop(LOSS, phi, batches, mine, first.state))
    afresh = next(inner_loop(LOSS, phi, batches, mine))
    assert torch.equal(afresh.after, first.after)
    # The gradient is the same twice, so that v is (1 - 0.999^2) g^2. Bias correction makes it g^2,
    # up to round-off and to eps where g is small.
    assert_close(again.after - phi, first.after - phi, 0.01)
    other = next(
        inner_loop(LOSS, phi, minibatches(1, dtype=torch.float32, seed=5), mine, first.state)
    )
    fresh = next(inner_loop(LOSS, phi, minibatches(1, dtype=torch.float32, seed=5), mine))
    assert torch.equal(other.after, fresh.after) == (optimizer == "sgd")


@BOTH
def test_steps_hang_together(optimizer: str) -> None:
    mine, _ = OPTIMIZERS[optimizer]
    phi = NETWORK.initialize(0, dtype=torch.float64)
    start, batches = phi.clone(), minibatches(3)
    steps = list(inner_loop(LOSS, phi, iter(batches), mine))
    assert torch.equal(phi, start) and torch.equal(steps[0].before, start)
    for i, step in enumerate(steps):
        assert torch.equal(step.gradient, gradient(LOSS, step.before, batches[i]))
        assert not step.after.requires_grad
        assert i == 0 or torch.equal(step.before, steps[i - 1].after)


@BOTH
@pytest.mark.parametrize("carried", [False, True])
def test_lanes_equal_one_at_a_time(optimizer: str, carried: bool) -> None:
    """Lanes equal one run at a time, also where all share an earlier state, as in evaluation."""
    mine, _ = OPTIMIZERS[optimizer]
    phi = torch.stack([NETWORK.initialize(seed, dtype=torch.float64) for seed in range(3)])
    batches = minibatches(3, 3)
    state = (
        list(inner_loop(LOSS, phi[0], minibatches(2, seed=7), mine))[-1].state if carried else None
    )
    together = list(inner_loop(LOSS, phi, batches, mine, state))
    for lane in range(3):
        own = [Minibatch(batch.x[lane], batch.y[lane]) for batch in batches]
        alone = list(inner_loop(LOSS, phi[lane], own, mine, state))
        trace = oracles.Trace(
            [phi[lane], *(s.after[lane] for s in together)], [s.gradient[lane] for s in together]
        )
        assert_same_course(alone, trace, TOLERANCES[torch.float64])


def scalar_steps(
    optimizer: InnerOptimizer, gradients: list[float], dtype: torch.dtype
) -> list[Tensor]:
    """Return displacements under given gradients, from a loss that is linear in phi."""
    batches = [Minibatch(torch.tensor([g], dtype=dtype), torch.zeros(1)) for g in gradients]
    phi = torch.zeros(1, dtype=dtype)
    return [
        s.after - s.before
        for s in inner_loop(lambda p, b: (p * b.x).sum(-1), phi, batches, optimizer)
    ]


def test_adam_by_hand() -> None:
    """Adam's first two steps are as computed by hand.

    The first is alpha g / (|g| + eps).
    In the second, v = 0.999·0.001·9 + 0.001·16, corrected by 1 - 0.999^2 = 0.001999.
    """
    first, second = scalar_steps(Adam(0.1, eps=0.5), [3.0, -4.0], torch.float64)
    corrected = (0.999 * 0.001 * 9 + 0.001 * 16) / 0.001999
    # 1 - 0.999^t is off by 2^-52 / 0.001 in float64.
    assert float(first) == pytest.approx(-0.1 * 3 / 3.5, rel=1e-12)
    assert float(second) == pytest.approx(0.1 * 4 / (corrected**0.5 + 0.5), rel=1e-12)


def test_adam_in_float32_is_as_good_as_torchs() -> None:
    """Adam in float32 has steps of the right size under a constant gradient.

    In float32 0.999 is off by 1.3e-8.
    1 - 0.999^t magnifies this to 1.3e-5 at t = 1, and its root halves it.
    """
    for step in scalar_steps(Adam(1.0), [2.0, 2.0, 2.0], torch.float32):
        assert float(step) == pytest.approx(-1.0, rel=1e-5)


@pytest.mark.parametrize("g", [0.0, 1e-30])
def test_adam_stays_finite_without_gradient(g: float) -> None:
    assert float(scalar_steps(Adam(1.0), [g], torch.float32)[0].abs()) <= 1e-20


def test_sgd_with_a_sum_is_sgd_with_the_mean_at_a_larger_rate() -> None:
    """A sum over 25 examples at rate 0.003 is their mean at rate 0.075: the trap of section 6.2."""
    phi, batches = NETWORK.initialize(0, dtype=torch.float64), minibatches(2, batch=25)
    summed = list(inner_loop(LOSS, phi, batches, SGD(0.003)))[-1].after
    averaged = list(inner_loop(CrossEntropy(NETWORK, reduction="mean"), phi, batches, SGD(0.075)))[
        -1
    ].after
    assert_close(summed, averaged, 1e-12)  # some hundred roundings


def test_differentiable_steps_have_a_derivative() -> None:
    """A differentiable step on phi^T A phi has the Jacobian 1 - 2 alpha A.

    The step is phi_2 = phi - alpha 2 A phi.
    """
    a = normal(3, 3)
    a = a + a.mT
    phi = normal(3, seed=1).requires_grad_()

    def quadratic(p: Tensor, _: Minibatch) -> Tensor:
        return p @ a @ p

    batch = Minibatch(torch.zeros(1), torch.zeros(1))
    step = next(inner_loop(quadratic, phi, [batch], SGD(0.1), differentiable=True))
    jacobian = torch.stack(
        [torch.autograd.grad(out, phi, retain_graph=True)[0] for out in step.after]
    )
    assert_close(jacobian, torch.eye(3, dtype=torch.float64) - 0.2 * a, 1e-14)  # three products
    assert not next(inner_loop(quadratic, phi.detach(), [batch], SGD(0.1))).after.requires_grad


def test_gradients_under_no_grad() -> None:
    with torch.no_grad():
        g = gradient(LOSS, NETWORK.initialize(0), minibatches(1, dtype=torch.float32)[0])
    assert g.isfinite().all() and g.abs().max() > 0


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_learning_rates(make: Callable[[float], InnerOptimizer], rate: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^learning_rate: expected a finite number above 0, found {rate}"
    ):
        make(rate)


@pytest.mark.parametrize("beta2", [-0.1, 1.0, float("nan")])
def test_bad_beta2(beta2: float) -> None:
    with pytest.raises(ValueError, match=rf"^beta2: expected a number in \[0, 1\), found {beta2}"):
        Adam(0.1, beta2=beta2)


@pytest.mark.parametrize("lanes", [(), (2,)], ids=["by hand", "lanes"])
@pytest.mark.parametrize(
    "label, dtype, message",
    [
        (7, torch.long, r"^y: expected labels from 0 to 4, found 7"),
        (-1, torch.long, r"^y: expected labels from 0 to 4, found -1"),
        (3.9, torch.float64, r"^y: expected labels of dtype torch.int64, found torch.float64"),
    ],
)
def test_wrong_labels(
    lanes: tuple[int, ...], label: float, dtype: torch.dtype, message: str
) -> None:
    batch = minibatches(1, *lanes)[0]
    y = batch.y.to(dtype)
    y[..., -1] = label
    with pytest.raises(ValueError, match=message):
        gradient(LOSS, NETWORK.initialize(0, dtype=torch.float64), Minibatch(batch.x, y))
