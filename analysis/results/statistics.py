"""One-sided tests of a mean over seeds, Holm's correction, and how many seeds a test needs.

All are Student's t on one value a seed. The spread over seeds counts as no smaller than `floor`,
the values' own error over tasks: by chance five values may be closer together than their noise
allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, prod, sqrt

import numpy as np
from jaxtyping import Float

Band = tuple[float, float]
Values = Float[np.ndarray, " seeds"]

CONFIDENCE = 0.95  # of intervals that are shown


@dataclass(frozen=True)
class Mean:
    """The mean of n values with their standard deviation, which is at least the floor."""

    n: int
    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Values, floor: float = 0.0) -> "Mean":
        """Return the mean of these values; it is NaN where one of them is not finite."""
        n = len(values)
        total = float(values.sum())
        mean = total / n if n else nan
        deviation = 0.0
        if n > 1 and isfinite(total):
            deviation = sqrt(float(np.square(values - mean).sum()) / (n - 1))
        return cls(n, mean if isfinite(total) else nan, max(deviation, floor))

    def above(self, end: float) -> float:
        """Return the one-sided p-value of an expectation at `end` or below.

        It is 1 for fewer than two values.
        """
        return self._p_value(self.mean - end)

    def below(self, end: float) -> float:
        """Return the one-sided p-value of an expectation at `end` or above."""
        return self._p_value(end - self.mean)

    def inside(self, band: Band) -> float:
        """Return the p-value of an expectation at an end of the band or beyond.

        It comes from two one-sided tests.
        """
        low, high = band
        below_it = self.above(low) if isfinite(low) else 0.0
        above_it = self.below(high) if isfinite(high) else 0.0
        return max(below_it, above_it)

    def outside(self, band: Band) -> float:
        """Return the p-value of an expectation in the band.

        Where the band has two ends, it is twice the smaller one of theirs (Bonferroni).
        """
        low, high = band
        if isfinite(low) and isfinite(high):
            return min(1.0, 2 * min(self.below(low), self.above(high)))
        if isfinite(low):
            return self.below(low)
        return self.above(high) if isfinite(high) else 1.0

    def depth(self, band: Band) -> float:
        """Return how far the mean is inside the band, in standard deviations over seeds.

        It is measured from the nearer end, and negative outside.
        """
        depth = min(self.mean - band[0], band[1] - self.mean)
        if self.deviation > 0 and isfinite(depth):
            return depth / self.deviation
        return inf if depth > 0 else -inf if depth < 0 else 0.0

    def interval(self) -> Band:
        """Return the ends of the 95 % Student-t interval; NaN for fewer than two values."""
        if self.n < 2:
            return nan, nan
        from scipy.special import stdtrit  # slow to import, and needed at the end alone

        half = float(stdtrit(self.n - 1, (1 + CONFIDENCE) / 2)) * self.deviation / sqrt(self.n)
        return self.mean - half, self.mean + half

    def _p_value(self, difference: float) -> float:
        if self.n < 2 or not isfinite(difference):
            return 1.0
        if self.deviation == 0.0:
            return 0.0 if difference > 0 else 1.0
        from scipy.special import stdtr

        return float(stdtr(self.n - 1, -difference / self.deviation * sqrt(self.n)))


def holm(p_values: Sequence[float], error: float) -> list[bool]:
    """Return which hypotheses Holm's step-down rejects.

    The family-wise error is at most `error`.
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > error / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def power(effect: float, error: float, seeds: int) -> float:
    """Return the probability that a one-sided t test sees an effect.

    effect: how far away the mean is, in standard deviations. error: of the test.
    """
    from scipy.special import nctdtr, stdtrit

    if not effect > 0:
        return 0.0
    shift = min(effect * sqrt(seeds), 37.0)  # beyond, the function overflows, and the power is 1
    return float(1 - nctdtr(seeds - 1, shift, stdtrit(seeds - 1, 1 - error)))


def power_of_all(
    inside: Sequence[float],
    fails: Sequence[float],
    seeds: int,
    *,
    support: float,
    refute: float,
    control: float,
) -> float:
    """Return the probability that `seeds` seeds decide a claim, with cases taken as independent.

    It is supported where all cases are inside and all controls fail, and refuted where the case
    that is furthest outside is.

    inside, fails: how far inside its band each case is, and how clearly each control fails, in
        standard deviations over seeds.
    support, refute, control: errors of their tests.
    """
    supported = prod(power(depth, support, seeds) for depth in inside)
    supported *= prod(power(depth, control, seeds) for depth in fails)
    refuted = max((power(-depth, refute / len(inside), seeds) for depth in inside), default=0.0)
    return max(supported, refuted)
