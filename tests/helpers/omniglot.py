"""A made-up Omniglot: drawings of three characters in two zips, with their images and edition."""

import hashlib
import io

import numpy as np
from PIL import Image

from reptile_core.datasets import omniglot
from reptile_core.datasets.common import images_digest
from tests.helpers.data import zipped

Pngs = dict[str, bytes]


def nearest(drawing: np.ndarray) -> np.ndarray:
    """Return the oracle's image: the source pixels under the centres of 28×28 pixels."""
    centres = ((np.arange(28) + 0.5) * 105 / 28).astype(int)
    return drawing[centres][:, centres].astype(np.uint8)


def png(drawing: np.ndarray, mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(drawing).convert(mode).save(buffer, "png")
    return buffer.getvalue()


def content_of(pngs: Pngs) -> str:
    lines = [f"{hashlib.sha256(pngs[name]).hexdigest()}  {name}\n" for name in sorted(pngs)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _made_up() -> tuple[dict[str, Pngs], np.ndarray, omniglot.Edition]:
    """Return made-up drawings in two parts, their images and their edition.

    The parts hold 2 and 1 characters, and the order of numbers is not that of alphabets' names.
    """
    drawings = np.random.default_rng(0).random((3, 20, 105, 105)) < 0.9
    pngs: dict[str, Pngs] = {"images_background": {}, "images_evaluation": {}}
    background, evaluation = pngs
    for c, (part, alphabet) in enumerate(
        [(background, "Zulu"), (background, "Alpha"), (evaluation, "Beta")]
    ):
        for d in range(20):
            pngs[part][f"{part}/{alphabet}/character01/{c + 1:04}_{d + 1:02}.png"] = png(
                drawings[c, d]
            )
    images = np.array([[nearest(drawing) for drawing in character] for character in drawings])
    parts = tuple(
        omniglot.Part(name, n, content_of(pngs[name])) for name, n in zip(pngs, (2, 1), strict=True)
    )
    return pngs, images, omniglot.Edition(parts, images_digest(images))


PNGS, IMAGES, EDITION = _made_up()
BACKGROUND = PNGS["images_background"]
ZIPS = {name: zipped(pngs) for name, pngs in PNGS.items()}
FIRST = "images_background/Zulu/character01/0001_01.png"
