"""How far an accuracy depends on its test classes: the part of its error that more tasks leave.

Over all tasks of n of M test classes, a mean accuracy is a U-statistic of order n in the classes
(Hoeffding 1948). To leading order its variance over other choices of classes is n^2 zeta / M. Here
zeta is the variance of what one class adds to the accuracy of a task that holds it: the covariance
of two tasks that share one class.
"""

import numpy as np
from jaxtyping import Float, Int

from analysis.runs.evaluation_chunks import Evaluation
from analysis.runs.job import Job, split_of
from reptile_core.datasets.split import ROTATIONS
from reptile_core.evaluation import evaluation_tasks


def classes_of(job: Job, evaluation: Evaluation) -> Int[np.ndarray, "tasks n_way"]:
    """Return which of the test classes each task of an evaluation holds."""
    pool, queries = job.pool("test"), evaluation.queries
    tasks = evaluation_tasks(
        evaluation.sampling,
        pool,
        seed=job.run.seed,
        tasks=range(evaluation.tasks),
        queries=queries,
        look=evaluation.look,
    )
    # A class's test examples are next to one another.
    return (tasks.test.index[..., ::queries] // pool.drawings).cpu().numpy()


def characters(job: Job) -> tuple[int, int]:
    """Return how many characters a job's split tests on, and how many there are in all."""
    split = split_of(job.source, job.run.seed)
    return len(split.test), len(split.test) + len(split.train) // ROTATIONS


def class_variance(
    values: Float[np.ndarray, " tasks"], classes: Int[np.ndarray, "tasks n_way"], count: int
) -> float:
    """Return zeta, from values of tasks whose classes are drawn from `count`.

    It is the slope of (product of two tasks' deviations) in (number of classes that they share), by
    least squares over all pairs of tasks. It is unbiased where classes add up, and may come out
    negative.

    Raises ValueError for fewer than two tasks, or where all pairs share as many classes.
    """
    tasks, n = classes.shape
    if tasks < 2:
        raise ValueError(f"values: expected at least two tasks, found {tasks}")
    z = values - values.mean()
    holds = np.zeros((tasks, count))
    np.put_along_axis(holds, classes, 1.0, axis=1)
    # Sums over ordered pairs of different tasks, of products, of classes shared, of its square, and
    # of both multiplied.
    pairs = tasks * (tasks - 1)
    products, shared = -(z @ z), (holds.sum(0) ** 2).sum() - tasks * n
    squares = ((holds.T @ holds) ** 2).sum() - tasks * n**2
    both = ((z @ holds) ** 2).sum() - n * (z @ z)
    spread = squares - shared**2 / pairs
    if spread <= 0:
        raise ValueError(
            f"classes: expected tasks that share more or fewer of them, found {tasks} that share "
            "as many"
        )
    return float((both - shared * products / pairs) / spread)


def split_error(
    values: Float[np.ndarray, " tasks"],
    classes: Int[np.ndarray, "tasks n_way"],
    *,
    test: int,
    every: int,
) -> float:
    """Return the standard error of the values' mean over splits into test and training classes.

    The splits draw `test` classes from `every`. The error is 0 where zeta is not above 0. Two such
    splits differ by sqrt(2) of it. What other classes in training change is not part of it.
    """
    zeta = max(0.0, class_variance(values, classes, test))
    return float(classes.shape[1] * np.sqrt(zeta / test * (1 - test / every)))
