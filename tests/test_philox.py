"""Philox against Random123's known answers and Python integers, and draws against uniformity."""

import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chi2

from reptile_core.philox import Purpose, bits, distinct, permutations, philox, uniform

FALSE_ALARM = 1e-4  # of each chi-square below over random seeds; the seeds are fixed
FULL = 0xFFFFFFFF

KNOWN_ANSWERS = [  # Random123's kat_vectors: counter, key, answer of philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL,) * 4, (FULL,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def in_integers(key: tuple[int, ...], counter: tuple[int, ...]) -> tuple[int, ...]:
    """Return Philox's words by the published algorithm in unbounded integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ k, y & FULL, (x >> 32) ^ d ^ m, x & FULL
        k, m = (k + 0x9E3779B9) & FULL, (m + 0xBB67AE85) & FULL
    return a, b, c, d


def assert_uniform(outcomes: Counter, cells: int) -> None:
    expected = outcomes.total() / cells
    statistic = sum((n - expected) ** 2 / expected for n in outcomes.values())
    statistic += (cells - len(outcomes)) * expected  # cells without an outcome
    assert statistic < chi2.isf(FALSE_ALARM, cells - 1)


@pytest.mark.parametrize("counter, key, answer", KNOWN_ANSWERS)
def test_known_answers(counter: tuple, key: tuple, answer: tuple) -> None:
    assert tuple(philox(key, torch.tensor(counter)).tolist()) == answer
    assert in_integers(key, counter) == answer


def test_many_counters_at_once_equal_integer_arithmetic() -> None:
    counters = torch.randint(2**32, (5, 40, 4), generator=torch.Generator().manual_seed(0))
    key = (0x89ABCDEF, 0xFEDCBA98)
    found = philox(key, counters)
    for place in itertools.product(range(5), range(40)):
        assert tuple(found[place].tolist()) == in_integers(key, tuple(counters[place].tolist()))


def test_an_address_is_a_counter() -> None:
    """An address is a counter, written down here so that it cannot change unnoticed.

    A change would alter every task of every run.
    """
    found = bits(7 + (9 << 32), Purpose.EVALUATION, 10, iteration=5, task=3).tolist()
    expected = [word for block in range(3) for word in in_integers((7, 9), (block, 3, 5, 1))]
    assert found == expected[:10]
    assert {p.name: int(p) for p in Purpose} == {
        "TRAINING": 0,
        "EVALUATION": 1,
        "SPLIT": 2,
        "INITIALIZATION": 3,
        "ANALYSIS": 4,
    }


def test_nothing_depends_on_what_else_is_asked() -> None:
    iterations, tasks = torch.tensor([[4], [0], [9]]), torch.tensor([2, 0])
    together = bits(1, Purpose.TRAINING, 7, iteration=iterations, task=tasks)
    assert together.shape == (3, 2, 7)
    for i, t in itertools.product(range(3), range(2)):
        alone = bits(1, Purpose.TRAINING, 7, iteration=int(iterations[i]), task=int(tasks[t]))
        assert torch.equal(together[i, t], alone)
        assert torch.equal(
            bits(1, Purpose.TRAINING, 23, iteration=iterations[i, 0], task=tasks[t])[:7], alone
        )


def test_streams_differ() -> None:
    addresses = itertools.product((0, 1, 1 << 32), Purpose, (0, 1), (0, 1))
    streams = [bits(seed, purpose, 64, iteration=i, task=t) for seed, purpose, i, t in addresses]
    # Among 60 x 64 numbers of 32 bits, a coincidence has probability 2e-3. These seeds have none.
    assert len(set(torch.cat(streams).tolist())) == 60 * 64


def test_uniform_is_inside_the_open_interval_and_flat() -> None:
    u = uniform(3, Purpose.SPLIT, 20_000)
    assert u.dtype == torch.float64 and u.min() > 0 and u.max() < 1
    assert torch.equal(u, (bits(3, Purpose.SPLIT, 20_000).double() + 0.5) / 2**32)
    assert_uniform(Counter((u * 50).long().tolist()), 50)


@pytest.mark.parametrize("population, m", [(1, 1), (4, 2), (5, 5), (6, 3)])
def test_distinct_meets_every_ordered_choice_equally_often(population: int, m: int) -> None:
    """`distinct` gives every ordered choice equally often.

    The i-th pick depends on floor(key (population - i) / 2^32) alone.
    Hence one key from the middle of each bin is tried.
    """
    bins = [
        [int((r + 0.5) / (population - i) * 2**32) for r in range(population - i)] for i in range(m)
    ]
    choices = distinct(torch.tensor(list(itertools.product(*bins))), population).tolist()
    assert sorted(map(tuple, choices)) == sorted(itertools.permutations(range(population), m))


def test_distinct_is_uniform_and_without_repeats() -> None:
    rows = bits(0, Purpose.TRAINING, 3, task=torch.arange(12_000))
    choices = [tuple(row) for row in distinct(rows, 5).tolist()]
    assert all(len(set(row)) == 3 and set(row) <= set(range(5)) for row in choices)
    assert_uniform(Counter(choices), 5 * 4 * 3)


def test_distinct_at_the_ends_of_the_range() -> None:
    assert distinct(torch.tensor([0, 0, 0]), 9).tolist() == [0, 1, 2]
    assert distinct(torch.tensor([FULL, FULL, FULL]), 9).tolist() == [8, 7, 6]
    assert distinct(torch.zeros(4, 0, dtype=torch.int64), 3).shape == (4, 0)


def test_distinct_refuses_too_small_a_population() -> None:
    with pytest.raises(
        ValueError, match=r"^population: expected at least 3 to choose from, found 2"
    ):
        distinct(torch.tensor([1, 2, 3]), 2)


def test_permutations_are_uniform() -> None:
    orders = permutations(bits(0, Purpose.SPLIT, 4, task=torch.arange(5_000))).tolist()
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert_uniform(Counter(map(tuple, orders)), 24)
