"""Tasks of every kind of sampling."""

import torch

from reptile_core.philox import Purpose
from reptile_core.tasks import Examples, Sampling, Tasks, sample_tasks

CLASSES, DRAWINGS, COUNT = 30, 20, 40

SAMPLINGS = {
    "one batch": Sampling(5, 5, 25, 1),
    "disjoint": Sampling(5, 10, 25, 2),
    "partial batches": Sampling(5, 5, 10, 6),
    "batch over the pool": Sampling(3, 2, 10, 3),
    "replacement": Sampling(5, 5, 10, 4, replacement=True),
    "tail": Sampling(5, 10, 10, 5, tail_shots=3),
    "tail with replacement": Sampling(5, 6, 10, 4, replacement=True, tail_shots=2),
    "tail alone": Sampling(5, 4, 10, 1, tail_shots=1),
    "twenty ways": Sampling(20, 2, 20, 5),
}


def draw(
    sampling: Sampling,
    *,
    count: int = COUNT,
    test_shots: int = 1,
    seed: int = 0,
    iteration: int = 0,
) -> Tasks:
    """Return `count` tasks of one iteration."""
    return sample_tasks(
        sampling,
        classes=CLASSES,
        drawings=DRAWINGS,
        seed=seed,
        purpose=Purpose.TRAINING,
        iteration=iteration,
        task=torch.arange(count),
        test_shots=test_shots,
    )


def parts(tasks: Tasks) -> list[Examples]:
    return [*tasks.minibatches, tasks.support, tasks.test]
