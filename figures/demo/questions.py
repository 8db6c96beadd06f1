"""What the page asks, read from JSON that may hold anything.

A question is three examples, a query and k. What is wrong in it is a ValueError of one line.
"""

import json
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import UInt8

from figures.demo.adaptation import N_WAY
from figures.demo.drawing import Strokes, rasterize
from reptile_core.datasets.omniglot import SIZE

MAX_STEPS = 32  # k; far more than it takes, and still answered at once
# Of a drawing: over a minute of drawing with a mouse that reports 60 times a second.
MAX_POINTS = 5_000

Image = UInt8[np.ndarray, "28 28"]


@dataclass(frozen=True)
class Question:
    """Four images and the number of inner steps.

    images: the examples of classes 0, 1 and 2, then the query, of ink (0) and paper (1). steps: k.
    """

    images: UInt8[np.ndarray, "4 28 28"]
    steps: int


def read(body: bytes) -> Question:
    """Read a question {"drawings": [three examples, query], "steps": k}.

    A drawing is given as strokes (lists of [x, y] in [0, 1]) or as an image's text.
    Raises ValueError where the body is anything else.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: expected JSON, found something else ({error})") from error
    if not isinstance(asked, dict) or asked.keys() != {"drawings", "steps"}:
        raise ValueError(f"body: expected an object of drawings and steps, found {_shown(asked)}")
    drawings, steps = asked["drawings"], asked["steps"]
    if not isinstance(drawings, list) or len(drawings) != N_WAY + 1:
        raise ValueError(
            f"drawings: expected a list of {N_WAY} examples and a query, found {_shown(drawings)}"
        )
    if type(steps) is not int or not 0 <= steps <= MAX_STEPS:
        raise ValueError(
            f"steps: expected a whole number from 0 to {MAX_STEPS}, found {_shown(steps)}"
        )
    images = [_image(f"drawings[{i}]", drawing) for i, drawing in enumerate(drawings)]
    return Question(np.stack(images), steps)


def text(image: Image) -> str:
    """Return an image as text, row after row, with 1 for ink and 0 for paper."""
    return "".join(np.where(image.ravel() == 0, "1", "0"))


def _image(name: str, drawing: Any) -> Image:
    if isinstance(drawing, str):
        if len(drawing) != SIZE**2 or set(drawing) - {"0", "1"}:
            raise ValueError(
                f"{name}: expected {SIZE}×{SIZE} characters 0 and 1, found {_shown(drawing)}"
            )
        return np.array([bit == "0" for bit in drawing], np.uint8).reshape(SIZE, SIZE)
    return rasterize(_strokes(name, drawing))


def _strokes(name: str, drawing: Any) -> Strokes:
    if (
        not isinstance(drawing, list)
        or not drawing
        or not all(isinstance(s, list) and s for s in drawing)
    ):
        raise ValueError(f"{name}: expected a list of strokes, none empty, found {_shown(drawing)}")
    points = list(chain.from_iterable(drawing))
    if len(points) > MAX_POINTS:
        raise ValueError(f"{name}: expected at most {MAX_POINTS} points, found {len(points)}")
    for point in points:
        if not (isinstance(point, list) and len(point) == 2 and all(map(_in_unit_interval, point))):
            raise ValueError(f"{name}: expected points [x, y] in [0, 1], found {_shown(point)}")
    return drawing


def _in_unit_interval(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # which NaN is not


def _shown(value: Any) -> str:
    """Return what was found, short enough for one line."""
    found = repr(value)
    return found if len(found) <= 60 else f"{found[:60]}…"
