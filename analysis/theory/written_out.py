"""Functions whose higher derivatives torch itself gets wrong, written in elementary operations.

`torch.nn.functional.layer_norm`, `batch_norm` with batch statistics and `instance_norm` with those of the input hand
their saved mean and deviation to a fused backward as if they were constants. In torch 2.13, without any error, their
second derivatives are wrong in two of the four orders of nesting (forward mode first) and their third ones in all
eight (pytorch issues 175754, 186256, 196700). `mse_loss` fails in forward over reverse, and fused attention has no
forward mode at all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def right_derivatives() -> Iterator[None]:
    """Inside, these functions of torch.nn.functional, and the layers that call them, have right derivatives of any
    order, and attention is computed step by step. Values stay the same but for round-off; running statistics are read
    and never updated.

    Not covered: the same operations called as torch.layer_norm and the like, and what torch gets wrong elsewhere, such
    as forward mode twice through torch.linalg.solve.
    """
    with sdpa_kernel(SDPBackend.MATH), _WrittenOut():
        yield


class _WrittenOut(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _WRITTEN_OUT.get(func, func)(*args, **(kwargs or {}))


# The signatures are those of torch.nn.functional.


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _affine(_standardize(input, range(-len(normalized_shape), 0), eps), weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:  # the statistics are constants: torch's own is right
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _by_channel(input, [d for d in range(input.ndim) if d != 1], weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _by_channel(input, range(2, input.ndim), weight, bias, eps)


def _mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    if weight is None and input.shape == target.shape:
        weight = torch.ones_like(input)  # given weights, torch's own is made of elementary operations
    return F.mse_loss(input, target, size_average, reduce, reduction, weight)  # type: ignore[call-arg]


_WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.mse_loss: _mse_loss,
}


def _standardize(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, list(dims), correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _by_channel(x: Tensor, dims: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if prod(x.shape[d] for d in dims) == 1:
        raise ValueError(f"input: expected more than one value to take statistics of, found shape {tuple(x.shape)}")
    # (C,) to (C, 1, …), so that it goes along dimension 1.
    weight, bias = (None if v is None else v.reshape(-1, *[1] * (x.ndim - 2)) for v in (weight, bias))
    return _affine(_standardize(x, dims, eps), weight, bias)
