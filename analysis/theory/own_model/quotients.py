"""Derivatives by differences, which use no differentiation rule.

They come with the error that step, round-off and kinks explain.

Central differences at h and h / 2 err by a constant times h^2. Richardson's extrapolation takes
that out. Three times its difference from the one at h / 2 bounds what is left: by far where f is
smooth, barely where its second derivative jumps. Round-off adds some eps |f| / h^n, taken a
hundredfold, as for the remainders of a series. A kink within the step shows in the even part of f:
see `_jump`.

The bound is an estimate, and several kinks within a step can make it too small. So one step never
condemns a derivative: another step, a quarter or four times as long, must show the same error and
the same quotient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

HOLDS, STOPPED, UNDECIDED, KINK, DIFFERS = (
    "holds",
    "stopped gradient",
    "undecided",
    "kink",
    "differs",
)
VERDICTS = HOLDS, STOPPED, UNDECIDED, KINK, DIFFERS  # from good to bad
HALVINGS = range(10)  # of the first step
STRIDE = 3  # halvings between the steps that are tried in search of a sharp one
CLEAR = 2  # how far above what is explained an error must be to count


@dataclass(frozen=True)
class Agreement:
    """How far two channels are apart, what part of that is explained, and the verdict.

    error, explained: relative to the larger of the two.
    decides: whether the verdict counts for the quantity. A second rule is heard, but differences
        decide.
    here: for a kink, whether it is at the point itself, as far as the shortest step can tell.
    """

    channel: str
    error: float
    explained: float
    verdict: str
    decides: bool = True
    here: bool = False


@dataclass(frozen=True)
class Quotient:
    """The coefficients f'(0), f''(0) / 2, … by differences at one step.

    explained: how far step and round-off may move each of them.
    """

    values: list[Tensor]
    explained: list[float]
    # odd(h) - odd(h / 2), as h^2 at a smooth point and as h where the second derivative jumps.
    bends: Tensor


class Differences:
    """A function of t, with its coefficients at 0 by differences at steps taken when needed.

    unit: the length along which f may change by its own size.
    at_zero: f(0), if it is known; else it is taken when a second-order coefficient or a kink asks
        for it.

    The first step is about where truncation and round-off are alike: eps^(1/4) for first order,
    eps^(1/5) for second.
    """

    def __init__(
        self,
        f: Callable[[float], Tensor],
        unit: float,
        dtype: torch.dtype,
        order: int = 1,
        at_zero: Tensor | None = None,
    ):
        self.f, self.unit, self.order = f, unit, order
        self._eps = torch.finfo(dtype).eps
        self._values: dict[float, Tensor] = {} if at_zero is None else {0.0: at_zero}
        self._taken: dict[int, Quotient] = {}

    def at(self, i: int) -> Quotient:
        """Return the quotients at the first step, halved i times."""
        if i not in self._taken:
            self._taken[i] = self._at_step(self._step(i))
        return self._taken[i]

    @cached_property
    def sharpest(self) -> list[int]:
        """The step of each coefficient at which least error is explained.

        It is sought up to the first step that is sharp.
        """
        sharp = (30 if self.order == 1 else 300) * self._eps**0.5
        for i in HALVINGS[::STRIDE]:
            size = float(self.at(i).values[0].norm())
            if self.at(i).explained[0] <= sharp * max(size, 1e-2 * self.natural(1)):
                break
        taken = HALVINGS[: i + 1 : STRIDE]
        return [
            min(taken, key=lambda i: _finite(self.at(i).explained[n])) for n in range(self.order)
        ]

    def natural(self, n: int) -> float:
        """Return the size that a coefficient has where f changes by its own size along the unit.

        It is far above round-off.
        """
        return self._size(self._step(0)) / self.unit**n

    def value(self, n: int) -> Tensor:
        """Return the coefficient of order n at its sharpest step."""
        return self.at(self.sharpest[n - 1]).values[n - 1]

    def jump(self, n: int, i: int) -> float:
        """Return what kinks may put in place of a coefficient at a step.

        In second order that includes a jump of the second derivative, which bends the odd part by a
        h + b h^2. Two steps tell a h.
        """
        step = self._step(i)
        jump = _jump(self._even(step), self._even(step / 2), step, n)
        if n == 1 or i == HALVINGS[-1]:
            return jump
        bend = 4 * self.at(i + 1).bends - self.at(i).bends
        return jump + 2 * float(bend.norm()) / step

    def _step(self, i: int) -> float:
        return self.unit * self._eps ** (1 / (3 + self.order)) / 2**i

    def _at_step(self, step: float) -> Quotient:
        noise = 100 * self._eps * self._size(step)
        odd = [self._odd(h) for h in (step, step / 2)]
        even = [self._even(h) for h in (step, step / 2)] if self.order > 1 else []
        found, explained = [], []
        for n, (whole, half) in enumerate((odd, even)[: self.order], 1):
            found.append((4 * half - whole) / 3)
            explained.append(3 * float((found[-1] - half).norm()) + noise / (step / 2) ** n)
        return Quotient(found, explained, odd[0] - odd[1])

    def _odd(self, h: float) -> Tensor:
        return (self._value(h) - self._value(-h)) / (2 * h)

    def _even(self, h: float) -> Tensor:
        return (self._value(h) - 2 * self._value(0.0) + self._value(-h)) / (2 * h**2)

    def _size(self, step: float) -> float:
        return max(float(self._value(t).norm()) for t in (step, -step, step / 2, -step / 2))

    def _value(self, t: float) -> Tensor:
        if t not in self._values:
            self._values[t] = self.f(t)
        return self._values[t]


def compare(
    channel: str, found: Tensor, other: Differences, n: int = 1, *, size: float = 0.0
) -> Agreement:
    """Judge a derivative by its quotients.

    size: the size of what both are a part of, where that is more than their own.

    They agree if they differ by no more than is explained at the sharpest step, the floor included.
    Where what is explained is above a tenth of the derivative, and above a thousandth of the
    natural size, agreement decides nothing.
    """
    sharpest = other.sharpest[n - 1]
    size = max(size, float(found.norm()), float(other.value(n).norm()))
    at = _Apart(found, other, n, size)
    error, explained = at.error(sharpest), at.explained(sharpest)
    verdict, here, blunt = HOLDS, False, other.at(sharpest).explained[n - 1]
    if not bool(found.isfinite().all()):
        verdict = DIFFERS
    elif not isfinite(error) or not isfinite(explained):
        verdict = UNDECIDED
    elif error > explained:
        verdict, here, best = _on_all_steps(at, sharpest)
        error, explained = at.error(best), at.explained(best)
    elif size and blunt > 0.1 * size and blunt > 1e-3 * other.natural(n):
        least = max(0.1 * size, 1e-3 * other.natural(n))
        verdict = KINK if other.jump(n, sharpest) > 0.1 * size else UNDECIDED
        # A jump of f only grows as steps get shorter.
        here = verdict == KINK and other.jump(n, HALVINGS[-1]) > least
    if verdict == KINK and torch.finfo(found.dtype).bits < 32:
        verdict, here = UNDECIDED, False  # round-off alone looks like kinks there
    relative, explained_of_it = (error / size, explained / size) if size else (0.0, 0.0)
    return Agreement(channel, relative, explained_of_it, verdict, here=here)


@dataclass(frozen=True)
class _Apart:
    """A derivative and its quotients, step by step."""

    found: Tensor
    other: Differences
    n: int
    size: float

    def quotient(self, i: int) -> Tensor:
        return self.other.at(i).values[self.n - 1]

    def error(self, i: int) -> float:
        return float((self.found - self.quotient(i)).norm())

    def explained(self, i: int) -> float:
        return self.other.at(i).explained[self.n - 1] + self.size * _floor(self.found)

    def by_kinks(self, i: int) -> bool:
        return self.error(i) <= self.explained(i) + self.other.jump(self.n, i)


def _on_all_steps(at: _Apart, sharpest: int) -> tuple[str, bool, int]:
    """Return the verdict where the two disagree at the sharpest step.

    Also returns whether there is a kink here, and the step that shows the verdict.

    A step can show an error of which it explains less than half. The derivative holds if one of
    these agrees with it, or one that is about as sharp as the sharpest. It differs if all disagree
    with it, no kink explains that, and they agree with one another, two of them with no evaluation
    in common. What is in between stays undecided.
    """
    error, left = at.error(sharpest), at.explained(sharpest)
    for i in HALVINGS:
        if at.error(i) <= at.explained(i) <= max(error / CLEAR, CLEAR * left):
            return HOLDS, False, i
    showing = [i for i in HALVINGS if at.explained(i) <= error / CLEAR]
    apart = any(abs(i - sharpest) > 1 for i in showing) and sharpest in showing
    if any(at.by_kinks(i) for i in showing or [sharpest]):
        last = HALVINGS[-1]  # a jump of f spoils the shortest step most
        jumps = at.error(last) > at.explained(last) and at.by_kinks(last)
        return KINK, jumps or (apart and at.by_kinks(showing[-1])), sharpest
    same = all(
        float((at.quotient(i) - at.quotient(sharpest)).norm()) <= error / CLEAR for i in showing
    )
    return DIFFERS if apart and same else UNDECIDED, False, sharpest


def compare_rules(
    channel: str, found: Tensor, other: Tensor, *, decides: bool, size: float = 0.0
) -> Agreement:
    """Judge a derivative by the same one from other rules.

    They agree to twice the floor, which is far above their round-off.
    """
    size = max(size, float(found.norm()), float(other.norm()))
    explained = 2 * _floor(found)
    error = float((found - other).norm()) / size if size else 0.0
    return Agreement(channel, error, explained, HOLDS if error <= explained else DIFFERS, decides)


def worst(agreements: list[Agreement]) -> Agreement:
    """Return the agreement with the worst verdict.

    Of several such, it is the one whose error is the largest multiple of what is explained.
    """

    def badness(a: Agreement) -> tuple[int, float]:
        return VERDICTS.index(a.verdict), a.error / a.explained if a.explained else 0.0

    return max(agreements, key=badness)


def _floor(like: Tensor) -> float:
    """Return the relative difference that counts as none: the root of eps, or 1e-7 in float64.

    Some kernels of torch have constants in float32: hardsigmoid's backward pass is off by 2e-8.
    """
    return max(torch.finfo(like.dtype).eps ** 0.5, 1e-7)


def _jump(whole: Tensor, half: Tensor, step: float, n: int) -> float:
    """Return what kinks within the step add to a quotient.

    whole, half: even(h) = (f(h) - 2 f(0) + f(-h)) / 2 h^2 at h and h / 2.

    2 h even(h) is the difference of the slopes on both sides. With h it falls by half where f is
    smooth. So twice the half less the whole is what does not fall: a jump of the slope, or three
    times a jump of f over h. In second order a kink makes even(h) grow. The extrapolation is off by
    7/3 of this growth, or by 5/3 for a jump of f.
    """
    return 2 * step * float((half - whole).norm()) if n == 1 else 2.5 * float((half - whole).norm())


def _finite(number: float) -> float:
    return number if isfinite(number) else float("inf")
