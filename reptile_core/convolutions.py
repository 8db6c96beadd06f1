"""Convolutions, 3 x 3 and "same", with correct derivatives of every order.

Images are (*lanes, batch, height, width, channels). Weights are (*lanes, 9 channels, filters), with
rows over (tap row, tap column, channel). A convolution is a matrix product of its patches, so that
on a GPU all lanes are one batched product. Taking patches is linear. Its derivative is itself in
forward mode and its transpose, `Fold`, in reverse mode; these two serve every order of nesting.

On a CPU with a C compiler, `native.functions` computes the product without writing out the
patches. <x * w, g> is linear in each of the three. So are its gradients, which are functions of
the same kind.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from reptile_core import native
from reptile_core.native.functions import Convolution, extent_of
from reptile_core.sizes import KERNEL, same_padding, same_size


@lru_cache
def _taps(size: int, stride: int) -> tuple[tuple[int, slice, slice, bool], ...]:
    """Return which inputs and outputs each of the three taps of a "same" convolution connects.

    Each entry is (tap, inputs it meets, outputs it serves, first). Inputs fall into `stride`
    classes by remainder. The taps that cover a whole class come first. `first` marks the
    first of them in each class: `_fold` writes there and adds elsewhere, so nothing needs to
    be cleared before.
    """
    before, outputs = same_padding(size, stride)[0], same_size(size, stride)
    taps, met = [], set()
    for tap in range(KERNEL):
        low = max(0, -(-(before - tap) // stride))
        high = min(outputs, (size - 1 + before - tap) // stride + 1)
        start = stride * low + tap - before
        whole = high - low == len(range(start % stride, size, stride))
        end = stride * (high - 1) + tap - before + 1
        taps.append((tap, slice(start, end, stride), slice(low, high), whole))
    taps.sort(key=lambda tap: not tap[3])
    marked = []
    for tap, inputs, served, whole in taps:
        marked.append((tap, inputs, served, whole and inputs.start % stride not in met))
        met.add(inputs.start % stride)
    return tuple(marked)


def _patches(x: Tensor, stride: int) -> Tensor:
    *lead, height, width, channels = x.shape
    out_height, out_width = same_size(height, stride), same_size(width, stride)
    if native.supports_tensor(x):
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


class Patches(Function):
    """The patches of images: a linear function whose derivative is itself, its transpose `Fold`."""

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
    """The sum of patches into images: linear, its derivative is itself, its transpose `Patches`."""

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


def convolution(
    x: Float[Tensor, "*lanes batch height width c_in"],
    weight: Float[Tensor, "*lanes 9*c_in c_out"],
    stride: int,
) -> Float[Tensor, "*lanes batch out_height out_width c_out"]:
    """Return x * w; the lanes of the two are broadcast."""
    served = native.supports_tensor(x) and native.supports_tensor(weight)
    if served and native.supports_channels(x.shape[-1], weight.shape[-1]):
        lanes = np.broadcast_shapes(x.shape[:-4], weight.shape[:-2])
        x, weight = x.expand(*lanes, *x.shape[-4:]), weight.expand(*lanes, *weight.shape[-2:])
        return Convolution.apply(x.contiguous(), weight.contiguous(), stride)
    patches = Patches.apply(x, stride)
    return (patches.flatten(-4, -2) @ weight).unflatten(-2, patches.shape[-4:-1])
