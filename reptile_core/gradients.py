"""The gradient of the classification loss through strided ReLU blocks by hand, for one lane in float32 on a CPU.

The same numbers, to round-off, as autograd takes from `networks`. But every buffer is allocated once, and every call of
the C loops is written down once, so that a minibatch costs little beside its arithmetic.
"""

from collections.abc import Callable
from itertools import count

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reptile_core.convolutions import extent_of
from reptile_core.layers import BATCH_NORM_EPS
from reptile_core.native import Call, meetings, pairs, prepare

STRIDE = 2
Parameters = dict[str, Tensor]


class StridedGradient:
    """L'(phi) of the cross-entropy of strided blocks and a linear layer, for minibatches of the same extent.

    unflatten: views into a flat vector by name. images: (batch, height, width, channels). weight: that of an example's
    loss, 1 in a sum. It writes into buffers of its own: not for two threads at once.
    """

    def __init__(
        self, unflatten: Callable[[Tensor], Parameters], n_parameters: int, images: tuple[int, ...], weight: float
    ) -> None:
        self.phi, self.g = torch.zeros(n_parameters), torch.zeros(n_parameters)
        self.x, self.y = torch.zeros(images), torch.zeros(images[0], dtype=torch.long)
        p, g = unflatten(self.phi), unflatten(self.g)
        blocks = [_first_block(self.x, p, g)]
        for index in count(1):
            if f"conv{index}.weight" not in p:
                break
            blocks.append(_block(blocks[-1], p, g, index))
        forward = [call for block in blocks for call in block.forward]
        backward = [call for block in reversed(blocks) for call in block.backward]
        self.calls = [*forward, _top(blocks[-1], self.y, p, g, weight), *backward]

    def __call__(
        self, phi: Float[Tensor, "*one P"], x: Tensor, y: Int[Tensor, "*one batch"]
    ) -> Float[Tensor, "*one P"]:
        self.phi.copy_(phi.view_as(self.phi))
        self.x.copy_(x.view_as(self.x))
        self.y.copy_(y.view_as(self.y))
        for call in self.calls:
            call()
        return self.g.clone().view_as(phi)


class Block:
    """A block's output and the gradient in it, with the calls that fill the one, and from the other all gradients."""

    def __init__(self, images: Tensor, filters: int) -> None:
        self.extent = extent_of(images, STRIDE, filters)
        self.out, self.g_out = torch.zeros(2, len(images), self.extent.out_height, self.extent.out_width, filters)
        self.rows = self.out[..., 0].numel()
        self.forward: list[Call] = []
        self.backward: list[Call] = []


def _first_block(x: Tensor, p: Parameters, g: Parameters) -> Block:
    """Few channels: as in `layers.convolution_batch_norm`, the covariance of the patches normalizes the weights."""
    w, scale, shift = _of_block(p, 0)
    size, filters = w.shape
    block = Block(x, filters)
    patches, centred = torch.zeros(block.rows, size), torch.zeros(block.rows, size + 1)
    covariance, product, rstd = torch.zeros(size, size), torch.zeros_like(w), torch.zeros(filters)
    normalizing, g_normalizing = torch.zeros(2, size + 1, filters)
    kept = w, scale, shift, covariance, product, rstd, normalizing
    block.forward = [
        prepare("patches", x, patches, block.extent),
        prepare("centre", patches, centred, covariance, block.rows, size + 1),
        prepare("normalize_weights", *kept, BATCH_NORM_EPS, size + 1, filters),
        prepare("product_relu", centred, normalizing, block.out, 1, block.rows, size + 1, filters),
    ]
    found = g_normalizing, w, scale, product, rstd, *_of_block(g, 0)
    masked = block.g_out, block.out, centred, g_normalizing
    block.backward = [
        prepare("product_relu_backward", *masked, 1, block.rows, size + 1, filters),
        prepare("normalize_weights_backward", *found, size + 1, filters),
    ]
    return block


def _block(below: Block, p: Parameters, g: Parameters, index: int) -> Block:
    """Convolution and batch norm of what the block below gives."""
    (w, scale, shift), (g_w, *g_norm) = _of_block(p, index), _of_block(g, index)
    filters = w.shape[-1]
    block = Block(below.out, filters)
    product, normalized, g_product = torch.zeros(3, block.rows, filters)
    rstd, scratch, turned = torch.zeros(filters), torch.zeros(8 * filters), torch.zeros_like(w)
    shape, places = block.extent, meetings(block.extent)
    norm = product, scale, shift, normalized, rstd, block.out, scratch
    block.forward = [
        prepare("convolve", below.out, w, product, places, shape),
        prepare("normalize_relu", *norm, BATCH_NORM_EPS, 1, block.rows, filters),
    ]
    found = block.g_out, block.out, normalized, rstd, scale, g_product, *g_norm, scratch
    block.backward = [
        prepare("normalize_relu_backward", *found, 1, block.rows, filters),
        prepare("correlate", below.out, g_product, g_w, pairs(shape), shape),
        prepare("convolve_transposed", g_product, w, below.g_out, turned, places, shape),
    ]
    return block


def _top(below: Block, y: Tensor, p: Parameters, g: Parameters, weight: float) -> Call:
    """The linear layer and the cross-entropy, forward and backward."""
    w, bias = p["linear.weight"], p["linear.bias"]
    found = below.g_out, g["linear.weight"], g["linear.bias"]
    return prepare(
        "cross_entropy_gradients", below.out, w, bias, y, *found, torch.zeros_like(bias), weight, len(y), *w.shape
    )


def _of_block(p: Parameters, index: int) -> tuple[Tensor, Tensor, Tensor]:
    return p[f"conv{index}.weight"], p[f"norm{index}.scale"], p[f"norm{index}.shift"]
