"""The user's own variants next to those of figure 3: `--variant "mine=0,0,1,1"`.

The numbers are the weights of g_1 … g_k.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from analysis.experiments.shared.curves import Scale
from reptile_core.meta_gradients import Variant, figure_3, own

# Most steps of a variant. A character has 20 drawings, and each of figure 3's k disjoint
# minibatches takes five per class.
LONGEST = 4
NAME = r"[A-Za-z][A-Za-z0-9 -]*"  # what a figure's legend and a folder's name can hold


def parse(text: str) -> Variant:
    """Return the variant that "NAME=w_1,…,w_k" names.

    Raises ArgumentTypeError where the text names no valid variant.
    """
    name, equals, numbers = text.partition("=")
    name = name.strip()
    try:
        weights = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        weights = ()
    if not equals or not re.fullmatch(NAME, name) or not weights or not all(map(isfinite, weights)):
        raise ArgumentTypeError(f"expected NAME=w_1,…,w_k, such as mine=0,0,1,1, found {text!r}")
    if len(weights) > LONGEST or not any(weights):
        raise ArgumentTypeError(
            f"expected 1 to {LONGEST} weights, not all of them 0, found {text!r}"
        )
    if name in {variant.name for variant in figure_3(LONGEST)}:
        raise ArgumentTypeError(f"expected a name that figure 3 does not have, found {name!r}")
    return own(name, weights)


def as_text(variant: Variant) -> str:
    """Return the text from which `parse` makes this variant, for the manifest."""
    return f"{variant.name}={','.join(f'{weight!r}' for weight in variant.weights)}"


def check(variants: Sequence[Variant]) -> None:
    """Raise ValueError where two variants have the same name."""
    names = [variant.name for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"--variant: expected names that differ, found {', '.join(names)}")


def shortened(scale: Scale, iterations: int | None) -> Scale:
    """Return the scale with its last look at this iteration, and the earlier looks before it.

    Where no look is left before it, one is added halfway. None leaves the scale as it is.
    """
    if iterations is None:
        return scale
    looks = [n for n in scale.looks if n < iterations]
    if not looks and iterations > 1:
        looks = [iterations // 2]
    return replace(scale, looks=(*looks, iterations))
