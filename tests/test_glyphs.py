"""The made-up characters: reproducible one by one, and about as hard as Omniglot's."""

import numpy as np
import pytest

from reptile_core.datasets import DataError, load
from reptile_core.datasets.glyphs import HAND, _stream, generate


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return generate(characters=300)


def test_shape_and_values(images: np.ndarray) -> None:
    assert images.shape == (300, 20, 28, 28) and images.dtype == np.uint8
    assert set(np.unique(images)) == {0, 1}


@pytest.mark.parametrize("characters, drawings", [(1, 1), (7, 3), (51, 20)])  # 51: beyond one batch
def test_more_changes_none_of_the_earlier(
    images: np.ndarray, characters: int, drawings: int
) -> None:
    fewer = generate(characters=characters, drawings=drawings)
    np.testing.assert_array_equal(fewer, images[:characters, :drawings])


def test_seeds_characters_and_drawings_differ(images: np.ndarray) -> None:
    assert len(np.unique(images.reshape(-1, 28 * 28), axis=0)) == 300 * 20
    other = generate(characters=300, drawings=1, seed=1)
    assert not (other[:, 0] == images[:, 0]).all(axis=(1, 2)).any()


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1])
def test_every_seed_has_a_stream_of_its_own(seed: int) -> None:
    """The seed is the lower word of the key, as one number of 128 bits gives it."""
    expected = np.random.Philox(key=(5 << 64) + seed, counter=HAND << 192)
    found = _stream(seed, 5, HAND)
    np.testing.assert_array_equal(found.random(4), np.random.Generator(expected).random(4))


def test_ink_is_like_omniglots(images: np.ndarray) -> None:
    ink = 1 - images.mean(axis=(2, 3))
    assert 0.07 < ink.mean() < 0.10  # Omniglot: 0.081
    assert ink.min() > 0.01 and ink.max() < 0.22  # Omniglot: 0.001 and 0.218


def test_difficulty_is_like_omniglots(images: np.ndarray) -> None:
    """The nearest drawing in pixel space is right about as often as on Omniglot, 5-way and 1-shot.

    Omniglot's accuracy is 0.38 and chance 0.2; 2,000 queries have an error of 0.02.
    """
    rng = np.random.default_rng(0)
    flat = images.reshape(300, 20, -1).astype(np.float32)
    hits = []
    for _ in range(400):
        classes = rng.choice(300, 5, replace=False)
        shots = np.array([rng.choice(20, 2, replace=False) for _ in classes])
        support, query = flat[classes, shots[:, 0]], flat[classes, shots[:, 1]]
        distance = ((query[:, None] - support) ** 2).sum(-1)
        hits += list(distance.argmin(1) == range(5))
    assert 0.30 < np.mean(hits) < 0.46


@pytest.mark.parametrize("size", [14, 28, 105])
def test_ink_does_not_depend_on_the_resolution(size: int) -> None:
    """The share of ink depends little on the resolution.

    At 14 pixels the line is thinner, but every pixel that it touches is inked.
    Hence the bounds are wide.
    """
    ink = 1 - generate(characters=20, drawings=5, size=size).mean()
    assert 0.05 < ink < 0.22


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"characters": 0},
            {"drawings": -1},
            {"seed": -1},
            {"seed": 2**64},
            {"size": 13},
            {"size": 1000},
        ),
        *({"characters": 2.5}, {"drawings": "3"}, {"seed": None}, {"characters": True}),
    ],
    ids=str,
)
def test_arguments_are_checked(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name}: expected an integer from"):
        generate(**wrong)


def test_load_says_that_they_are_not_real() -> None:
    characters = load("glyphs")
    assert (characters.name, characters.real, characters.source) == (
        "glyphs",
        False,
        "generated from seed 0",
    )
    assert characters.images.shape == (800, 20, 28, 28) and len(characters.content) == 64
    with pytest.raises(ValueError, match="read-only"):
        characters.images[0] = 0


def test_load_refuses_what_makes_no_sense(tmp_path) -> None:
    with pytest.raises(
        DataError, match=r"^name: expected one of auto, omniglot, glyphs, .*, found 'mnist'"
    ):
        load("mnist")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"^data: expected none with the glyphs"):
        load("glyphs", data=tmp_path)
