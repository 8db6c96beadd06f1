"""The task stream against the paper and the authors' code: classes, minibatches, epochs, tails."""

from collections import Counter

import pytest
import torch
from scipy.stats import chi2, hypergeom

from reptile_core import tasks as tasks_module
from reptile_core.philox import Purpose
from reptile_core.tasks import Examples, ImagePool, Sampling, Tasks, sample_tasks, training_stream
from tests.helpers.data import image_pool
from tests.helpers.tasks import CLASSES, COUNT, DRAWINGS, SAMPLINGS, draw, parts

FALSE_ALARM = 1e-4  # of each chi-square below over random seeds; the seeds are fixed
EACH = pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)


def assert_same(a: Tasks, b: Tasks) -> None:
    for x, y in zip(parts(a), parts(b), strict=True):
        assert torch.equal(x.index, y.index) and torch.equal(x.label, y.label)


def examples(part: Examples) -> list[int]:
    """Return the pictures of one task, by their indices."""
    return part.index.tolist()


# Classes and examples


@EACH
def test_classes_and_labels(sampling: Sampling) -> None:
    """A task has n_way classes, each with one label and the right number of examples."""
    tasks = draw(sampling, test_shots=2)
    for t in range(COUNT):
        task = tasks[t]
        label_of = {}
        for part in parts(task):
            for index, label in zip(part.index.tolist(), part.label.tolist(), strict=True):
                assert label_of.setdefault(index // DRAWINGS, label) == label
        assert sorted(label_of.values()) == list(range(sampling.n_way))
        for part, shots in ((task.support, sampling.shots), (task.test, 2)):
            assert Counter(part.label.tolist()) == dict.fromkeys(range(sampling.n_way), shots)


@EACH
def test_test_examples_are_not_in_the_support(sampling: Sampling) -> None:
    tasks = draw(sampling)
    for t in range(COUNT):
        support, test = examples(tasks.support[t]), examples(tasks.test[t])
        assert len(set(support)) == len(support) == sampling.n_way * sampling.shots
        assert len(set(test)) == sampling.n_way and not set(test) & set(support)
        assert all(set(examples(batch[t])) <= set(support) for batch in tasks.minibatches)


@EACH
def test_numbers_and_sizes_of_minibatches(sampling: Sampling) -> None:
    sizes = [sampling.batch] * sampling.steps
    if sampling.tail_shots:
        sizes[-1] = sampling.n_way * sampling.tail_shots
    batches = draw(sampling).minibatches
    assert [batch.index.shape for batch in batches] == [batch.label.shape for batch in batches]
    assert [batch.index.shape for batch in batches] == [(COUNT, size) for size in sizes]


def test_all_classes_and_drawings_are_equally_likely() -> None:
    tasks = draw(Sampling(5, 2, 5, 1), count=4_000)
    for part, label in ((tasks.support, 0), (tasks.support, 4), (tasks.test, 2)):
        # One example of each task is taken, so that they are independent.
        chosen = part.index[part.label == label].view(4_000, -1)[:, 0]
        for cell, cells in ((chosen // DRAWINGS, CLASSES), (chosen % DRAWINGS, DRAWINGS)):
            counts = torch.bincount(cell, minlength=cells).double()
            statistic = ((counts - 4_000 / cells) ** 2 / (4_000 / cells)).sum()
            assert statistic < chi2.isf(FALSE_ALARM, cells - 1)


# Minibatches


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_minibatches_are_disjoint_where_the_shots_suffice(k: int) -> None:
    """Minibatches are disjoint where the shots suffice, as in figure 3.

    5 k shots make k minibatches of 25: no example occurs twice, and all of them are used.
    """
    tasks = draw(Sampling(5, 5 * k, 25, k), test_shots=0)
    for t in range(COUNT):
        met = [index for batch in tasks.minibatches for index in examples(batch[t])]
        assert sorted(met) == sorted(examples(tasks.support[t])) and len(set(met)) == 25 * k


@pytest.mark.parametrize("batch, steps", [(10, 5), (10, 6), (7, 11), (25, 3), (60, 2)])
def test_cycling_meets_each_example_once_an_epoch(batch: int, steps: int) -> None:
    """Cycling takes each of 25 examples once an epoch.

    The rest of an epoch goes into the next minibatch, and each epoch has an order of its own.
    """
    tasks = draw(Sampling(5, 5, batch, steps))
    repeated = 0
    for t in range(COUNT):
        support = sorted(examples(tasks.support[t]))
        met = [index for part in tasks.minibatches for index in examples(part[t])]
        epochs = [met[start : start + 25] for start in range(0, len(met), 25)]
        assert all(sorted(epoch) == support for epoch in epochs if len(epoch) == 25)
        assert len(set(epochs[-1])) == len(epochs[-1])
        assert epochs[0] != epochs[1]
        repeated += sum(a == b for a, b in zip(*epochs[:2], strict=False))
    # A random order has a fixed point once in 25 places, whatever the length compared: to five
    # standard errors.
    compared = COUNT * min(25, batch * steps - 25)
    assert abs(repeated - compared / 25) < 5 * (compared / 25) ** 0.5


def test_first_minibatch_mixes_classes() -> None:
    """The first minibatch mixes classes, as examples are shuffled together.

    Hence the number of examples with label 0 in a batch is hypergeometric.
    """
    first = draw(Sampling(5, 5, 5, 2), count=1_000).minibatches[0]
    found = (first.label == 0).sum(-1).double()
    law = hypergeom(25, 5, 5)
    assert abs(found.mean() - law.mean()) < 5 * law.std() / 1_000**0.5
    # The variance has an error of about (2 / 1000)^(1/2) = 0.045: five of these are allowed.
    assert abs(found.var() / law.var() - 1) < 0.25


def test_replacement_repeats_nothing_inside_a_batch() -> None:
    tasks = draw(SAMPLINGS["replacement"], count=500)
    overlap = []
    for t in range(500):
        batches = [set(examples(batch[t])) for batch in tasks.minibatches]
        assert all(len(batch) == 10 for batch in batches)
        overlap += [len(batches[0] & batches[1]), len(batches[2] & batches[3])]
    # Two independent draws of 10 of 25 share a hypergeometric number of examples.
    law = hypergeom(25, 10, 10)
    mean = sum(overlap) / len(overlap)
    assert abs(mean - law.mean()) < 5 * law.std() / len(overlap) ** 0.5


@pytest.mark.parametrize("name", ["tail", "tail with replacement", "tail alone"])
def test_tail_is_set_aside(name: str) -> None:
    sampling = SAMPLINGS[name]
    tasks = draw(sampling)
    for t in range(COUNT):
        *body, tail = (batch[t] for batch in tasks.minibatches)
        assert Counter(tail.label.tolist()) == dict.fromkeys(range(5), sampling.tail_shots)
        met = {index for batch in body for index in examples(batch)}
        rest = set(examples(tasks.support[t])) - set(examples(tail))
        assert met <= rest and len(rest) == sampling.pool == 5 * (
            sampling.shots - sampling.tail_shots
        )
        assert name != "tail" or met == rest  # four minibatches of 10 cover the 35 examples


# A pure function of the address


@EACH
def test_nothing_depends_on_what_else_is_asked(sampling: Sampling) -> None:
    iterations, numbers = torch.tensor([[7], [0], [3]]), torch.tensor([2, 0])
    arguments = {
        "classes": CLASSES,
        "drawings": DRAWINGS,
        "seed": 5,
        "purpose": Purpose.EVALUATION,
        "test_shots": 1,
    }
    together = sample_tasks(sampling, **arguments, iteration=iterations, task=numbers)
    for i, iteration in enumerate((7, 0, 3)):
        for t, task in enumerate((2, 0)):
            alone = sample_tasks(sampling, **arguments, iteration=iteration, task=task)
            assert_same(together[i][t], alone)


def test_addresses_differ() -> None:
    sampling = SAMPLINGS["disjoint"]
    base = examples(draw(sampling).support[0])
    assert base != examples(draw(sampling).support[1])
    assert base != examples(draw(sampling, seed=1).support[0])
    assert base != examples(draw(sampling, iteration=1).support[0])


@pytest.mark.parametrize("block", [1, 3, 64, 1000])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling, pool = SAMPLINGS["partial batches"], image_pool()
    monkeypatch.setattr(tasks_module, "BLOCK", block)
    stream = list(training_stream(sampling, pool, seed=2, iterations=range(5, 12), meta_batch=3))
    assert len(stream) == 7
    for iteration, tasks in enumerate(stream, 5):
        assert_same(tasks, draw(sampling, seed=2, count=3, iteration=iteration, test_shots=0))


def test_stream_taken_up_in_the_middle() -> None:
    """A stream can be resumed in the middle, across a block's end and at its end."""
    sampling, pool = SAMPLINGS["disjoint"], image_pool()
    whole = list(training_stream(sampling, pool, seed=0, iterations=range(70), meta_batch=1))
    rest = list(training_stream(sampling, pool, seed=0, iterations=range(61, 70), meta_batch=1))
    for a, b in zip(whole[61:], rest, strict=True):
        assert_same(a, b)
    assert list(training_stream(sampling, pool, seed=0, iterations=range(3, 3), meta_batch=1)) == []


# The pool


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minibatch_holds_the_images_of_its_indices(dtype: torch.dtype) -> None:
    pool = image_pool(dtype=dtype)
    batch = draw(SAMPLINGS["disjoint"]).minibatches[1]
    found = pool.minibatch(batch)
    assert found.x.shape == (COUNT, 25, 28, 28) and found.x.dtype == dtype
    for t, i in ((0, 0), (3, 24), (39, 7)):
        index = int(batch.index[t, i])
        assert torch.equal(
            found.x[t, i], pool.images[index // DRAWINGS, index % DRAWINGS].to(dtype)
        )
    assert torch.equal(found.y, batch.label)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_of_photographs_go_in_as_the_authors_scale_them(dtype: torch.dtype) -> None:
    """Bytes of photographs are scaled as the authors do, bytes / 0xff in NumPy, to the bit.

    The pool itself keeps its bytes.
    """
    images = torch.arange(256, dtype=torch.uint8).view(2, 8, 4, 4, 1).expand(2, 8, 4, 4, 3)
    batch = Examples(torch.tensor([[15, 0], [7, 9]]), torch.zeros(2, 2, dtype=torch.long))
    found = ImagePool(images, dtype, white=255).minibatch(batch).x
    expected = (
        images.numpy().reshape(16, 4, 4, 3)[batch.index].astype(str(dtype).removeprefix("torch."))
        / 0xFF
    )
    assert found.dtype == dtype and torch.equal(found, torch.from_numpy(expected))
    assert (float(found.min()), float(found.max()), int(images.max())) == (0, 1, 255)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"n_way": 1}, r"^n_way: expected at least 2, found 1"),
        ({"shots": 0}, r"^shots: expected at least 1, found 0"),
        ({"batch": 0}, r"^batch: expected at least 1, found 0"),
        ({"steps": 0}, r"^steps: expected at least 1, found 0"),
        ({"tail_shots": -1}, r"^tail_shots: expected at least 0, found -1"),
        ({"tail_shots": 5}, r"^tail_shots: expected fewer than the 5 shots, found 5"),
        (
            {"replacement": True, "batch": 26},
            r"^batch: expected at most the 25 examples .*, found 26",
        ),
        (
            {"replacement": True, "tail_shots": 1, "batch": 21},
            r"^batch: expected at most the 20 examples .*, found 21",
        ),
    ],
)
def test_errors_of_sampling(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**{"n_way": 5, "shots": 5, "batch": 10, "steps": 2} | arguments)


@pytest.mark.parametrize(
    "sampling, test_shots, message",
    [
        (Sampling(31, 1, 5, 1), 0, r"^n_way: expected at most the 30 classes there are, found 31"),
        (
            Sampling(5, 21, 5, 1),
            0,
            r"^shots: expected at most 20 \(a class has 20 drawings\), found 21",
        ),
        (
            Sampling(5, 20, 5, 1),
            1,
            r"^shots: expected at most 19 .*1 of them kept for testing.*, found 20",
        ),
    ],
)
def test_errors_of_the_pool(sampling: Sampling, test_shots: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_pool().check(sampling, test_shots)


@pytest.mark.parametrize("brightest, white", [(2, 1), (255, 1), (255, 254)])
def test_no_byte_is_brighter_than_white(brightest: int, white: int) -> None:
    images = torch.zeros(6, 8, 4, 4, dtype=torch.uint8)
    images[3, 2, 1, 0] = brightest
    with pytest.raises(
        ValueError, match=rf"^white: expected at least {brightest}, the .*, found {white}"
    ):
        ImagePool(images, white=white)
    assert ImagePool(images, white=brightest).white == brightest


def test_pools_of_exactly_sufficient_size() -> None:
    pool: ImagePool = image_pool()
    pool.check(Sampling(30, 20, 5, 1))
    pool.check(Sampling(30, 19, 5, 1), 1)
