"""The layers of `gradients`: a block's outputs and derivatives, and the calls that compute them.

Lists are indexed by the order of a Taylor coefficient along v. Every step is linear in its inputs'
coefficients of that order, given the coefficients of lower orders.
"""

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from reptile_core.native import ACTIVATIONS, NativeCall, meetings, packing, prepare
from reptile_core.native.functions import extent_of
from reptile_core.normalization import BATCH_NORM_EPS
from reptile_core.sizes import same_size

Parameters = dict[str, Tensor]
ORDERS = 3  # as in taylor.c


@dataclass(frozen=True)
class Blocks:
    """Convolutional blocks with batch norm on (size, size, channels) images.

    Each block halves the size, by pooling or by stride.
    """

    size: int
    channels: int
    pool: bool
    activation: str


class Block:
    """A block's output and the gradient in it, with the calls that compute them.

    Forward calls fill the output. Backward calls compute all gradients from the gradient in the
    output. Lists are indexed by order.

    full: what the activation gives at every position, which is the output itself unless it is
        pooled. (The paper's networks pool before the ReLU. The order changes neither the output nor
        the gradient, as a maximum of 0 passes nothing.)
    inputs: what the activation takes; a ReLU works in place.
    """

    def __init__(
        self, images: Tensor, p: Parameters, v: Parameters, blocks: Blocks, index: int
    ) -> None:
        names = f"conv{index}.weight", f"norm{index}.scale", f"norm{index}.shift"
        self.w, self.scale, self.shift = ([p[name], v[name]] for name in names)
        self.names, self.filters, self.pool = names, self.w[0].shape[-1], blocks.pool
        # A straight line has no second coefficient.
        self.shift.append(torch.zeros_like(self.shift[0]))
        self.extent = extent_of(images, 1 if blocks.pool else 2, self.filters)
        self.sides = len(images), self.extent.out_height, self.extent.out_width
        self.rows, self.kind = prod(self.sides), ACTIVATIONS[blocks.activation]
        self.slope = images.new_zeros(self.rows, self.filters) if self.kind else None
        self.variance, self.root, self.factor, self.along = images.new_zeros(
            4, ORDERS, self.filters
        )
        self.inputs: list[Tensor] = []
        self.full: list[Tensor] = []
        self.out: list[Tensor] = []
        self.g_full: list[Tensor] = []
        self.g_out: list[Tensor] = []
        self.g_scale: list[Tensor] = []
        self.g_shift: list[Tensor] = []
        self.first: NativeCall | None = None
        self._allocate()

    def prepare(self) -> None:
        """Take the gradient of order 0 back through the activation, for the next order.

        It does so only where the next order needs it and order 0 did without.
        """
        if self.in_passing(0) and not self.in_passing(1):
            self.first = self.first or self._through_activation(0)
            self.first()

    def forward(self, order: int) -> list[NativeCall]:
        """Return the calls that fill the output's coefficients of this order."""
        if order:
            self._allocate()
        return self.linear(order) + self._activation(order) + self._pooling(order)

    def backward(self, order: int, g: Parameters) -> list[NativeCall]:
        """Return the calls that compute this order's gradients from the gradient in the output."""
        g_w, g_scale, g_shift = (g[name] for name in self.names)
        self.g_scale.append(g_scale)
        self.g_shift.append(g_shift)
        calls = []
        if self.pool:
            pooled = self.g_out[order], self.full[0], self.out[0], self.g_full[order]
            calls.append(prepare("max_pool_backward", *pooled, *self.sides, self.filters))
        if not self.in_passing(order):
            calls.append(self._through_activation(order))
        return calls + self.linear_backward(order, g_w)

    def in_passing(self, order: int) -> bool:
        """Return whether the calls below the activation also take the gradient back through it."""
        raise NotImplementedError

    def linear(self, order: int) -> list[NativeCall]:
        """Return the calls for what is below the activation.

        In order 0 they include the activation where it is a ReLU.
        """
        raise NotImplementedError

    def linear_backward(self, order: int, g_w: Tensor) -> list[NativeCall]:
        """Return the calls that compute the gradients below the activation."""
        raise NotImplementedError

    def _activation(self, order: int) -> list[NativeCall]:
        known, count = (self.full[0], self.slope), self.full[0].numel()
        if order:
            tensors = self.inputs, *known, self.full[order]
            return [prepare("activate_taylor", *tensors, count, self.kind, order)]
        return [prepare("activate", self.inputs[0], *known, count, self.kind)] if self.kind else []

    def _pooling(self, order: int) -> list[NativeCall]:
        tensors, extents = (self.full[0], self.out[0]), (*self.sides, self.filters)
        if not self.pool:
            return []
        if order:
            return [
                prepare("max_pool_taylor", *tensors, self.full[order], self.out[order], *extents)
            ]
        return [prepare("max_pool", *tensors, *extents)]

    def _allocate(self) -> None:
        n, height, width = self.sides
        full, g_full = self.w[0].new_zeros(2, n, height, width, self.filters)
        out, g_out = full, g_full
        if self.pool:
            out, g_out = self.w[0].new_zeros(
                2, n, same_size(height, 2), same_size(width, 2), self.filters
            )
        # Inputs of order 0 are not needed once the output is there.
        inputs = full if not self.kind else torch.zeros_like(full) if self.full else g_full
        lists = self.inputs, self.full, self.out, self.g_full, self.g_out
        for parts, part in zip(lists, (inputs, full, out, g_full, g_out), strict=True):
            parts.append(part)

    def _through_activation(self, order: int) -> NativeCall:
        kept = self.g_full, self.inputs, self.full[0], self.slope
        return prepare("activate_backward", *kept, self.full[0].numel(), self.kind, order)


class FirstBlock(Block):
    """A block on few channels, where the covariance of the patches normalizes the weights.

    See `layers.convolution_batch_norm`.
    """

    def __init__(self, x: Tensor, p: Parameters, v: Parameters, blocks: Blocks) -> None:
        super().__init__(x, p, v, blocks, 0)
        self.x, (size, filters) = x, self.w[0].shape
        self.patches, self.centred = x.new_zeros(self.rows, size), x.new_zeros(self.rows, size + 1)
        self.covariance = x.new_zeros(size, size)
        self.product = list(torch.zeros_like(torch.stack(self.w)))
        self.normalizing, self.g_normalizing = x.new_zeros(2, ORDERS, size + 1, filters)
        self.extents = size + 1, filters

    def in_passing(self, order: int) -> bool:
        return not self.kind

    def linear(self, order: int) -> list[NativeCall]:
        normalizing, extents = self.normalizing[order], self.extents
        multiply = "product" if order or self.kind else "product_relu"
        product = prepare(
            multiply, self.centred, normalizing, self.inputs[order], 1, self.rows, *extents
        )
        if order:
            known = self.w, self.product, self.covariance, self.scale, self.shift[order]
            along = self.variance, self.root, self.factor, normalizing
            return [prepare("normalize_weights_taylor", *known, *along, *extents, order), product]
        p = self.w[0], self.scale[0], self.shift[0]
        found = self.covariance, self.product[0], self.root[0], normalizing
        return [
            prepare("patches", self.x, self.patches, self.extent),
            prepare("centre", self.patches, self.centred, self.covariance, self.rows, extents[0]),
            prepare("normalize_weights", *p, *found, BATCH_NORM_EPS, *extents),
            product,
        ]

    def linear_backward(self, order: int, g_w: Tensor) -> list[NativeCall]:
        g, g_normalizing, extents = self.g_full[order], self.g_normalizing[order], self.extents
        found = g_w, self.g_scale[order], self.g_shift[order]
        if self.in_passing(order):
            masked = g, self.full[0], self.centred, g_normalizing
            through = prepare("product_relu_backward", *masked, 1, self.rows, *extents)
        else:
            through = prepare(
                "product_backward", g, self.centred, g_normalizing, self.rows, *extents
            )
        if order:
            along = list(self.g_normalizing), self.w, self.product, self.root, self.factor
            return [
                through,
                prepare("normalize_weights_taylor_backward", *along, *found, *extents, order),
            ]
        known = g_normalizing, self.w[0], self.scale[0], self.product[0], self.root[0]
        return [through, prepare("normalize_weights_backward", *known, *found, *extents)]


class InnerBlock(Block):
    """A block on the output of the block below: convolution and batch norm."""

    def __init__(
        self, below: Block, p: Parameters, v: Parameters, blocks: Blocks, index: int
    ) -> None:
        super().__init__(below.out[0], p, v, blocks, index)
        self.below, self.turned = below, torch.zeros_like(self.w[0])
        self.product = self.turned.new_zeros(self.rows, self.filters)
        self.rstd = self.turned.new_zeros(self.filters)
        self.scratch = self.turned.new_zeros(8 * self.filters)
        self.root[0] = 1  # of what is normalized already
        self.places, self.packing = meetings(self.extent), packing(self.extent, self.turned.dtype)
        self.normalized: list[Tensor] = []
        self.g_product: list[Tensor] = []

    def in_passing(self, order: int) -> bool:
        return not self.kind and order == 0

    def linear(self, order: int) -> list[NativeCall]:
        self.normalized.append(torch.zeros_like(self.product))
        product = self.normalized[order] if order else self.product
        calls = [
            prepare("convolve", self.below.out[order - n], w, product, self.places, self.extent, n)
            for n, w in enumerate(self.w[: order + 1])
        ]
        found, extents = (self.inputs[order], self.scratch), (self.rows, self.filters)
        if order:
            along = self.rstd, self.scale, self.shift[order], self.variance, self.root, self.factor
            return [
                *calls,
                prepare("normalize_taylor", self.normalized, *along, *found, *extents, order),
            ]
        known = product, self.scale[0], self.shift[0], self.normalized[0], self.rstd
        normalize = "normalize" if self.kind else "normalize_relu"
        return [*calls, prepare(normalize, *known, *found, BATCH_NORM_EPS, 1, *extents)]

    def linear_backward(self, order: int, g_w: Tensor) -> list[NativeCall]:
        self.g_product.append(torch.zeros_like(self.product))
        into_below = self.below.g_out[order], self.turned, self.places, self.extent
        weights = [
            prepare("correlate", self.below.out[order - n], g, g_w, *self.packing, self.extent, n)
            for n, g in enumerate(self.g_product)
        ]
        images = [
            prepare("convolve_transposed", self.g_product[order - n], w, *into_below, n)
            for n, w in enumerate(self.w[: order + 1])
        ]
        return [self._through_normalization(order), *weights, *images]

    def _through_normalization(self, order: int) -> NativeCall:
        g_product, extents = self.g_product[order], (self.rows, self.filters)
        if order:
            along = self.g_full, self.normalized, self.rstd, self.root, self.factor, self.along
            lists = g_product, self.g_scale, self.g_shift, self.scratch
            return prepare("normalize_taylor_backward", *along, *lists, *extents, order)
        g = (self.g_full[0],) if self.kind else (self.g_full[0], self.full[0])
        known = self.normalized[0], self.rstd, self.scale[0]
        found = g_product, self.g_scale[0], self.g_shift[0]
        backward = "normalize_backward" if self.kind else "normalize_relu_backward"
        return prepare(backward, *g, *known, *found, self.scratch, 1, *extents)


class Top:
    """The linear layer and the cross-entropy.

    Their gradients are computed in C. Higher orders are small, and computed in torch. With logits l
    and probabilities p, p = exp(l - log sum exp l). The coefficients of p are p_0 times those of
    the exponent. To the second of these, half the square of the first is added.
    """

    def __init__(
        self, below: Block, y: Tensor, p: Parameters, v: Parameters, weight: float
    ) -> None:
        self.w, self.bias = ([p[name], v[name]] for name in ("linear.weight", "linear.bias"))
        self.below, self.y, self.weight = below, y, weight
        self.p, self.exponent = torch.zeros(2, len(y), len(self.bias[0]), dtype=self.w[0].dtype)
        self.g: list[Tensor] = []  # in the logits

    def calls(self, order: int, g: Parameters) -> list[NativeCall]:
        found = g["linear.weight"], g["linear.bias"]
        if order:
            return [partial(self._coefficient, order, *found)]
        known = self.below.out[0], self.w[0], self.bias[0], self.y
        tensors = *known, self.below.g_out[0], *found, torch.zeros_like(self.bias[0])
        extents = len(self.y), *self.w[0].shape
        return [prepare("cross_entropy_gradients", *tensors, self.weight, *extents)]

    def value(self) -> Tensor:
        return self.weight * F.cross_entropy(self._logits(), self.y, reduction="sum")

    def prepare(self) -> None:
        self.p = self._logits().softmax(-1)
        self.g = [self.weight * (self.p - F.one_hot(self.y, self.p.shape[-1]))]

    def _logits(self) -> Tensor:
        return self.below.out[0].view(len(self.y), -1) @ self.w[0] + self.bias[0]

    def _coefficient(self, order: int, g_w: Tensor, g_bias: Tensor) -> None:
        x = [out.view(len(self.y), -1) for out in self.below.out]
        logits = x[order] @ self.w[0] + x[order - 1] @ self.w[1]
        logits += self.bias[1] if order == 1 else self.exponent.square() / 2
        exponent = logits - (self.p * logits).sum(-1, keepdim=True)
        if order == 1:
            self.exponent = exponent
        self.g[order:] = [self.weight * self.p * exponent]
        g_w.zero_()
        for n, g in enumerate(self.g):
            g_w.addmm_(x[order - n].mT, g)
        torch.sum(self.g[order], 0, out=g_bias)
        g_x = self.below.g_out[order].view_as(x[0])
        torch.mm(self.g[order], self.w[0].mT, out=g_x).addmm_(self.g[order - 1], self.w[1].mT)
