"""Batch norm with derivatives of every order, always with the statistics of the batch at hand.

This is how the authors use it. The Jacobian is a symmetric matrix, so that one formula serves
forward and reverse mode. (torch's own batch norm gives wrong second derivatives under reverse mode
over forward mode.)
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

BATCH_NORM_EPS = 1e-3  # TensorFlow's default, which the authors used; PyTorch's is 1e-5


def project(u: Tensor, normalized: Tensor, rstd: Tensor) -> Tensor:
    """Return J u, with J the symmetric Jacobian of normalization over N samples (axis -2).

    J = rstd (I - 1 1ᵀ/N - x̂ x̂ᵀ/N).
    """
    constant, along = u.mean(-2, keepdim=True), (u * normalized).mean(-2, keepdim=True)
    return torch.addcmul(torch.addcmul(-rstd * constant, u, rstd), normalized, -rstd * along)


class Normalize(Function):
    """Normalization over axis -2, with the (biased) statistics of the batch.

    Its outputs are x̂ = (x - mean) · rstd and rstd = (variance + eps)^(-1/2). rstd is an output
    too, not only kept: derivatives of the formulas below then reach x through it. So they can be
    differentiated again to any order.
    """

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # Sums and products, each one pass over memory: torch.var_mean over this axis is 20 times
        # slower on a CPU.
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
        gradient = None if g_normalized is None else project(g_normalized, normalized, rstd)
        if g_rstd is not None:  # d rstd = -rstd² mean(x̂ dx)
            from_rstd = normalized * (g_rstd * rstd * rstd * (-1 / normalized.shape[-2]))
            gradient = from_rstd if gradient is None else gradient + from_rstd
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        normalized, rstd = ctx.saved_tensors
        tangent = tangents[0]
        # torch runs this with forward mode switched off. A forward mode around this one would then
        # lose its tangent.
        with torch.autograd.forward_ad._set_fwd_grad_enabled(True):
            from_x = project(tangent, normalized, rstd)
            return from_x, -rstd * rstd * (normalized * tangent).mean(-2, keepdim=True)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, x: Tensor, eps: float
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return Normalize.apply(x.movedim(in_dims[0], 0), eps), (0, 0)
