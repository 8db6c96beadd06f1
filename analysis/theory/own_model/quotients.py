"""Derivatives by differences, which know no rule, with what their step and round-off explain of an error.

Central differences at h and h / 2 err by a constant times h^2. Richardson's extrapolation takes that out, and twice its
difference from the one at h / 2 bounds what is left where the function is smooth at this step. Round-off adds some
eps |f| / h^n, taken a hundredfold, as for the remainders of a series.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

HOLDS, STOPPED, UNDECIDED, KINK, DIFFERS = "holds", "stopped gradient", "undecided", "kink", "differs"
VERDICTS = HOLDS, STOPPED, UNDECIDED, KINK, DIFFERS  # from good to bad


@dataclass(frozen=True)
class Quotient:
    """A Taylor coefficient by differences.

    explained: how far step and round-off may move it.
    natural: its size where f changes by its own size along `unit`. Far below, it is no more than round-off.
    jump: what a kink at 0 itself puts in the coefficient's place, if there is one; else 0.
    """

    value: Tensor
    explained: float
    natural: float
    jump: float


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


def differences(f: Callable[[float], Tensor], at_zero: Tensor, unit: float, order: int = 1) -> list[Quotient]:
    """The coefficients f'(0), f''(0) / 2 up to `order`, each at the sharpest of some steps.

    unit: the length along which f may change by its own size.

    The step begins near where truncation and round-off are alike, eps^(1/4) for first order and eps^(1/5) for second,
    and falls to where the first coefficient is sharp, or to the last.
    """
    eps = torch.finfo(at_zero.dtype).eps
    sharp = (30 if order == 1 else 300) * eps**0.5
    tried = []
    for step in (unit * eps ** (1 / (3 + order)) / shrinking for shrinking in SHRINKING):
        tried.append(_at_step(f, at_zero, step, unit, order))
        if tried[-1][0].explained <= sharp * max(float(tried[-1][0].value.norm()), 1e-2 * tried[-1][0].natural):
            break
    return [min((qs[n] for qs in tried), key=_bluntness) for n in range(order)]


def compare(channel: str, found: Tensor, other: Quotient, *, size: float = 0.0) -> Agreement:
    """Judges a derivative by its quotient. size: of what both are a part of, where that is more than they are.

    They agree to the floor or to what is explained. Where the latter is a tenth of the derivative, and more than
    a thousandth of the natural size, agreement decides nothing.
    """
    size = max(size, float(found.norm()), float(other.value.norm()))
    error = float((found - other.value).norm())
    explained = other.explained + size * _floor(found)
    verdict = HOLDS
    if not isfinite(error) or not isfinite(explained):
        verdict = UNDECIDED if bool(found.isfinite().all()) else DIFFERS
    elif error > explained:
        verdict = KINK if error <= 2 * other.jump + explained else DIFFERS
    elif size and other.explained > 0.1 * size and other.explained > 1e-3 * other.natural:
        verdict = KINK if other.jump > 0.1 * size else UNDECIDED
    return Agreement(channel, error / size if size else 0.0, explained / size if size else 0.0, verdict)


def compare_rules(channel: str, found: Tensor, other: Tensor, *, decides: bool) -> Agreement:
    """Judges a derivative by the same from other rules, to twice the floor: far above their round-off."""
    size = max(float(found.norm()), float(other.norm()))
    explained = 2 * _floor(found)
    error = float((found - other).norm()) / size if size else 0.0
    return Agreement(channel, error, explained, HOLDS if error <= explained else DIFFERS, decides)


def worst(agreements: list[Agreement]) -> Agreement:
    """The one with the worst verdict; of several such, that which leaves most of what is explained behind."""
    return max(agreements, key=lambda a: (VERDICTS.index(a.verdict), a.error / a.explained if a.explained else 0.0))


SHRINKING = 1, 8, 64, 512


def _floor(like: Tensor) -> float:
    """The relative difference that counts as none: the root of eps, and in float64 1e-7, as there are kernels of torch
    with constants in float32 (that of hardsigmoid's backward pass is off by 2e-8)."""
    return max(torch.finfo(like.dtype).eps ** 0.5, 1e-7)


def _at_step(f: Callable[[float], Tensor], at_zero: Tensor, step: float, unit: float, order: int) -> list[Quotient]:
    values = {t: f(t) for t in (step, -step, step / 2, -step / 2)}
    size = max(float(value.norm()) for value in (at_zero, *values.values()))
    noise = 100 * torch.finfo(at_zero.dtype).eps * size
    odd = {h: (values[h] - values[-h]) / (2 * h) for h in (step, step / 2)}
    even = {h: (values[h] - 2 * at_zero + values[-h]) / (2 * h**2) for h in (step, step / 2)}
    found = []
    for n, quotient in enumerate((odd, even)[:order], 1):
        extrapolated = (4 * quotient[step / 2] - quotient[step]) / 3
        round_off = noise / (step / 2) ** n
        left = 2 * float((extrapolated - quotient[step / 2]).norm()) + round_off
        jump = _jump(even, step, n)
        found.append(Quotient(extrapolated, left, size / unit**n, jump if jump > round_off else 0.0))
    return found


def _jump(even: dict[float, Tensor], step: float, n: int) -> float:
    """Twice h even(h) is the difference of the slopes on both sides, of which even(h) makes the second coefficient.

    With h, the former halves and the latter stays where a function is smooth; each doubles against that at a kink.
    """
    whole, half = (float(even[h].norm()) * (2 * h if n == 1 else 1) for h in (step, step / 2))
    return half if half > (0.75 if n == 1 else 1.5) * whole else 0.0


def _bluntness(quotient: Quotient) -> float:
    return quotient.explained if isfinite(quotient.explained) else float("inf")
