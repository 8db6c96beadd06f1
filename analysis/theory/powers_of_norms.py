"""Even powers of norms as sums of even powers: |x|^2 is a polynomial, though |x| has a kink at 0.

torch differentiates |x| and then the power, and its second derivative of a norm at 0 is 0 or nan
(pytorch 92075). Here a norm, or an absolute value, keeps the sum under its root. A power that takes
the root away gives that sum, whose derivatives are right in every order. Nothing else is changed:
the norm itself, an odd power of it, and norms that reach a power through other functions are
torch's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Dims = int | list[int] | tuple[int, ...] | None
_KEPT = "_sum_of_powers"  # the attribute of a norm that holds its sum


@dataclass(frozen=True)
class _Sum:
    """The sum of x^p, valid as long as its p-th root is not altered in place."""

    value: Tensor
    p: int
    version: int


# The signatures are torch's.


def _norm(
    input: Tensor,
    p: Any = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    found = torch.norm(input, p, dim, keepdim, out, dtype)
    return _keeping(found, input, 2 if p in ("fro", None) else p, dim, keepdim)


def _method_norm(
    self: Tensor,
    p: Any = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return _norm(self, p, dim, keepdim, None, dtype)


def _linalg_norm(
    A: Tensor, ord: Any = None, dim: Dims = None, keepdim: bool = False, **options: Any
) -> Tensor:
    found = torch.linalg.norm(A, ord, dim, keepdim, **options)
    of_vectors = isinstance(dim, int) or len(dim if dim is not None else A.shape) == 1
    p = ord if of_vectors else None
    if ord in ("fro", None):
        p = 2
    return _keeping(found, A, p, dim, keepdim)


def _vector_norm(
    x: Tensor, ord: Any = 2, dim: Dims = None, keepdim: bool = False, **options: Any
) -> Tensor:
    return _keeping(torch.linalg.vector_norm(x, ord, dim, keepdim, **options), x, ord, dim, keepdim)


def _matrix_norm(
    A: Tensor,
    ord: Any = "fro",
    dim: tuple[int, int] = (-2, -1),
    keepdim: bool = False,
    **options: Any,
) -> Tensor:
    found = torch.linalg.matrix_norm(A, ord, dim, keepdim, **options)
    return _keeping(found, A, 2 if ord == "fro" else None, dim, keepdim)


def _dist(input: Tensor, other: Tensor, p: Any = 2) -> Tensor:
    return _keeping(torch.dist(input, other, p), input - other, p, None, False)


def _abs(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    found = torch.abs(input, out=out)
    return _with_sum(found, _pow(input, 2), 2) if input.is_floating_point() else found


def _detach_(input: Tensor) -> Tensor:
    """Detach a tensor in place, and with it the sum that it keeps, which has a graph of its own."""
    if hasattr(input, _KEPT):
        delattr(input, _KEPT)
    return input.detach_()


def _pow(input: Any, exponent: Any, *, out: Tensor | None = None) -> Tensor:
    power = _power(input, exponent)
    return torch.pow(input, exponent, out=out) if power is None or out is not None else power


def _square(input: Tensor, *, out: Tensor | None = None) -> Tensor:
    return _pow(input, 2, out=out)


def _mul(input: Any, other: Any, *, out: Tensor | None = None) -> Tensor:
    power = _power(input, 2) if input is other else None
    return torch.mul(input, other, out=out) if power is None or out is not None else power


POWERS_OF_NORMS: dict[Any, Callable[..., Any]] = {
    torch.norm: _norm,
    torch.Tensor.norm: _method_norm,
    torch.linalg.norm: _linalg_norm,
    torch.linalg.vector_norm: _vector_norm,
    torch.linalg.matrix_norm: _matrix_norm,
    **dict.fromkeys((torch.dist, torch.Tensor.dist), _dist),
    **dict.fromkeys(
        (torch.abs, torch.absolute, torch.Tensor.abs, torch.Tensor.absolute, torch.Tensor.__abs__),
        _abs,
    ),
    **dict.fromkeys((torch.detach_, torch.Tensor.detach_), _detach_),
    **dict.fromkeys((torch.pow, torch.Tensor.pow, torch.Tensor.__pow__), _pow),
    **dict.fromkeys((torch.square, torch.Tensor.square), _square),
    **dict.fromkeys(
        (torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.multiply, torch.Tensor.__mul__),
        _mul,
    ),
}


def _keeping(norm: Tensor, x: Tensor, p: Any, dim: Dims, keepdim: bool) -> Tensor:
    """Return the norm, which keeps the sum under its root where that sum is smooth.

    dim: the dimensions that the norm is taken over; None or empty for all.
    """
    if isinstance(p, int | float) and p > 0 and p % 2 == 0 and x.is_floating_point():
        dims = dim if isinstance(dim, int) or dim else list(range(x.ndim))
        powers = _pow(x.to(norm.dtype), int(p))
        return _with_sum(norm, powers.sum(dims, keepdim) if x.ndim else powers, int(p))
    return norm


def _with_sum(norm: Tensor, powers: Tensor, p: int) -> Tensor:
    """Return the norm, which from now on keeps the sum of p-th powers under its root."""
    setattr(norm, _KEPT, _Sum(powers, p, norm._version))
    return norm


def _power(norm: Any, exponent: Any) -> Tensor | None:
    """Return a power of a norm, computed from the sum that the norm keeps.

    Returns None for a number that is no such norm, and where a root is left.
    """
    kept = getattr(norm, _KEPT, None)
    if kept is None or kept.version != norm._version or not isinstance(exponent, int | float):
        return None
    times, left = divmod(exponent, kept.p)
    if left or times < 1:
        return None
    return kept.value.clone() if times == 1 else kept.value ** int(times)
