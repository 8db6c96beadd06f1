"""Blocks of a fast convolutional network, with correct derivatives of every order."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reptile_core import native
from reptile_core.convolutions import Patches, convolution
from reptile_core.native.functions import NormalizeReLU, ProductReLU
from reptile_core.normalization import BATCH_NORM_EPS, Normalize


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
    """Return a 3 x 3 "same" convolution with batch norm, scale, shift and activation.

    Each channel is normalized over the batch of its own lane. Rows of `weight` run over (tap row,
    tap column, input channel). There is no bias, as batch norm would remove it.

    With few input channels (an image), the statistics of the output follow from the small
    covariance of the patches, wᵀ Cov w. Normalization then becomes a change of the weights, and the
    largest activation of the network is passed over only once.
    """
    scale, shift = scale.unsqueeze(-2), shift.unsqueeze(-2)
    if weight.shape[-2] < weight.shape[-1]:
        patches = Patches.apply(x, stride)
        extent, patches = patches.shape[-4:-1], patches.flatten(-4, -2)
        centred = patches - patches.mean(-2, keepdim=True)
        covariance = centred.mT @ centred / centred.shape[-2]
        variance = (weight * (covariance @ weight)).sum(-2, keepdim=True)
        normalizing = weight * (scale * (variance + BATCH_NORM_EPS).rsqrt())
        if (
            activation is F.relu
            and native.supports_tensor(centred)
            and native.supports_channels(weight.shape[-1])
        ):
            out = _product_relu(centred, normalizing, shift)
        else:
            out = activation(centred @ normalizing + shift)
    else:
        product = convolution(x, weight, stride)
        extent, product = product.shape[-4:-1], product.flatten(-4, -2)
        if activation is F.relu and native.supports_tensor(product):
            out = NormalizeReLU.apply(product, _per_lane(scale, product), _per_lane(shift, product))
        else:
            out = activation(_normalize_affine(product, scale, shift))
    return out.unflatten(-2, extent)


def _product_relu(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """Return max(0, x w + shift), the shift as one more row of w."""
    lanes = np.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
    with_one = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1).expand(*lanes, -1, -1)
    with_shift = torch.cat([part.expand(*lanes, -1, -1) for part in (weight, shift)], -2)
    return ProductReLU.apply(with_one.contiguous(), with_shift)


def _per_lane(channelwise: Tensor, x: Tensor) -> Tensor:
    """Return a (1, channels) row for every lane of x, as the C loops expect it."""
    return channelwise.expand(*x.shape[:-2], 1, x.shape[-1]).contiguous()


def max_pool(x: Float[Tensor, "*lanes batch height width channels"]) -> Tensor:
    """Return the 2 x 2 maximum with stride 2 and "same" padding.

    An odd size is padded at its end with one row or column of -inf.
    """
    height, width = x.shape[-3:-1]
    x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2), value=-torch.inf)
    return x.unflatten(-2, (-1, 2)).unflatten(-4, (-1, 2)).amax((-4, -2))
