"""The model of cost: traced flops against products counted by hand, and who does what when."""

from dataclasses import replace

import pytest

from analysis import cost
from analysis.paper.figure_3 import EVALUATION, configure
from analysis.runs.evaluation_chunks import LANES
from reptile_core.meta_gradients import sum_of
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer

RUN = configure(sum_of(2), seed=0)
# Multiply-adds of one example: positions x 9 c_in c_out of each convolution, then the linear layer.
FIRST = 14 * 14 * 9 * 64
ALL = FIRST + (7 * 7 + 4 * 4 + 2 * 2) * 9 * 64 * 64 + 256 * 5
# The forward pass costs as much as each of the gradients for weights and for inputs; the images
# need no gradient.
GRADIENT = 2 * (3 * ALL - FIRST)


def test_products_of_an_iteration_are_those_counted_by_hand() -> None:
    """Products of an iteration agree with a count by hand to 1 %.

    The statistics of the first layer, from a 9 x 9 covariance, add half a percent.
    """
    assert cost.iteration(RUN) == pytest.approx(2 * 25 * GRADIENT, rel=0.01)


def test_products_of_an_evaluation_are_those_counted_by_hand() -> None:
    """Products of an evaluation agree with a count by hand.

    A task takes its steps and one batch of the 5 test examples.
    Each of these examples is also classified in a batch with all 25 examples of the support set.
    """
    task = 5 * 25 * GRADIENT + 2 * ALL * (5 + 5 * 26)
    found = cost.evaluation(RUN, EVALUATION, tasks=3)
    assert found == pytest.approx(3 * task, rel=0.01)
    # With four queries a class there is no transduction.
    many = 5 * 25 * GRADIENT + 2 * ALL * 4 * 5 * 26
    assert cost.evaluation(RUN, EVALUATION, tasks=3, queries=4) == pytest.approx(3 * many, rel=0.01)


def test_what_decides_no_operation_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that differ only in seeds, lengths and step sizes are traced once.

    The optimizers and the places of zero weights do change operations.
    """
    count = []
    monkeypatch.setattr(cost, "traced", lambda call: count.append(call) or 1.0)
    cost._iteration.cache_clear()
    cost._evaluation.cache_clear()
    alike = replace(
        RUN,
        seed=9,
        iterations=7,
        inner=Inner("sgd", 0.1),
        outer=Outer(0.5, 0.1),
        weights=(0.5, 0.5),
    )
    for run in (RUN, alike):
        cost.iteration(run)
        cost.evaluation(run, EVALUATION, tasks=3)
    assert len(count) == 1 + 2  # one iteration; evaluations of one step and of two
    for other in (
        replace(RUN, weights=(0.0, 1.0)),
        replace(RUN, inner=Inner("adam", 0.1)),
        replace(RUN, meta_batch=2),
    ):
        cost.iteration(other)
    assert len(count) == 3 + 3
    cost._iteration.cache_clear()
    cost._evaluation.cache_clear()


def test_steps_counted_once_are_as_steps_traced() -> None:
    sampling = Sampling(n_way=5, shots=1, batch=5, steps=4)
    pool, state = cost._pool(RUN, "meta"), cost._start(RUN)
    traced = cost.traced(
        lambda: cost.training.evaluate(RUN, pool, state, sampling, range(2), lanes=2)
    )
    assert cost.evaluation(RUN, sampling, 2) == traced


def test_cost_is_linear_in_k_and_tasks() -> None:
    one, two, three = (cost.iteration(configure(sum_of(k), seed=0)) for k in (1, 2, 3))
    assert three - two == two - one > 0
    few, many = (cost.evaluation(RUN, EVALUATION, tasks) for tasks in (2, 8))
    assert many == 4 * few
    assert cost.look(RUN, EVALUATION, 3 * LANES) == 3 * cost.evaluation(RUN, EVALUATION, LANES)


@pytest.mark.parametrize(("cores", "seconds"), [(1, 12), (2, 7), (3, 5), (64, 5)])
def test_runs_are_handed_out_longest_first(cores: int, seconds: float) -> None:
    """Each run goes to the first free core, the longest run first.

    On two cores, 5 and 3 start first, and a 2 follows each: max(5 + 2, 3 + 2) seconds.
    """
    assert cost.makespan([2, 5, 3, 2], cores) == seconds
