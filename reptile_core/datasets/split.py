"""The split of classes into those for training and those for testing.

Characters are split by seed or as the authors did, with rotations as new classes. Photographs are
split as published.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from reptile_core import philox
from reptile_core.datasets.common import ColourImages

# The authors' split of Omniglot; other sets of characters are cut in the same proportion.
TRAIN_SHARE = 1200 / 1623
ROTATIONS = 4  # by 0, 90, 180 and 270 degrees

SplitKind = Literal["seed", "authors"]
SPLIT_KINDS: tuple[SplitKind, ...] = ("seed", "authors")
# Omniglot's alphabets in the order of their names, as the authors' code reads them. Each has the
# published number of its first character, and how many characters it has.
ALPHABETS = (
    (709, 20), (965, 20), (296, 29), (1, 26), (27, 41), (68, 40), (985, 26), (1011, 26), (1037, 26),
    (1063, 26), (108, 24), (132, 46), (178, 14), (192, 26), (770, 34), (218, 33), (251, 22),
    (325, 26), (1089, 26), (1115, 45), (351, 43), (394, 24), (418, 48), (1160, 45), (466, 22),
    (540, 16), (488, 52), (596, 47), (1205, 41), (1246, 26), (643, 40), (683, 26), (556, 40),
    (1272, 47), (1319, 40), (729, 41), (1359, 30), (804, 33), (837, 14), (1389, 45), (1434, 46),
    (851, 42), (1503, 28), (273, 23), (1480, 23), (893, 17), (1531, 25), (1556, 42), (910, 55),
    (1598, 26),
)  # fmt: skip
AUTHORS_SEED = 0  # their code's default, which none of their published commands changes


@dataclass(frozen=True)
class Split:
    """Disjoint sets of classes.

    Of characters, `train` holds every one four times, turned by right angles.
    """

    train: UInt8[Tensor, "train_classes drawings *shape"]
    test: UInt8[Tensor, "classes drawings *shape"]
    white: int = 1  # the byte that goes into a network as 1.0


def split_characters(
    images: UInt8[np.ndarray, "characters drawings height width"],
    *,
    seed: int,
    kind: SplitKind = "seed",
) -> Split:
    """Split characters by a permutation, and add rotations to those of training.

    kind: "seed" takes a permutation that is a pure function of the seed, "authors" the one of the
        authors' code, whatever the seed.

    Class r n_train + c is character c turned r times. Raises ValueError where "authors" is asked of
    other characters than Omniglot's 1,623, in order of their published numbers.
    """
    characters = images.shape[0]
    order = authors_order(characters) if kind == "authors" else _order_by_seed(characters, seed)
    n_train = round(characters * TRAIN_SHARE)
    train = images[order[:n_train]]
    turned = np.concatenate([np.rot90(train, turns, axes=(2, 3)) for turns in range(ROTATIONS)])
    return Split(torch.from_numpy(turned), torch.from_numpy(images[order[n_train:]]))


def authors_order(characters: int) -> Sequence[int]:
    """Return Omniglot's characters, counted from 0, in the order of the authors' code.

    That is by alphabet, then shuffled by Python's own generator. Their code trains on the first
    1,200 and tests on the others.
    """
    order: list[int] = []
    for first, count in ALPHABETS:
        order += range(first - 1, first - 1 + count)
    if characters != len(order):
        raise ValueError(
            f"split: expected Omniglot's {len(order)} characters for the authors', found "
            f"{characters}"
        )
    random.Random(AUTHORS_SEED).shuffle(order)
    return order


def _order_by_seed(characters: int, seed: int) -> Sequence[int]:
    return philox.permutations(philox.bits(seed, philox.Purpose.SPLIT, characters)).tolist()


def split_images(images: ColourImages) -> Split:
    """Return the published division; the classes of validation are in neither part.

    The tensors are not copies, and must not be written to.
    """
    with warnings.catch_warnings():
        # torch has no tensors that are read-only, and a copy for every process would take a
        # gigabyte.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Split(torch.from_numpy(images.train), torch.from_numpy(images.test), white=255)
