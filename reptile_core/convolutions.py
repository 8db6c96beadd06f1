"""3 x 3 "same" convolutions, written so that every derivative of every order is right.

Images are (*lanes, batch, height, width, channels), weights (*lanes, 9 channels, filters) with rows over (tap row, tap
column, channel). A convolution is a matrix product of its patches, so that on a GPU all lanes are one batched product.
Taking patches is linear; its derivative in either direction is itself or its transpose, `fold`, and those two lines
serve every order of nesting. On a CPU with a C compiler the product is taken without writing out the patches: as
<x * w, g> is linear in each of the three, so are its gradients, which are functions of the same kind.
"""

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from reptile_core import native

KERNEL = 3  # all convolutions of the paper are 3 x 3


def same_size(size: int, stride: int) -> int:
    """Length of the output of TensorFlow's "same" convolution or pooling."""
    return -(-size // stride)


def same_padding(size: int, stride: int, window: int = KERNEL) -> tuple[int, int]:
    """Zeros that "same" puts before and after: the odd one goes after, hence (0, 1) on even sizes at stride 2."""
    total = max((same_size(size, stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


@lru_cache
def _taps(size: int, stride: int) -> tuple[tuple[int, slice, slice, bool], ...]:
    """Where each of the three taps of a "same" convolution lands: (tap, inputs it meets, outputs it serves, first).

    Inputs fall into `stride` classes by remainder. The taps that cover a whole class come first and are marked for the
    first of each class, so that `fold` can write there and add elsewhere, and nothing needs to be cleared before.
    """
    before, outputs = same_padding(size, stride)[0], same_size(size, stride)
    taps, met = [], set()
    for tap in range(KERNEL):
        low = max(0, -(-(before - tap) // stride))
        high = min(outputs, (size - 1 + before - tap) // stride + 1)
        start = stride * low + tap - before
        whole = high - low == len(range(start % stride, size, stride))
        taps.append((tap, slice(start, stride * (high - 1) + tap - before + 1, stride), slice(low, high), whole))
    taps.sort(key=lambda tap: not tap[3])
    marked = []
    for tap, inputs, served, whole in taps:
        marked.append((tap, inputs, served, whole and inputs.start % stride not in met))
        met.add(inputs.start % stride)
    return tuple(marked)


def _patches(x: Tensor, stride: int) -> Tensor:
    *lead, height, width, channels = x.shape
    out_height, out_width = same_size(height, stride), same_size(width, stride)
    if native.serves(x):
        out = x.new_empty(*lead, out_height, out_width, KERNEL**2 * channels)
        native.call("patches", x.contiguous(), out, extent_of(x, stride))
        return out
    rows, columns = same_padding(height, stride), same_padding(width, stride)
    window = F.pad(x, (0, 0, *columns, *rows)).unfold(-3, KERNEL, stride).unfold(-3, KERNEL, stride)
    # unfold appends the window's axes: (..., out_height, out_width, channels, tap_row, tap_column)
    return window.movedim(-3, -1).reshape(*lead, out_height, out_width, KERNEL**2 * channels)


def _fold(patches: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Add patches back to where they were taken from: first along rows, then along columns."""
    *lead, out_height, out_width, size = patches.shape
    channels = size // KERNEL**2
    taps = patches.reshape(*lead, out_height, out_width, KERNEL, KERNEL * channels)
    rows = taps.new_empty(*lead, height, out_width, KERNEL * channels)
    for tap, inputs, served, first in _taps(height, stride):
        part, target = taps[..., served, :, tap, :], rows[..., inputs, :, :]
        target.copy_(part) if first else target.add_(part)
    rows = rows.view(*lead, height, out_width, KERNEL, channels)
    x = rows.new_empty(*lead, height, width, channels)
    for tap, inputs, served, first in _taps(width, stride):
        part, target = rows[..., served, tap, :], x[..., inputs, :]
        target.copy_(part) if first else target.add_(part)
    return x


def extent_of(x: Tensor, stride: int, filters: int = 0) -> native.Shape:
    """The extent of a convolution of images x (*lanes, batch, height, width, channels)."""
    *lanes, n, height, width, channels = x.shape
    outputs = same_size(height, stride), same_size(width, stride)
    before = same_padding(height, stride)[0], same_padding(width, stride)[0]
    return native.Shape(prod(lanes), n, height, width, channels, stride, *outputs, *before, filters)


class Patches(Function):
    """Linear: its derivative is itself, its transpose is `Fold`."""

    @staticmethod
    def forward(x: Tensor, stride: int) -> Tensor:
        return _patches(x, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.stride = inputs
        ctx.height, ctx.width = x.shape[-3:-1]

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        return Fold.apply(cotangent[0], ctx.height, ctx.width, ctx.stride), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return Patches.apply(tangents[0], ctx.stride)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, stride: int) -> tuple[Tensor, int]:
        return Patches.apply(x.movedim(in_dims[0], 0), stride), 0


class Fold(Function):
    """Linear: its derivative is itself, its transpose is `Patches`."""

    @staticmethod
    def forward(patches: Tensor, height: int, width: int, stride: int) -> Tensor:
        return _fold(patches, height, width, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.height, ctx.width, ctx.stride = inputs

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        return Patches.apply(cotangent[0], ctx.stride), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return Fold.apply(tangents[0], ctx.height, ctx.width, ctx.stride)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, patches: Tensor, *sizes: int) -> tuple[Tensor, int]:
        return Fold.apply(patches.movedim(in_dims[0], 0), *sizes), 0


class Convolution(Function):
    """x * w in C. x and w have the same lanes; both contiguous, as are the results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        outputs = (same_size(size, stride) for size in x.shape[-3:-1])
        out = x.new_empty(*x.shape[:-3], *outputs, weight.shape[-1])
        extent = extent_of(x, stride, weight.shape[-1])
        native.call("convolve", x, weight, out, native.meetings(extent), extent, 0)
        return out

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        (x, weight), g = ctx.saved_tensors, cotangent[0].contiguous()
        in_x, in_weight, _ = ctx.needs_input_grad
        return (
            TransposedConvolution.apply(g, weight, *x.shape[-3:-1], ctx.stride) if in_x else None,
            Correlation.apply(x, g, ctx.stride) if in_weight else None,
            None,
        )


class TransposedConvolution(Function):
    """The gradient of <x * w, g> in x, in C."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.stride = stride
        x = g.new_empty(*g.shape[:-3], height, width, weight.shape[-2] // KERNEL**2)
        extent = extent_of(x, stride, weight.shape[-1])
        native.call("convolve_transposed", g, weight, x, torch.empty_like(weight), native.meetings(extent), extent, 0)
        return x

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        (g, weight), x = ctx.saved_tensors, cotangent[0].contiguous()
        in_g, in_weight, *_ = ctx.needs_input_grad
        return (
            Convolution.apply(x, weight, ctx.stride) if in_g else None,
            Correlation.apply(x, g, ctx.stride) if in_weight else None,
            *(None, None, None),
        )


class Correlation(Function):
    """The gradient of <x * w, g> in w, in C."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.stride = stride
        weight = x.new_empty(*x.shape[:-4], KERNEL**2 * x.shape[-1], g.shape[-1])
        extent = extent_of(x, stride, g.shape[-1])
        native.call("correlate", x, g, weight, *native.packing(extent, x.dtype), extent, 0)
        return weight

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        (x, g), weight = ctx.saved_tensors, cotangent[0].contiguous()
        in_x, in_g, _ = ctx.needs_input_grad
        return (
            TransposedConvolution.apply(g, weight, *x.shape[-3:-1], ctx.stride) if in_x else None,
            Convolution.apply(x, weight, ctx.stride) if in_g else None,
            None,
        )


def convolution(
    x: Float[Tensor, "*lanes batch height width c_in"], weight: Float[Tensor, "*lanes 9*c_in c_out"], stride: int
) -> Float[Tensor, "*lanes batch out_height out_width c_out"]:
    """x * w; lanes of the two may be broadcast."""
    if native.serves(x) and native.serves(weight) and native.takes(x.shape[-1], weight.shape[-1]):
        lanes = np.broadcast_shapes(x.shape[:-4], weight.shape[:-2])
        x, weight = x.expand(*lanes, *x.shape[-4:]), weight.expand(*lanes, *weight.shape[-2:])
        return Convolution.apply(x.contiguous(), weight.contiguous(), stride)
    patches = Patches.apply(x, stride)
    return (patches.flatten(-4, -2) @ weight).unflatten(-2, patches.shape[-4:-1])
