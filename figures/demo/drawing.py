"""A hand's strokes as an image like Omniglot's.

The pen is as wide and the paper as large as there, and the image is scaled to 28×28 in the same
way.

Omniglot was drawn online too: its strokes on a canvas were kept as 105×105 pixels of ink and
paper. The authors of Reptile resized these by nearest neighbour, and so does this module.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from reptile_core.datasets.omniglot import ORIGINAL, SIZE

PEN = 5  # pixels of 105: the published drawings' strokes are 4 to 6 wide
# The larger side of a drawing, as a share of the paper's width. 95 % of the published drawings are
# no larger.
LARGEST = 0.82

Point = tuple[float, float]  # x to the right and y down, both in [0, 1]
Strokes = Sequence[Sequence[Point]]  # each from where the pen came down to where it was lifted


def rasterize(strokes: Strokes) -> UInt8[np.ndarray, "28 28"]:
    """Return a drawing as ink (0) on paper (1), centred.

    It is made smaller where it was larger than Omniglot's. Raises ValueError without a point.
    """
    image = Image.new("1", (ORIGINAL, ORIGINAL), 1)
    pen = ImageDraw.Draw(image)
    for stroke in place(strokes):
        points = [(ORIGINAL * x, ORIGINAL * y) for x, y in stroke]
        pen.line(points, fill=0, width=PEN)
        for x, y in points:  # round ends and joints; a tap of the pen is a dot
            pen.ellipse((x - PEN / 2, y - PEN / 2, x + PEN / 2, y + PEN / 2), fill=0)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST), np.uint8)


def place(strokes: Strokes) -> Strokes:
    """Return the strokes in the middle of the paper, and no larger than LARGEST.

    The middle of what they cover is moved there. Raises ValueError without a point.
    """
    points = np.array(list(chain.from_iterable(strokes)), float)
    if not points.size:
        raise ValueError("strokes: expected at least one point, found none")
    low, high = points.min(0), points.max(0)
    scale = LARGEST / max(*(high - low), LARGEST)
    moved = (points - (low + high) / 2) * scale + 0.5
    ends = np.cumsum([len(stroke) for stroke in strokes])[:-1]
    placed = []
    for stroke in np.split(moved, ends):
        placed.append([(x, y) for x, y in stroke.tolist()])
    return placed
