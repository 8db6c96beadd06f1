"""The model of cost, against hand counts.

Traced work is compared with products counted by hand, times of toy sweeps with pencil and paper.
"""

from dataclasses import replace

import pytest

from analysis import cost
from analysis.cost import GPU, PartOfRun, Work
from analysis.experiments import ablation
from analysis.experiments.shared.curves import Scale
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
    assert cost.iteration(RUN).flops == pytest.approx(2 * 25 * GRADIENT, rel=0.01)


def test_products_of_an_evaluation_are_those_counted_by_hand() -> None:
    """Products of an evaluation agree with a count by hand.

    A task takes its steps and one batch of the 5 test examples.
    Each of these examples is also classified in a batch with all 25 examples of the support set.
    """
    task = 5 * 25 * GRADIENT + 2 * ALL * (5 + 5 * 26)
    found = cost.evaluation(RUN, EVALUATION, tasks=3)
    assert found.flops == pytest.approx(3 * task, rel=0.01)
    # With four queries a class there is no transduction.
    many = 5 * 25 * GRADIENT + 2 * ALL * 4 * 5 * 26
    assert cost.evaluation(RUN, EVALUATION, tasks=3, queries=4).flops == pytest.approx(
        3 * many, rel=0.01
    )


def test_what_decides_no_operation_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that differ only in seeds, lengths and step sizes are traced once.

    The optimizers and the places of zero weights do change operations.
    """
    count = []
    monkeypatch.setattr(cost, "traced", lambda call: count.append(call) or Work(1))
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
    counted = cost.evaluation(RUN, sampling, 2)
    assert (counted.flops, counted.launches) == (traced.flops, traced.launches)
    assert counted.bytes == pytest.approx(traced.bytes)


def test_cost_is_linear_in_k_iterations_and_tasks() -> None:
    """Cost is linear in k, iterations and tasks; a lane adds bytes and flops but no launch."""
    one, two, three = (cost.iteration(configure(sum_of(k), seed=0)) for k in (1, 2, 3))
    assert three.flops - two.flops == two.flops - one.flops > 0
    assert three.launches - two.launches == two.launches - one.launches > 0
    few, many = (cost.evaluation(RUN, EVALUATION, tasks) for tasks in (2, 8))
    assert (many.flops, many.launches) == (4 * few.flops, few.launches)
    assert cost.whole(PartOfRun(RUN, 20)) == 20 * cost.iteration(RUN)
    assert cost.look(RUN, EVALUATION, 3 * LANES) == 3 * cost.evaluation(RUN, EVALUATION, LANES)


def test_a_run_is_trained_to_its_last_look_and_evaluated_at_each() -> None:
    scale = Scale(looks=(5, 10), tasks=LANES, seeds=1, queries=2)
    trainings, others = cost.ablation_runs("smoke", 2, scale)
    assert {item.until for item in trainings} == {10}
    assert len(trainings) == 2 * len(ablation.variants("smoke")) and len(others) == 3 * len(
        trainings
    )
    assert others[0] == cost.evaluation(RUN, EVALUATION, LANES, queries=2)


def test_a_cell_of_the_tables_is_evaluated_at_the_end() -> None:
    trainings, others = cost.few_shot_runs("smoke", seeds=1)
    assert {item.until - item.run.iterations for item in trainings} == {0}
    assert len(others) == 2 * len(trainings)  # both 1-shot and 5-shot


@pytest.mark.parametrize(("cores", "seconds"), [(1, 12), (2, 7), (3, 5), (64, 5)])
def test_runs_are_handed_out_longest_first(cores: int, seconds: float) -> None:
    """Each run goes to the first free core, the longest run first.

    On two cores, 5 and 3 start first, and a 2 follows each: max(5 + 2, 3 + 2) seconds.
    """
    assert cost.makespan([2, 5, 3, 2], cores) == seconds


def test_a_gpu_waits_for_arithmetic_memory_or_launches() -> None:
    gpu = GPU("toy", products=10, memory=100, launch=1)
    lanes, others = (
        [Work(flops=100, bytes=1000, launches=3)] * 4,
        [Work(flops=1, bytes=1, launches=30)] * 2,
    )
    assert gpu.seconds(lanes, count=1) == 4 * (10 + 10)
    assert gpu.seconds(others, count=1) == 30
    assert gpu.seconds([*lanes, *others], count=1) == 80 + 30
    assert gpu.seconds([*lanes, *others], count=8) == 80
