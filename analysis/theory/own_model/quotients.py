"""Derivatives by differences, which know no rule, with what step, round-off and kinks explain of an error.

Central differences at h and h / 2 err by a constant times h^2. Richardson's extrapolation takes that out, and thrice
its difference from the one at h / 2 bounds what is left: by far where f is smooth, just where its second derivative
jumps. Round-off adds some eps |f| / h^n, taken a hundredfold, as for the remainders of a series. A kink within the step
shows in what the even part of f does: see `_jump`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

HOLDS, STOPPED, UNDECIDED, KINK, DIFFERS = "holds", "stopped gradient", "undecided", "kink", "differs"
VERDICTS = HOLDS, STOPPED, UNDECIDED, KINK, DIFFERS  # from good to bad
SHRINKING = 1, 8, 64, 512  # of the step


@dataclass(frozen=True)
class Agreement:
    """How far two channels are apart, relative to the larger of them, what of that is explained, and the verdict.

    decides: whether the verdict is that of the quantity. A second rule is heard, but differences decide.
    """

    channel: str
    error: float
    explained: float
    verdict: str
    decides: bool = True


@dataclass(frozen=True)
class Quotient:
    """The coefficients f'(0), f''(0) / 2, … by differences at one step, and of each how far step and round-off may move
    it (explained), and what a kink within the step may put in its place (jumps)."""

    values: list[Tensor]
    explained: list[float]
    jumps: list[float]
    bends: Tensor  # odd(h) - odd(h / 2), as h^2 at a smooth point and as h where the second derivative jumps


class Differences:
    """A function of t with its coefficients at 0 by differences, at steps that are taken as they are needed.

    unit: the length along which f may change by its own size.

    The first step is about where truncation and round-off are alike, eps^(1/4) for first order, eps^(1/5) for second.
    """

    def __init__(self, f: Callable[[float], Tensor], at_zero: Tensor, unit: float, order: int = 1):
        self.f, self.at_zero, self.unit, self.order = f, at_zero, unit, order
        self._eps = torch.finfo(at_zero.dtype).eps
        self._taken: list[Quotient] = []

    def at(self, i: int) -> Quotient:
        """The quotients at the first step over SHRINKING[i]."""
        while len(self._taken) <= i:
            first = self.unit * self._eps ** (1 / (3 + self.order))
            self._taken.append(self._at_step(first / SHRINKING[len(self._taken)]))
        return self._taken[i]

    @cached_property
    def sharpest(self) -> list[int]:
        """The step of each coefficient at which least is explained, among those up to the first that is sharp."""
        sharp = (30 if self.order == 1 else 300) * self._eps**0.5
        for i in range(len(SHRINKING)):
            size = float(self.at(i).values[0].norm())
            if self.at(i).explained[0] <= sharp * max(size, 1e-2 * self.natural(1)):
                break
        taken = range(i + 1)
        return [min(taken, key=lambda i: _finite(self.at(i).explained[n])) for n in range(self.order)]

    def natural(self, n: int) -> float:
        """The size of a coefficient where f changes by its own size along the unit: round-off is far below."""
        return float(self.at_zero.norm()) / self.unit**n

    def value(self, n: int) -> Tensor:
        """The coefficient of order n, at its sharpest."""
        return self.at(self.sharpest[n - 1]).values[n - 1]

    def jump(self, n: int, i: int) -> float:
        """What kinks may put in place of a coefficient at a step.

        In second order that is also a jump of the second derivative, which bends the odd part: by a h + b h^2, of which
        two steps tell a h.
        """
        jump, last = self.at(i).jumps[n - 1], i + 1 == len(SHRINKING)
        if n == 1 or last:
            return jump
        ratio = SHRINKING[i + 1] / SHRINKING[i]
        step = self.unit * self._eps ** (1 / (3 + self.order)) / SHRINKING[i]
        bend = (ratio**2 * self.at(i + 1).bends - self.at(i).bends) / (ratio - 1)
        return jump + 2 * float(bend.norm()) / step

    def _at_step(self, step: float) -> Quotient:
        values = {t: self.f(t) for t in (step, -step, step / 2, -step / 2)}
        noise = 100 * self._eps * max(float(value.norm()) for value in (self.at_zero, *values.values()))
        odd = [(values[h] - values[-h]) / (2 * h) for h in (step, step / 2)]
        even = [(values[h] - 2 * self.at_zero + values[-h]) / (2 * h**2) for h in (step, step / 2)]
        found, explained, jumps = [], [], []
        for n, (whole, half) in enumerate((odd, even)[: self.order], 1):
            found.append((4 * half - whole) / 3)
            explained.append(3 * float((found[-1] - half).norm()) + noise / (step / 2) ** n)
            jumps.append(_jump(even[0], even[1], step, n))
        return Quotient(found, explained, jumps, odd[0] - odd[1])


def compare(channel: str, found: Tensor, other: Differences, n: int = 1, *, size: float = 0.0) -> Agreement:
    """Judges a derivative by its quotients. size: of what both are a part of, where that is more than they are.

    They agree to the floor or to what is explained at the sharpest step. Where that is a tenth of the derivative, and
    more than a thousandth of the natural size, agreement decides nothing. They differ if no step that could show it,
    as half of the error is more than it explains, speaks for a kink instead.
    """
    sharpest = other.sharpest[n - 1]
    size = max(size, float(found.norm()), float(other.value(n).norm()))

    def apart(i: int) -> tuple[float, float]:
        at = other.at(i)
        return float((found - at.values[n - 1]).norm()), at.explained[n - 1] + size * _floor(found)

    error, explained = apart(sharpest)
    verdict, blunt = HOLDS, other.at(sharpest).explained[n - 1]
    if not bool(found.isfinite().all()):
        verdict = DIFFERS
    elif not isfinite(error) or not isfinite(explained):
        verdict = UNDECIDED
    elif error > explained:
        verdict, error, explained = _on_all_steps(other, n, apart, error, explained)
    elif size and blunt > 0.1 * size and blunt > 1e-3 * other.natural(n):
        verdict = KINK if other.jump(n, sharpest) > 0.1 * size else UNDECIDED
    return Agreement(channel, error / size if size else 0.0, explained / size if size else 0.0, verdict)


def _on_all_steps(
    other: Differences, n: int, apart: Callable[[int], tuple[float, float]], error: float, explained: float
) -> tuple[str, float, float]:
    """The verdict, error and what is explained, where at the sharpest step they disagree."""
    verdict = DIFFERS
    for i in range(len(SHRINKING)):
        here, left = apart(i)
        if not left <= error / 2 and i != other.sharpest[n - 1]:  # too blunt to show it
            continue
        if here <= left:
            return HOLDS, here, left
        if here <= left + other.jump(n, i):
            verdict = KINK
    return verdict, error, explained


def compare_rules(channel: str, found: Tensor, other: Tensor, *, decides: bool) -> Agreement:
    """Judges a derivative by the same from other rules, to twice the floor: far above their round-off."""
    size = max(float(found.norm()), float(other.norm()))
    explained = 2 * _floor(found)
    error = float((found - other).norm()) / size if size else 0.0
    return Agreement(channel, error, explained, HOLDS if error <= explained else DIFFERS, decides)


def worst(agreements: list[Agreement]) -> Agreement:
    """The one with the worst verdict; of several such, that which leaves most of what is explained behind."""
    return max(agreements, key=lambda a: (VERDICTS.index(a.verdict), a.error / a.explained if a.explained else 0.0))


def _floor(like: Tensor) -> float:
    """The relative difference that counts as none: the root of eps, and in float64 1e-7, as there are kernels of torch
    with constants in float32 (that of hardsigmoid's backward pass is off by 2e-8)."""
    return max(torch.finfo(like.dtype).eps ** 0.5, 1e-7)


def _jump(whole: Tensor, half: Tensor, step: float, n: int) -> float:
    """What kinks within the step add to a quotient, from even(h) = (f(h) - 2 f(0) + f(-h)) / 2 h^2 at h and h / 2.

    2 h even(h) is the difference of the slopes on both sides. With h it falls by half where f is smooth, so that twice
    the half less the whole is what does not fall: a jump of the slope, or thrice a jump of f over h. In second order a
    kink makes even(h) grow, by which the extrapolation is off by 7/3 of its growth, or for a jump of f by 5/3.
    """
    return 2 * step * float((half - whole).norm()) if n == 1 else 2.5 * float((half - whole).norm())


def _finite(number: float) -> float:
    return number if isfinite(number) else float("inf")
