"""The split of characters against its definition, its rotations against Pillow's.

Photographs are split as published.
"""

import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reptile_core.datasets.common import ColourImages
from reptile_core.datasets.split import (
    ALPHABETS,
    Split,
    authors_order,
    split_characters,
    split_images,
)


def characters(count: int, drawings: int = 1, size: int = 9) -> np.ndarray:
    """Return random grey images, of which no two are the same, rotated or not."""
    return np.random.default_rng(0).integers(0, 256, (count, drawings, size, size), dtype=np.uint8)


def places(part: np.ndarray, images: np.ndarray) -> list[int]:
    """Return the number of the character in each image of `part`."""
    known = {image.tobytes(): i for i, image in enumerate(images)}
    return [known[image.tobytes()] for image in part]


def unrotated(split: Split) -> np.ndarray:
    return split.train[: len(split.train) // 4].numpy()


def test_sizes_are_the_papers() -> None:
    split = split_characters(characters(1623), seed=0)
    assert (len(split.train), len(split.test)) == (4 * 1200, 423)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_character_is_on_one_side(seed: int) -> None:
    images = characters(40, drawings=3)
    split = split_characters(images, seed=seed)
    assert sorted(places(unrotated(split), images) + places(split.test.numpy(), images)) == list(
        range(40)
    )
    assert len(split.test) == 10  # 40 (1 - 1200/1623) = 10.4


def test_the_authors_split_is_a_shuffle_by_alphabet_whatever_the_seed() -> None:
    """The authors' split is a shuffle by alphabet, whatever the seed.

    Their code is repeated in four lines, on characters that can be told apart.
    """
    names = [f"{number:04}" for first, count in ALPHABETS for number in range(first, first + count)]
    random.seed(0)
    random.shuffle(names)
    images = characters(1623)
    one, other = (split_characters(images, seed=seed, kind="authors") for seed in (0, 7))
    assert places(unrotated(one), images) == [int(name) - 1 for name in names[:1200]]
    assert places(one.test.numpy(), images) == [int(name) - 1 for name in names[1200:]]
    assert np.array_equal(one.train, other.train) and len(one.test) == 423
    assert sorted(authors_order(1623)) == list(range(1623))
    with pytest.raises(
        ValueError, match=r"split: expected Omniglot's 1623 characters for the authors', found 40"
    ):
        split_characters(characters(40), seed=0, kind="authors")


def test_alphabets_are_the_published_ones_by_name() -> None:
    numbers: dict[str, dict[str, int]] = {}
    for part in ("images_background", "images_evaluation"):
        path = Path(os.environ.get("REPTILE_DATA", ""), "omniglot", f"{part}.zip")
        if not path.is_file():
            pytest.skip("$REPTILE_DATA is unset or holds no zips of Omniglot")
        for name in zipfile.ZipFile(path).namelist():
            if name.endswith(".png"):
                _, alphabet, character, drawing = name.split("/")
                numbers.setdefault(alphabet, {})[character] = int(drawing[:4])
    found = [
        [numbers[alphabet][character] for character in sorted(numbers[alphabet])]
        for alphabet in sorted(numbers)
    ]
    assert found == [list(range(first, first + count)) for first, count in ALPHABETS]


def test_rotations_equal_pillows() -> None:
    split = split_characters(characters(12, drawings=2), seed=5)
    n = len(unrotated(split))
    for turns, angle in enumerate((0, 90, 180, 270)):
        for character, drawings in enumerate(unrotated(split)):
            for drawing, image in enumerate(drawings):
                expected = np.asarray(Image.fromarray(image).rotate(angle))
                np.testing.assert_array_equal(
                    split.train[turns * n + character, drawing].numpy(), expected
                )


def test_is_a_function_of_the_seed() -> None:
    images = characters(40)
    first, again, other = (split_characters(images, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.train, again.train) and np.array_equal(first.test, again.test)
    assert places(first.test.numpy(), images) != places(other.test.numpy(), images)


def test_input_is_left_as_it_is() -> None:
    images = characters(8)
    images.flags.writeable = False  # as the loader returns them
    split = split_characters(images, seed=0)
    split.train.zero_()
    split.test.zero_()
    np.testing.assert_array_equal(images, characters(8))


def test_photographs_are_divided_as_published() -> None:
    """Photographs are divided as published.

    Training and test classes stay in place, as a copy for every process would take a gigabyte.
    """
    train, validation, test = (
        np.full((classes, 3, 9, 9, 3), classes, np.uint8) for classes in (4, 1, 2)
    )
    images = ColourImages(
        "photographs", train, validation, test, source="here", content="", real=False
    )
    split = split_images(images)
    for part, expected in ((split.train, train), (split.test, test)):
        assert np.array_equal(part.numpy(), expected) and part.data_ptr() == expected.ctypes.data
    assert split.white == 255 and split_characters(characters(4), seed=0).white == 1
    with pytest.raises(ValueError, match="read-only"):
        images.train[0] = 0
