"""The compiled loops as functions for the layers, which autograd can differentiate repeatedly."""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from reptile_core import native
from reptile_core.normalization import BATCH_NORM_EPS, Normalize, project
from reptile_core.sizes import KERNEL, same_padding, same_size


def extent_of(x: Tensor, stride: int, filters: int = 0) -> native.Shape:
    """Return the extent of a convolution of images x (*lanes, batch, height, width, channels)."""
    *lanes, n, height, width, channels = x.shape
    outputs = same_size(height, stride), same_size(width, stride)
    before = same_padding(height, stride)[0], same_padding(width, stride)[0]
    return native.Shape(prod(lanes), n, height, width, channels, stride, *outputs, *before, filters)


class Convolution(Function):
    """x * w in C.

    x and w have the same lanes. Both are contiguous, as are the results.
    """

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
    def forward(
        ctx: Any, g: Tensor, weight: Tensor, height: int, width: int, stride: int
    ) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.stride = stride
        x = g.new_empty(*g.shape[:-3], height, width, weight.shape[-2] // KERNEL**2)
        extent = extent_of(x, stride, weight.shape[-1])
        scratch = torch.empty_like(weight), native.meetings(extent)
        native.call("convolve_transposed", g, weight, x, *scratch, extent, 0)
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
    """The gradients of NormalizeReLU in x, scale and shift, in C.

    They are a function of its cotangent g, x and scale, whose own derivative is tensor code. Let u
    be g where the output is above 0 and 0 elsewhere, J as in `project`, and N the number of
    samples. The gradients are then scale J u, sum(u x̂) and sum(u). `backward` differentiates their
    products with (c, c_scale, c_shift), where J depends on x through x̂ and through rstd. The set
    of outputs above 0 does not change.
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
        # What C normalized is a constant to autograd: derivatives beyond must reach x.
        if torch.is_grad_enabled():
            normalized, rstd = Normalize.apply(x, BATCH_NORM_EPS)
        u, factor = where_above(out, g), scale * rstd
        projected = project(c, normalized, rstd)
        from_scale = (u * projected).sum(-2, keepdim=True)
        from_g = where_above(
            out, torch.addcmul(torch.addcmul(c_shift, normalized, c_scale), projected, scale)
        )
        along_c, along_u = ((part * normalized).mean(-2, keepdim=True) for part in (c, u))
        from_normalized = (c_scale - factor * along_c) * u - factor * along_u * c
        from_rstd = normalized * (factor * from_scale / -x.shape[-2])
        from_x = project(from_normalized, normalized, rstd) + from_rstd
        return from_g, from_x, from_scale, None, None, None


class ProductReLU(Function):
    """max(0, x w) in C, for few columns of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        out = native.product_relu(x, weight)
        ctx.save_for_backward(x, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple:
        (x, weight, out), (g,) = ctx.saved_tensors, cotangent
        in_x, in_weight = ctx.needs_input_grad
        # Linear in the cotangent. The set of outputs above 0 does not change.
        if in_x or torch.is_grad_enabled():
            g = where_above(out, g)
            return g @ weight.mT if in_x else None, x.mT @ g if in_weight else None
        return None, native.product_relu_backward(g.contiguous(), out, x)


def where_above(out: Tensor, g: Tensor) -> Tensor:
    """Return g where out > 0, else 0: linear in g, a constant in out.

    On a CPU it is ten times as fast as torch.where.
    """
    return torch.ops.aten.threshold_backward(g, out.detach(), 0)
