"""Functions whose higher derivatives torch itself gets wrong, written in elementary operations.

`torch.nn.functional.layer_norm`, `batch_norm` with batch statistics and `instance_norm` with input
statistics hand their saved mean and deviation to a fused backward as if they were constants. In
torch 2.13, without any error, their second derivatives are wrong in two of the four orders of
nesting (forward mode first) and their third ones in all eight (pytorch issues 175754, 186256,
196700). `mse_loss` fails in forward over reverse mode. Fused attention, the gated linear unit, the
norm of a parametrized weight and the recurrent layers of fast libraries have no forward mode at
all. The norms are replaced under every name by which Python reaches them: torch.nn.functional,
torch and torch.ops.aten. Even powers of the norms of linear algebra are in `powers_of_norms`.

A stopped gradient has one meaning here. In a backward pass, of any order, the stopped value is a
constant. From one point to another it moves with what it is computed from, also along a direction
in forward mode. `torch.no_grad` has this meaning in torch already. `detach` and `.data` mean other
things in other modes: here they are given this meaning.
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

from analysis.theory.powers_of_norms import POWERS_OF_NORMS


@contextmanager
def right_derivatives() -> Iterator[None]:
    """Give these functions, and the layers that call them, right derivatives of any order.

    Attention is computed step by step. Values stay the same but for round-off; running statistics
    are read and never updated.

    Not covered: what torch gets wrong elsewhere, such as forward mode twice through
    torch.linalg.solve.
    """
    with sdpa_kernel(SDPBackend.MATH), _Fixes():
        yield


class _Fixes(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _FIXED.get(func, func)(*args, **(kwargs or {}))


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
        # With weights, torch's own consists of elementary operations.
        weight = torch.ones_like(input)
    return F.mse_loss(input, target, size_average, reduce, reduction, weight)  # type: ignore[call-arg]


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """Return the normalized input, copied into `out`, an argument that torch.func does not know."""
    normalized = F.normalize(input, p, dim, eps)
    return normalized if out is None else out.copy_(normalized)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Return the embedded words.

    Padding is a stopped gradient. Gradients are dense, as a vector of all parameters is.
    """
    _refuse_for_embeddings(max_norm, scale_grad_by_freq)
    words = F.embedding(input, weight)
    if padding_idx is None:
        return words
    padding = (input == padding_idx % len(weight)).unsqueeze(-1)
    return torch.where(padding, stopped(words), words)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return the embedded bags, with dense gradients.

    Padding is in no bag, so that nothing has to be stopped.
    """
    _refuse_for_embeddings(max_norm, scale_grad_by_freq)
    rest = per_sample_weights, include_last_offset, padding_idx
    return F.embedding_bag(input, weight, offsets, None, 2, False, mode, False, *rest)


def _refuse_for_embeddings(max_norm: float | None, scale_grad_by_freq: bool) -> None:
    if max_norm is not None:
        raise ValueError(
            "embedding: expected max_norm None, as it alters the weight in place, found a number"
        )
    if scale_grad_by_freq:
        raise ValueError(
            "embedding: expected scale_grad_by_freq False, as the gradient is then none, found True"
        )


# The signatures are those of torch and torch.ops.aten.


def _torch_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _layer_norm(input, normalized_shape, weight, bias, eps)


def _native_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(
        input, list(range(-len(normalized_shape), 0)), correction=0, keepdim=True
    )
    return _layer_norm(input, normalized_shape, weight, bias, eps), mean, (variance + eps).rsqrt()


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if not training:
        return torch.native_batch_norm(
            input, weight, bias, running_mean, running_var, False, momentum, eps
        )
    variance, mean = torch.var_mean(input, [d for d in range(input.ndim) if d != 1], correction=0)
    normalized = _batch_norm(input, None, None, weight, bias, True, momentum, eps)
    return normalized, mean, (variance + eps).rsqrt()


def _legit_batch_norm_without_statistics(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _native_batch_norm(input, weight, bias, None, None, training, momentum, eps)


def _legit_batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any, **named: Any
) -> Any:
    """Call the one of the two functions of this name that the arguments are for.

    The next argument is either the running statistics or whether to train.
    """
    without = isinstance(rest[0], bool) if rest else "running_mean" not in named
    function = _legit_batch_norm_without_statistics if without else _native_batch_norm
    return function(input, weight, bias, *rest, **named)


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Tensor:
    return _instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [d for d in range(v.ndim) if d != dim % v.ndim] if dim != -1 else list(range(v.ndim))
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


def _weight_norm_interface(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    others = [d for d in range(v.ndim) if d != dim % v.ndim]
    return _weight_norm(v, g, dim), v.square().sum(others, keepdim=True).sqrt()


def stopped(x: Tensor) -> Tensor:
    """Return x as a constant of every backward pass around it.

    It is a copy, as a view would keep its part in these passes. What is a constant already is not
    copied, as it may be written to through the result.
    """
    if not _has_part(x):
        return x.view_as(x) if x.layout == torch.strided else x.detach()
    with torch.no_grad():
        return x.clone()


def _has_part(x: Tensor) -> bool:
    """Return whether some backward pass goes through x.

    Each transform of torch.func wraps x once.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if x.requires_grad:
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def _without_fast_libraries(recurrent: Callable[..., Any]) -> Callable[..., Any]:
    """Return the recurrent layer, computed in torch's own operations.

    oneDNN and cuDNN have first derivatives only.
    """

    def slowly(*args: Any, **kwargs: Any) -> Any:
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            return recurrent(*args, **kwargs)

    return slowly


def _names(operation: Any) -> list[Any]:
    """Return all names of one operation in torch.ops.aten: itself and its overloads."""
    overloads = [getattr(operation, name) for name in operation.overloads()]
    return [operation, operation._op, *overloads]


_ATEN = torch.ops.aten
_FIXED: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.mse_loss: _mse_loss,
    F.glu: _glu,
    F.normalize: _normalize,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    torch.layer_norm: _torch_layer_norm,
    torch.native_layer_norm: _native_layer_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.native_batch_norm: _native_batch_norm,
    torch._native_batch_norm_legit: _legit_batch_norm,
    torch.instance_norm: _torch_instance_norm,
    torch._weight_norm: _weight_norm,
    torch._weight_norm_interface: _weight_norm_interface,
    torch.detach: stopped,
    torch.Tensor.detach: stopped,
    torch.Tensor.data.__get__: stopped,  # type: ignore[attr-defined]
    **{name: _torch_layer_norm for name in _names(_ATEN.layer_norm)},
    **{name: _native_layer_norm for name in _names(_ATEN.native_layer_norm)},
    **{name: _torch_batch_norm for name in _names(_ATEN.batch_norm)},
    **{name: _native_batch_norm for name in _names(_ATEN.native_batch_norm)},
    **{name: _legit_batch_norm for name in _names(_ATEN._native_batch_norm_legit)},
    **{name: _torch_instance_norm for name in _names(_ATEN.instance_norm)},
    **{name: stopped for name in _names(_ATEN.detach)},
    **POWERS_OF_NORMS,
    **{
        f: _without_fast_libraries(f)
        for f in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
    },
}


def _standardize(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, list(dims), correction=0, keepdim=True)
    return (x - mean) * (variance + eps).rsqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _by_channel(
    x: Tensor, dims: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    if prod(x.shape[d] for d in dims) == 1:
        raise ValueError(
            "input: expected more than one value to take statistics of, found shape "
            f"{tuple(x.shape)}"
        )
    # (C,) to (C, 1, …), so that it goes along dimension 1.
    shape = -1, *[1] * (x.ndim - 2)
    weight = None if weight is None else weight.reshape(shape)
    bias = None if bias is None else bias.reshape(shape)
    return _affine(_standardize(x, dims, eps), weight, bias)
