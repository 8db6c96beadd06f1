"""Meta-training against the paper's loop over torch.optim on copied weights.

Also resuming, to the bit, and the errors of a Run.
Tolerances are relative to phi - phi_1, the distance travelled.
SGD: round-off of 1e-12 a step (test_networks) through a dozen steps.
Adam lifts round-off in small numbers of g (test_inner_loop), and later steps lift the difference
again.
"""

from collections.abc import Callable
from dataclasses import replace
from math import isfinite

import pytest
import torch
from torch import Tensor

from reptile_core import evaluation
from reptile_core.losses import CrossEntropy
from reptile_core.philox import Purpose
from reptile_core.tasks import Sampling, sample_tasks
from reptile_core.training import (
    OUTER_OPTIMIZERS,
    Inner,
    Outer,
    Run,
    TrainingState,
    build_network,
    evaluate,
    start,
    train,
)
from tests.helpers import oracles
from tests.helpers.data import image_pool

POOL = image_pool()
SAMPLING = Sampling(n_way=5, shots=2, batch=5, steps=2)
TEST_SAMPLING = Sampling(n_way=5, shots=1, batch=5, steps=2)
TOLERANCES = {"sgd": 1e-9, "adam": 1e-5}

RUN = Run(
    network="omniglot",
    sampling=SAMPLING,
    weights=(1.0, 1.0),
    inner=Inner("sgd", 0.003),
    outer=Outer(0.25),
    iterations=4,
    seed=3,
    meta_batch=3,
    dtype="float64",
)
ADAM = replace(RUN, inner=Inner("adam", 0.001))
RUNS = {
    "sgd": RUN,
    "mean loss": replace(RUN, inner=Inner("sgd", 0.02, reduction="mean")),
    "one task": replace(RUN, meta_batch=1),
    "adam, kept": ADAM,
    "adam, reset": replace(ADAM, inner=Inner("adam", 0.001, moments="reset")),
    "outer adam": replace(RUN, outer=Outer(0.002, optimizer="adam")),
    "outer sgd": replace(RUN, outer=Outer(0.3, optimizer="sgd")),
    "both adam": replace(ADAM, outer=Outer(0.002, optimizer="adam")),
}
EACH = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def batches_of(run: Run, iteration: int, task: int) -> list[oracles.Batch]:
    drawn = sample_tasks(
        run.sampling,
        classes=POOL.classes,
        drawings=POOL.drawings,
        seed=run.seed,
        purpose=Purpose.TRAINING,
        iteration=iteration,
        task=task,
    )
    images = POOL.images.flatten(0, 1).double()
    return [(images[batch.index], batch.label) for batch in drawn.minibatches]


def optimizer_of(run: Run, module: torch.nn.Module) -> torch.optim.Optimizer:
    make = oracles.sgd if run.inner.optimizer == "sgd" else oracles.adam
    return make(run.inner.learning_rate)(module.parameters())


def naive_reptile(run: Run, *, last_only: bool = False) -> list[Tensor]:
    """Run Algorithm 2, and return phi after each iteration.

    phi <- phi + eps 1/n sum_t (W_t - phi), where W_t comes after k steps on task t.
    last_only: FOMAML's (W_t - phi_k) in place of (W_t - phi).
    """
    module = oracles.omniglot_module(5)
    inner = optimizer_of(run, module)
    phi = torch.nn.Parameter(start(run).phi.clone())
    outer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "plain": torch.optim.SGD}[
        run.outer.optimizer
    ]([phi], lr=1.0)
    course = []
    for iteration in range(run.iterations):
        ways = []
        for task in range(run.meta_batch):
            inner = optimizer_of(run, module) if run.inner.moments == "reset" else inner
            trace = oracles.inner_loop(
                module,
                phi.detach(),
                batches_of(run, iteration, task),
                inner,
                reduction=run.inner.reduction,
            )
            ways.append(trace.phis[-2 if last_only else 0] - trace.phis[-1])
        phi.grad = torch.stack(ways).mean(0)
        outer.param_groups[0]["lr"] = oracles.plain_eps(run.outer.step, iteration, run.iterations)
        outer.step()
        course.append(phi.detach().clone())
    return course


def assert_same_course(run: Run, expected: list[Tensor], tolerance: float) -> None:
    origin, states = start(run).phi, list(train(run, POOL, start(run)))
    assert [state.iteration for state in states] == list(range(1, run.iterations + 1))
    for state, phi in zip(states, expected, strict=True):
        assert state.phi.dtype == torch.float64
        assert (state.phi - phi).norm() <= tolerance * (phi - origin).norm()


@EACH
def test_equals_the_papers_loop(run: Run) -> None:
    adaptive = "adam" in (run.inner.optimizer, run.outer.optimizer)
    assert_same_course(run, naive_reptile(run), TOLERANCES["adam" if adaptive else "sgd"])


@pytest.mark.parametrize("run", [RUN, ADAM], ids=["sgd", "adam"])
def test_fomaml_equals_the_papers_loop(run: Run) -> None:
    tolerance = TOLERANCES[run.inner.optimizer]
    assert_same_course(
        replace(run, weights=(0.0, 1.0)), naive_reptile(run, last_only=True), tolerance
    )


def test_maml_equals_functional_call() -> None:
    run = replace(RUN, weights="maml", meta_batch=2, iterations=2)
    module, phi, alpha = oracles.omniglot_module(5), start(run).phi, run.inner.learning_rate
    course = []
    for iteration in range(run.iterations):
        gradients = [
            oracles.maml_gradient(
                module, phi, batches_of(run, iteration, task), lambda p, g: p - alpha * g
            )
            for task in range(run.meta_batch)
        ]
        phi = phi - oracles.plain_eps(0.25, iteration, run.iterations) * alpha * torch.stack(
            gradients
        ).mean(0)
        course.append(phi)
    assert_same_course(run, course, TOLERANCES["sgd"])


def test_variants_part_ways() -> None:
    """The variants of the tests above differ by much more than the tests' tolerances."""
    variants = [
        *RUNS.values(),
        replace(RUN, weights=(0.0, 1.0)),
        replace(RUN, weights="maml"),
        replace(RUN, seed=4),
    ]
    ends = [list(train(run, POOL, start(run)))[-1].phi for run in variants]
    origin = start(RUN).phi
    for i, a in enumerate(ends):
        for b in ends[:i]:
            assert (a - b).norm() > 1e-3 * (a - origin).norm()


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_outer_step_is_annealed_linearly(final: float) -> None:
    sizes = [Outer(0.5, final).size(i, 10) for i in range(11)]
    assert sizes == pytest.approx([0.5 + (final - 0.5) * i / 10 for i in range(11)], abs=1e-15)


# Stopping and going on


def copy(state: TrainingState) -> TrainingState:
    """Return another object with the same bits, as if read from a file."""
    inner = None if state.inner is None else tuple(tensor.clone() for tensor in state.inner)
    outer = (
        None
        if state.outer is None
        else {name: tensor.clone() for name, tensor in state.outer.items()}
    )
    return TrainingState(state.iteration, state.phi.clone(), inner, outer)


def tensors(state: TrainingState) -> list[Tensor]:
    return [state.phi, *(state.inner or ()), *(state.outer or {}).values()]


def assert_same_bits(a: TrainingState, b: TrainingState) -> None:
    assert a.iteration == b.iteration
    for x, y in zip(tensors(a), tensors(b), strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


MAML = replace(RUN, weights="maml", meta_batch=1)
OUTER = {
    name: replace(RUN, outer=Outer(0.01, optimizer=name))
    for name in OUTER_OPTIMIZERS
    if name not in ("sgd", "adam")  # which RUNS has
}


@pytest.mark.parametrize(
    "run", [*RUNS.values(), MAML, *OUTER.values()], ids=[*RUNS, "maml", *OUTER]
)
def test_going_on_gives_the_same_bits(run: Run) -> None:
    whole = [start(run), *train(run, POOL, start(run))]
    for stop in (0, 1, 3):
        rest = list(train(run, POOL, copy(whole[stop])))
        for a, b in zip(whole[stop + 1 :], rest, strict=True):
            assert_same_bits(a, b)


@EACH
def test_states_stay_as_they_were_yielded(run: Run) -> None:
    """States stay as they were yielded, also where training goes on from them a second time."""
    states, snapshots = [], []
    for state in train(run, POOL, start(run)):
        states.append(state)
        snapshots.append(copy(state))
    again = list(train(run, POOL, states[1]))
    for state, snapshot in zip(states, snapshots, strict=True):
        assert_same_bits(state, snapshot)
    assert_same_bits(again[-1], snapshots[-1])


def test_a_finished_run_yields_nothing() -> None:
    end = list(train(RUN, POOL, start(RUN)))[-1]
    assert list(train(RUN, POOL, end)) == []


def test_global_random_state_has_no_part() -> None:
    run = replace(RUN, iterations=1)
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        ends.append(next(train(run, POOL, start(run))))
    assert_same_bits(*ends)


# Evaluation of a run


@pytest.mark.parametrize("moments", ["kept", "reset"])
def test_evaluation_uses_the_moments_as_training_does(moments: str) -> None:
    run = replace(ADAM, inner=Inner("adam", 0.001, moments=moments))
    state = next(train(run, POOL, start(run)))
    warm = TrainingState(1, state.phi, next(train(ADAM, POOL, start(ADAM))).inner)
    received = []

    class Recording(type(run.inner.build())):  # type: ignore[misc]
        def step(self, phi: Tensor, g: Tensor, inner: tuple) -> tuple:
            received.append(float(inner[1]))
            return super().step(phi, g, inner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inner, "build", lambda self: Recording(self.learning_rate))
        found = evaluate(run, POOL, warm, TEST_SAMPLING, range(2))
    # Training took two steps on each of three tasks. Each of two tasks starts with their count, or
    # at 0, and takes two steps.
    first = 6.0 if moments == "kept" else 0.0
    assert received == [first, first + 1] * 2
    assert len(found["accuracy"]) == 2


def test_evaluation_is_that_of_the_runs_tasks() -> None:
    tasks = evaluation.evaluation_tasks(TEST_SAMPLING, POOL, seed=RUN.seed, tasks=range(2))
    network = build_network(RUN)
    loss = CrossEntropy(network, reduction="sum")
    expected = evaluation.accuracies(network, loss, start(RUN).phi, POOL, tasks, RUN.inner.build())
    assert expected.keys() == {"accuracy", "accuracy_transductive"}
    for lanes in (1, 2):
        assert_equal(
            evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, range(2), lanes=lanes), expected
        )


@pytest.mark.parametrize(("queries", "look"), [(1, 0), (1, 30), (3, 0), (3, 30)])
def test_evaluation_in_parts_is_evaluation_as_a_whole(queries: int, look: int) -> None:
    options = {"queries": queries, "look": look}
    whole = evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, range(12), **options)
    parts = [
        evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, part, **options)
        for part in (range(7), range(7, 12))
    ]
    assert_equal({name: torch.cat([part[name] for part in parts]) for name in whole}, whole)
    assert whole["accuracy"].std() > 0, "else any part would do for any other"
    assert ((whole["accuracy"] * 5 * queries) % 1 < 1e-9).all()


@pytest.mark.parametrize("some", [range(1, 12, 3), range(11, -1, -1)], ids=str)
def test_evaluation_takes_the_very_tasks_that_are_asked_for(some: range) -> None:
    whole = evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, range(12))
    found = evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, some)
    assert_equal(found, {name: values[list(some)] for name, values in whole.items()})
    assert not torch.equal(found["accuracy"], whole["accuracy"][: len(some)])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"tasks": range(0)}, r"^tasks: expected at least 1 task, found range\(0, 0\)"),
        ({"tasks": range(-3, 3)}, r"^tasks: expected at least 0, found -3"),
        ({"queries": 0}, r"^queries: expected at least 1, found 0"),
        ({"look": -1}, r"^look: expected at least 0, found -1"),
        ({"lanes": 0}, r"^lanes: expected at least 1, found 0"),
    ],
    ids=str,
)
def test_errors_of_an_evaluation(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, **{"tasks": range(2)} | wrong)


def test_looks_have_tasks_of_their_own() -> None:
    """Looks have tasks of their own.

    With one query a class there is the accuracy with transduction too.
    With several there is none, as they would share a batch.
    """
    found = {
        look: evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, range(30), look=look)
        for look in (0, 1)
    }
    assert not torch.equal(found[0]["accuracy"], found[1]["accuracy"])
    many = evaluate(RUN, POOL, start(RUN), TEST_SAMPLING, range(30), queries=4)
    assert many.keys() == {"accuracy"}
    assert many["accuracy"].var() < found[0]["accuracy"].var()


def test_evaluation_leaves_the_state_as_it_was() -> None:
    state = next(train(ADAM, POOL, start(ADAM)))
    before = copy(state)
    evaluate(ADAM, POOL, state, TEST_SAMPLING, range(2))
    assert_same_bits(state, before)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Errors


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            {"network": "resnet"},
            r"^network: expected one of omniglot, mini_imagenet, cifar_fs, found 'resnet'",
        ),
        ({"dtype": "float16"}, r"^dtype: expected one of float32, float64, found 'float16'"),
        ({"iterations": 0}, r"^iterations: expected at least 1, found 0"),
        ({"meta_batch": 0}, r"^meta_batch: expected at least 1, found 0"),
        ({"seed": -1}, r"^seed: expected at least 0, found -1"),
        (
            {"seed": 2**63},
            r"^seed: expected at most 9223372036854775807, found 9223372036854775808",
        ),
        ({"weights": (1.0,)}, r"^weights: expected one per inner step \(2\), found 1"),
        ({"weights": (1.0, 1.0, 1.0)}, r"^weights: expected one per inner step \(2\), found 3"),
        ({"weights": (1.0, float("nan"))}, r"^weights: expected finite numbers only, found nan"),
        ({"weights": "fo"}, r"^weights: "),  # a string has as many letters as there are steps
    ],
)
def test_errors_of_a_run(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RUN, **wrong)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Inner("rmsprop", 0.1), r"^optimizer: expected one of sgd, adam, found 'rmsprop'"),
        (
            lambda: Inner("sgd", 0.1, reduction="none"),
            r"^reduction: expected one of sum, mean, found 'none'",
        ),
        (
            lambda: Inner("sgd", 0.1, moments="lost"),
            r"^moments: expected one of kept, reset, found 'lost'",
        ),
        (lambda: Outer(float("nan")), r"^step: expected finite numbers only, found nan"),
        (lambda: Outer(0.1, float("inf")), r"^final: expected finite numbers only, found inf"),
        (lambda: Inner("adam", 0.0), r"^learning_rate: expected a finite number above 0, found 0"),
        (
            lambda: Outer(0.1, optimizer="lion"),
            r"^optimizer: expected one of plain, .*adam, .*sgd, found 'lion'",
        ),
    ],
)
def test_errors_of_its_parts(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_evaluation_on_another_number_of_classes() -> None:
    with pytest.raises(
        ValueError, match=r"^sampling: expected tasks of 5 classes as in training, found 3"
    ):
        evaluate(RUN, POOL, start(RUN), Sampling(3, 1, 3, 2), range(1))


def test_a_diverged_state_is_not_evaluated() -> None:
    run = replace(RUN, inner=Inner("sgd", 1e300), iterations=1, meta_batch=1)
    (state,) = train(run, POOL, start(run))
    count = sum(not isfinite(number) for number in state.phi.tolist())
    assert count > 0
    with pytest.raises(
        ValueError, match=rf"^state: expected finite parameters, found {count} that are not"
    ):
        evaluate(run, POOL, state, TEST_SAMPLING, range(1))


def test_too_small_a_pool() -> None:
    run = replace(RUN, sampling=replace(SAMPLING, shots=21))
    with pytest.raises(ValueError, match=r"^shots: expected at most 20 "):
        next(train(run, POOL, start(run)))


def test_a_pool_of_another_dtype() -> None:
    pool = replace(POOL, dtype=torch.float32)
    for call in (
        lambda: next(train(RUN, pool, start(RUN))),
        lambda: evaluate(RUN, pool, start(RUN), TEST_SAMPLING, range(1)),
    ):
        with pytest.raises(
            ValueError, match=r"^pool: expected dtype torch.float64 as in the run, found torch.floa"
        ):
            call()


def test_the_largest_seed_starts_as_no_other() -> None:
    seeds = (0, 1, 2**32, 2**63 - 2, 2**63 - 1)
    starts = torch.stack([start(replace(RUN, seed=seed)).phi for seed in seeds])
    assert len(starts.unique(dim=0)) == len(seeds)


def test_start_is_the_initialization() -> None:
    state = start(RUN)
    assert state.iteration == 0 and state.inner is None and state.outer is None
    assert torch.equal(state.phi, build_network(RUN).initialize(RUN.seed, dtype=torch.float64))
    assert start(replace(RUN, dtype="float32")).phi.dtype == torch.float32
