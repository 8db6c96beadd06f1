"""Blocks of a fast convolutional network, written so that every derivative of every order is right.

Batch norm always normalizes with the batch at hand, as the authors do. Its Jacobian is a symmetric matrix, so that one
formula serves forward and reverse mode. (torch's own gives wrong second derivatives under reverse-over-forward.)
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from reptile_core import native
from reptile_core.convolutions import Patches, convolution

BATCH_NORM_EPS = 1e-3  # TensorFlow's default, which the authors used; PyTorch's is 1e-5


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
        if in_x or torch.is_grad_enabled():  # linear in the cotangent, and where the output is above 0 does not change
            g = _where_above(out, g)
            return g @ weight.mT if in_x else None, x.mT @ g if in_weight else None
        return None, native.product_relu_backward(g.contiguous(), out, x)


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
    scale, shift = scale.unsqueeze(-2), shift.unsqueeze(-2)
    if weight.shape[-2] < weight.shape[-1]:
        patches = Patches.apply(x, stride)
        extent, patches = patches.shape[-4:-1], patches.flatten(-4, -2)
        centred = patches - patches.mean(-2, keepdim=True)
        covariance = centred.mT @ centred / centred.shape[-2]
        variance = (weight * (covariance @ weight)).sum(-2, keepdim=True)
        normalizing = weight * (scale * (variance + BATCH_NORM_EPS).rsqrt())
        if activation is F.relu and native.serves(centred) and native.takes(weight.shape[-1]):
            out = _product_relu(centred, normalizing, shift)
        else:
            out = activation(centred @ normalizing + shift)
    else:
        product = convolution(x, weight, stride)
        extent, product = product.shape[-4:-1], product.flatten(-4, -2)
        if activation is F.relu and native.serves(product):
            out = NormalizeReLU.apply(product, _per_lane(scale, product), _per_lane(shift, product))
        else:
            out = activation(_normalize_affine(product, scale, shift))
    return out.unflatten(-2, extent)


def _product_relu(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """max(0, x w + shift), the shift as one more row of w."""
    lanes = np.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
    with_one = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1).expand(*lanes, -1, -1)
    with_shift = torch.cat([part.expand(*lanes, -1, -1) for part in (weight, shift)], -2)
    return ProductReLU.apply(with_one.contiguous(), with_shift)


def _per_lane(channelwise: Tensor, x: Tensor) -> Tensor:
    """A (1, channels) row for every lane of x, as the C loops want it."""
    return channelwise.expand(*x.shape[:-2], 1, x.shape[-1]).contiguous()


def max_pool(x: Float[Tensor, "*lanes batch height width channels"]) -> Tensor:
    """2 x 2 maximum with stride 2 and "same" padding (one row or column of -inf after an odd size)."""
    height, width = x.shape[-3:-1]
    x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2), value=-torch.inf)
    return x.unflatten(-2, (-1, 2)).unflatten(-4, (-1, 2)).amax((-4, -2))
