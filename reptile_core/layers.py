"""The two layers a fast convolutional network needs, written so that every derivative of every order is right.

Images are (*lanes, batch, height, width, channels). A convolution is a matrix product of its patches, so that on a GPU
all lanes are one batched product and on a CPU nearly all time is spent in the product. Taking patches is linear; its
derivative in either direction is itself or its transpose, `fold`, and those two lines serve every order of nesting.

Batch norm always normalizes with the batch at hand, as the authors do. Its Jacobian is a symmetric matrix, so that one
formula serves forward and reverse mode. (torch's own gives wrong second derivatives under reverse-over-forward.)
"""

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from reptile_core import native

KERNEL = 3  # all convolutions of the paper are 3 x 3
BATCH_NORM_EPS = 1e-3  # TensorFlow's default, which the authors used; PyTorch's is 1e-5


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
        native.patches(x.contiguous(), out, _shape(x, stride))
        return out
    rows, columns = same_padding(height, stride), same_padding(width, stride)
    window = F.pad(x, (0, 0, *columns, *rows)).unfold(-3, KERNEL, stride).unfold(-3, KERNEL, stride)
    # unfold appends the window's axes: (..., out_height, out_width, channels, tap_row, tap_column)
    return window.movedim(-3, -1).reshape(*lead, out_height, out_width, KERNEL**2 * channels)


def _fold(patches: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Add patches back to where they were taken from: first along rows, then along columns."""
    *lead, out_height, out_width, size = patches.shape
    channels = size // KERNEL**2
    if native.serves(patches):
        x = patches.new_empty(*lead, height, width, channels)
        row_taps, column_taps = ([tap for tap, *_ in _taps(length, stride)] for length in (height, width))
        native.fold(patches.contiguous(), x, row_taps, column_taps, _shape(x, stride))
        return x
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


def _shape(x: Tensor, stride: int) -> native.Shape:
    *lead, height, width, channels = x.shape
    outputs = same_size(height, stride), same_size(width, stride)
    before = same_padding(height, stride)[0], same_padding(width, stride)[0]
    return native.Shape(prod(lead), height, width, channels, stride, *outputs, *before)


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


def _project(u: Tensor, normalized: Tensor, rstd: Tensor) -> Tensor:
    """J u for J = rstd (I - 1 1ᵀ/N - x̂ x̂ᵀ/N), the symmetric Jacobian of normalization over N samples (axis -2)."""
    constant, along = u.mean(-2, keepdim=True), (u * normalized).mean(-2, keepdim=True)
    return torch.addcmul(torch.addcmul(-rstd * constant, u, rstd), normalized, -rstd * along)


class Normalize(Function):
    """x̂ = (x - mean) · rstd and rstd = (variance + eps)^(-1/2) over axis -2, the (biased) statistics of the batch.

    rstd is an output too, not only kept: derivatives of the formulas below then reach x through it, so that they may
    be differentiated again to any order.
    """

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # Sums and products, each one pass over memory: torch.var_mean over this axis is 20 times slower on a CPU.
        centred = x - x.mean(-2, keepdim=True)
        rstd = (centred * centred).mean(-2, keepdim=True).add_(eps).rsqrt_()
        return centred.mul_(rstd), rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        normalized, rstd = ctx.saved_tensors
        g_normalized, g_rstd = cotangents
        gradient = None if g_normalized is None else _project(g_normalized, normalized, rstd)
        if g_rstd is not None:  # d rstd = -rstd² mean(x̂ dx)
            from_rstd = normalized * (g_rstd * rstd * rstd * (-1 / normalized.shape[-2]))
            gradient = from_rstd if gradient is None else gradient + from_rstd
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        normalized, rstd = ctx.saved_tensors
        tangent = tangents[0]
        # torch runs this with forward mode switched off, and a forward mode around this one would lose its tangent.
        with torch.autograd.forward_ad._set_fwd_grad_enabled(True):
            from_x = _project(tangent, normalized, rstd)
            return from_x, -rstd * rstd * (normalized * tangent).mean(-2, keepdim=True)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x: Tensor, eps: float) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return Normalize.apply(x.movedim(in_dims[0], 0), eps), (0, 0)


class NormalizeReLU(Function):
    """max(0, scale · x̂ + shift) in C."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        out, normalized, rstd = native.normalize_relu(x, scale, shift, BATCH_NORM_EPS)
        ctx.save_for_backward(x, scale, out, normalized, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        return NormalizeReLUGradient.apply(cotangent[0].contiguous(), *ctx.saved_tensors)


class NormalizeReLUGradient(Function):
    """The gradients of NormalizeReLU in x, scale and shift, in C, as a function of its cotangent g, x and scale.

    Its own derivative is tensor code. With u = g where the output is above 0, J as in `_project` and N samples, these
    gradients are scale J u, sum(u x̂) and sum(u); what follows differentiates their products with (c, c_scale, c_shift):
    J through x̂ and through rstd, while where the output is above 0 does not change.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, scale: Tensor, out: Tensor, normalized: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(g, x, scale, out, normalized, rstd)
        return native.normalize_relu_backward(g, out, normalized, rstd, scale)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        g, x, scale, out, normalized, rstd = ctx.saved_tensors
        c, c_scale, c_shift = cotangents
        if torch.is_grad_enabled():  # what C normalized is a constant to autograd: derivatives beyond must reach x
            normalized, rstd = Normalize.apply(x, BATCH_NORM_EPS)
        u, factor = _where_above(out, g), scale * rstd
        projected = _project(c, normalized, rstd)
        from_scale = (u * projected).sum(-2, keepdim=True)
        from_g = _where_above(out, torch.addcmul(torch.addcmul(c_shift, normalized, c_scale), projected, scale))
        along_c, along_u = ((part * normalized).mean(-2, keepdim=True) for part in (c, u))
        from_normalized = (c_scale - factor * along_c) * u - factor * along_u * c
        from_rstd = normalized * (factor * from_scale / -x.shape[-2])
        return from_g, _project(from_normalized, normalized, rstd) + from_rstd, from_scale, None, None, None


class ShiftReLU(Function):
    """max(0, x + shift) in C."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        out = native.shift_relu(x, shift)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        (out,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # linear in the cotangent, and where the output is above 0 does not change
            g_x = _where_above(out, cotangent[0])
            return g_x, g_x.sum(-2, keepdim=True)
        return native.shift_relu_backward(cotangent[0].contiguous(), out)


def _where_above(out: Tensor, g: Tensor) -> Tensor:
    """g where out > 0, else 0: linear in g, a constant in out. (Ten times as fast as torch.where on a CPU.)"""
    return torch.ops.aten.threshold_backward(g, out.detach(), 0)


def _normalize_affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normalized, _ = Normalize.apply(x, BATCH_NORM_EPS)
    return torch.addcmul(shift, normalized, scale)


def convolution_batch_norm(
    x: Float[Tensor, "*lanes batch height width c_in"],
    weight: Float[Tensor, "*lanes 9*c_in c_out"],
    scale: Float[Tensor, "*lanes c_out"],
    shift: Float[Tensor, "*lanes c_out"],
    *,
    stride: int,
    activation: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, "*lanes batch out_height out_width c_out"]:
    """3 x 3 "same" convolution, each channel normalized over the batch of its own lane, scaled, shifted and activated.

    Rows of `weight` run over (tap row, tap column, input channel). No bias: batch norm would take it out again.
    Few input channels (an image): the output's statistics follow from the small covariance of the patches, wᵀ Cov w,
    so that normalization becomes a change of the weights and the largest activation of the network is passed over once.
    """
    patches = Patches.apply(x, stride)
    batch, height, width, size = patches.shape[-4:]
    patches = patches.flatten(-4, -2)
    scale, shift = scale.unsqueeze(-2), shift.unsqueeze(-2)
    if size < weight.shape[-1]:
        centred = patches - patches.mean(-2, keepdim=True)
        covariance = centred.mT @ centred / centred.shape[-2]
        variance = (weight * (covariance @ weight)).sum(-2, keepdim=True)
        product = centred @ (weight * (scale * (variance + BATCH_NORM_EPS).rsqrt()))
        if activation is F.relu and native.serves(product):
            out = ShiftReLU.apply(product, _per_lane(shift, product))
        else:
            out = activation(product + shift)
    else:
        product = patches @ weight
        if activation is F.relu and native.serves(product):
            out = NormalizeReLU.apply(product, _per_lane(scale, product), _per_lane(shift, product))
        else:
            out = activation(_normalize_affine(product, scale, shift))
    return out.unflatten(-2, (batch, height, width))


def _per_lane(channelwise: Tensor, x: Tensor) -> Tensor:
    """A (1, channels) row for every lane of x, as the C loops want it."""
    return channelwise.expand(*x.shape[:-2], 1, x.shape[-1]).contiguous()


def max_pool(x: Float[Tensor, "*lanes batch height width channels"]) -> Tensor:
    """2 x 2 maximum with stride 2 and "same" padding (one row or column of -inf after an odd size)."""
    height, width = x.shape[-3:-1]
    x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2), value=-torch.inf)
    return x.unflatten(-2, (-1, 2)).unflatten(-4, (-1, 2)).amax((-4, -2))
