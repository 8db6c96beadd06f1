"""Which characters train (1,200 of Omniglot's 1,623, by seed, with rotations as new classes) and which test."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from reptile_core import philox

TRAIN_SHARE = 1200 / 1623  # the authors' split of Omniglot; other sets of characters are cut in the same proportion
ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


@dataclass(frozen=True)
class Split:
    """Disjoint sets of characters; `train` holds every one of its characters four times, turned by right angles."""

    train: UInt8[Tensor, "rotated_classes drawings height width"]
    test: UInt8[Tensor, "classes drawings height width"]


def split_characters(images: UInt8[np.ndarray, "characters drawings height width"], *, seed: int) -> Split:
    """Split by a permutation that is a pure function of the seed. Class r n_train + c is character c turned r times."""
    characters = images.shape[0]
    keys = philox.bits(seed, philox.Purpose.SPLIT, characters)
    order = philox.permutations(keys).numpy()
    n_train = round(characters * TRAIN_SHARE)
    train = images[order[:n_train]]
    turned = np.concatenate([np.rot90(train, turns, axes=(2, 3)) for turns in range(ROTATIONS)])
    return Split(torch.from_numpy(turned), torch.from_numpy(images[order[n_train:]]))
