"""The gradient of the classification loss through the paper's ReLU networks by hand, for one lane in float32 on a CPU.

The same numbers, to round-off, as autograd takes from `networks`. But every buffer is allocated once, and every call of
the C loops is written down once, so that a minibatch costs little beside its arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reptile_core.convolutions import extent_of, same_size
from reptile_core.layers import BATCH_NORM_EPS
from reptile_core.native import Call, meetings, packing, prepare

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Blocks:
    """Convolutional blocks with batch norm and ReLU on (size, size, channels) images, halved by pooling or stride."""

    size: int
    channels: int
    pool: bool


class GradientByHand:
    """L'(phi) of the cross-entropy of such blocks and a linear layer, for minibatches of so many images.

    unflatten: views into a flat vector by name. weight: that of an example's loss, 1 in a sum. It writes into buffers
    of its own: not for two threads at once.
    """

    def __init__(
        self,
        unflatten: Callable[[Tensor], Parameters],
        n_parameters: int,
        blocks: Blocks,
        batch: int,
        weight: float,
    ) -> None:
        self.phi, self.g = torch.zeros(n_parameters), torch.zeros(n_parameters)
        self.x = torch.zeros(batch, blocks.size, blocks.size, blocks.channels)
        self.y = torch.zeros(batch, dtype=torch.long)
        p, g = unflatten(self.phi), unflatten(self.g)
        stack = [_first_block(self.x, p, g, blocks.pool)]
        for index in range(1, sum(name.startswith("conv") for name in p)):
            stack.append(_block(stack[-1], p, g, index, blocks.pool))
        forward = [call for block in stack for call in block.forward]
        backward = [call for block in reversed(stack) for call in block.backward]
        self.calls = [*forward, _top(stack[-1], self.y, p, g, weight), *backward]

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
    """A block's output and the gradient in it, with the calls that fill the one, and from the other all gradients.

    full: what the ReLU gives at every position, which is the output itself unless it is pooled. (The paper's networks
    pool before the ReLU: the order changes neither the output nor, as a maximum of 0 passes nothing, the gradient.)
    """

    def __init__(self, images: Tensor, filters: int, pool: bool) -> None:
        self.extent = extent_of(images, 1 if pool else 2, filters)
        n, height, width = len(images), self.extent.out_height, self.extent.out_width
        self.rows = n * height * width
        self.full, self.g_full = self.out, self.g_out = torch.zeros(2, n, height, width, filters)
        self.forward: list[Call] = []
        self.backward: list[Call] = []
        if pool:
            self.out, self.g_out = torch.zeros(2, n, same_size(height, 2), same_size(width, 2), filters)
            there, back = (self.full, self.out), (self.g_out, self.full, self.out, self.g_full)
            self.forward = [prepare("max_pool", *there, n, height, width, filters)]
            self.backward = [prepare("max_pool_backward", *back, n, height, width, filters)]


def _first_block(x: Tensor, p: Parameters, g: Parameters, pool: bool) -> Block:
    """Few channels: as in `layers.convolution_batch_norm`, the covariance of the patches normalizes the weights."""
    w, scale, shift = _of_block(p, 0)
    size, filters = w.shape
    block = Block(x, filters, pool)
    patches, centred = torch.zeros(block.rows, size), torch.zeros(block.rows, size + 1)
    covariance, product, rstd = torch.zeros(size, size), torch.zeros_like(w), torch.zeros(filters)
    normalizing, g_normalizing = torch.zeros(2, size + 1, filters)
    kept = w, scale, shift, covariance, product, rstd, normalizing
    block.forward[:0] = [
        prepare("patches", x, patches, block.extent),
        prepare("centre", patches, centred, covariance, block.rows, size + 1),
        prepare("normalize_weights", *kept, BATCH_NORM_EPS, size + 1, filters),
        prepare("product_relu", centred, normalizing, block.full, 1, block.rows, size + 1, filters),
    ]
    found = g_normalizing, w, scale, product, rstd, *_of_block(g, 0)
    masked = block.g_full, block.full, centred, g_normalizing
    block.backward += [
        prepare("product_relu_backward", *masked, 1, block.rows, size + 1, filters),
        prepare("normalize_weights_backward", *found, size + 1, filters),
    ]
    return block


def _block(below: Block, p: Parameters, g: Parameters, index: int, pool: bool) -> Block:
    """Convolution and batch norm of what the block below gives."""
    (w, scale, shift), (g_w, *g_norm) = _of_block(p, index), _of_block(g, index)
    filters = w.shape[-1]
    block = Block(below.out, filters, pool)
    product, normalized, g_product = torch.zeros(3, block.rows, filters)
    rstd, scratch, turned = torch.zeros(filters), torch.zeros(8 * filters), torch.zeros_like(w)
    shape, places = block.extent, meetings(block.extent)
    norm = product, scale, shift, normalized, rstd, block.full, scratch
    block.forward[:0] = [
        prepare("convolve", below.out, w, product, places, shape),
        prepare("normalize_relu", *norm, BATCH_NORM_EPS, 1, block.rows, filters),
    ]
    found = block.g_full, block.full, normalized, rstd, scale, g_product, *g_norm, scratch
    block.backward += [
        prepare("normalize_relu_backward", *found, 1, block.rows, filters),
        prepare("correlate", below.out, g_product, g_w, *packing(shape), shape),
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
