"""The effect of the choice of test classes, against all pairs one by one and known effects."""

from itertools import permutations

import numpy as np
import pytest

from analysis.results.split_variance import class_variance, split_error


def _tasks(rng, tasks, n, count):
    return np.array([rng.choice(count, n, replace=False) for _ in range(tasks)])


@pytest.mark.parametrize("seed", range(3))
def test_the_slope_is_that_of_a_line_through_all_pairs(seed):
    rng = np.random.default_rng(seed)
    classes, values = _tasks(rng, 40, 3, 12), rng.uniform(size=40)
    z = values - values.mean()
    pairs = list(permutations(range(40), 2))
    shared = [len(set(classes[s]) & set(classes[t])) for s, t in pairs]
    slope, _ = np.polyfit(shared, [z[s] * z[t] for s, t in pairs], 1)
    assert class_variance(values, classes, 12) == pytest.approx(slope, rel=1e-9)


def test_finds_the_variance_of_effects_that_add_up_under_noise():
    """The variance of effects that add up under noise is found.

    The mean over 200 sets of effects has a standard error below 2 % of the truth.
    """
    rng, count, n, tasks, spread = np.random.default_rng(0), 100, 5, 500, 0.03
    found = []
    for _ in range(200):
        effects, classes = rng.normal(0, spread, count), _tasks(rng, tasks, n, count)
        found.append(
            class_variance(effects[classes].sum(1) + rng.normal(0, 0.1, tasks), classes, count)
        )
    assert np.mean(found) == pytest.approx(spread**2, rel=0.06)


def test_split_error_is_the_spread_of_means_over_splits_of_finitely_many_classes():
    """The split error is the spread of means over splits of finitely many classes.

    300 splits choose 20 test classes of 60.
    The spread of their means over all tasks is compared with the estimates from single splits.
    """
    rng, every, test, n = np.random.default_rng(1), 60, 20, 4
    effects = rng.normal(0, 0.05, every)
    means, said = [], []
    for _ in range(300):
        split = rng.permutation(every)[:test]
        classes = _tasks(rng, 400, n, test)
        means.append(n * effects[split].mean())  # the mean over all tasks of these classes
        said.append(
            split_error(effects[split][classes].sum(1), classes, test=test, every=every) ** 2
        )
    # Over 300 splits the spread has an error of 4 %.
    assert np.sqrt(np.mean(said)) == pytest.approx(np.std(means), rel=0.1)


def test_without_effects_there_is_none():
    rng = np.random.default_rng(2)
    classes, values = _tasks(rng, 2000, 5, 423), rng.binomial(5, 0.95, 2000) / 5
    assert split_error(values, classes, test=423, every=1623) < 0.1 * values.std()
    assert split_error(np.ones(2000), classes, test=423, every=1623) == 0.0


def test_errors_name_what_was_found():
    with pytest.raises(ValueError, match="at least two tasks, found 1"):
        class_variance(np.ones(1), np.array([[0, 1]]), 5)
    with pytest.raises(ValueError, match="found 2 that share as many"):
        class_variance(np.arange(2.0), np.array([[0, 1], [0, 1]]), 5)
