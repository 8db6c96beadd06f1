"""Which classes train and which test: characters by seed, with rotations as new classes; photographs as published."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from reptile_core import philox
from reptile_core.datasets.common import ColourImages

TRAIN_SHARE = 1200 / 1623  # the authors' split of Omniglot; other sets of characters are cut in the same proportion
ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


@dataclass(frozen=True)
class Split:
    """Disjoint sets of classes; of characters, `train` holds every one four times, turned by right angles."""

    train: UInt8[Tensor, "train_classes drawings *shape"]
    test: UInt8[Tensor, "classes drawings *shape"]
    white: int = 1  # the byte that goes into a network as 1.0


def split_characters(images: UInt8[np.ndarray, "characters drawings height width"], *, seed: int) -> Split:
    """Split by a permutation that is a pure function of the seed. Class r n_train + c is character c turned r times."""
    characters = images.shape[0]
    keys = philox.bits(seed, philox.Purpose.SPLIT, characters)
    order = philox.permutations(keys).numpy()
    n_train = round(characters * TRAIN_SHARE)
    train = images[order[:n_train]]
    turned = np.concatenate([np.rot90(train, turns, axes=(2, 3)) for turns in range(ROTATIONS)])
    return Split(torch.from_numpy(turned), torch.from_numpy(images[order[n_train:]]))


def split_images(images: ColourImages) -> Split:
    """The published division: the classes of validation are in neither part. Not a copy, and not to be written to."""
    with warnings.catch_warnings():
        # torch has no tensors that are read-only, and a copy for every process would take a gigabyte.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Split(torch.from_numpy(images.train), torch.from_numpy(images.test), white=255)
