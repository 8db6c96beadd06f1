"""Derivatives of the classification loss by hand, for one lane of the paper's networks on a CPU.

The numbers are those that autograd computes from `networks`, to round-off. But every buffer is
allocated once and every call of the C loops is prepared once, so a minibatch costs little more
than its arithmetic.

Beyond the gradient, it computes Taylor coefficients of L'(phi + t v) in t, with one more forward
and backward pass for each order.
"""

from collections.abc import Callable
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reptile_core.gradient_blocks import Block, Blocks, FirstBlock, InnerBlock, Parameters, Top
from reptile_core.native import NativeCall


class GradientByHand:
    """L'(phi) of the cross-entropy of such blocks and a linear layer.

    unflatten: returns views into a flat vector, by name.
    batch: number of images in a minibatch.
    weight: factor of one example's loss, 1 in a sum.

    It writes into buffers of its own, so two threads must not use it at once.
    """

    def __init__(
        self,
        unflatten: Callable[[Tensor], Parameters],
        blocks: Blocks,
        batch: int,
        weight: float,
        like: Tensor,
    ) -> None:
        self.unflatten = unflatten
        self.phi, self.v = like.new_zeros(2, like.numel())
        self.x = like.new_zeros(batch, blocks.size, blocks.size, blocks.channels)
        self.y = torch.zeros(batch, dtype=torch.long)
        p, v = unflatten(self.phi), unflatten(self.v)
        self.stack: list[Block] = [FirstBlock(self.x, p, v, blocks)]
        for index in range(1, sum(name.startswith("conv") for name in p)):
            self.stack.append(InnerBlock(self.stack[-1], p, v, blocks, index))
        self.top = Top(self.stack[-1], self.y, p, v, weight)
        self.g: list[Tensor] = []
        self.calls: list[list[NativeCall]] = []
        self.holder: ref | None = None  # the point whose values these buffers hold, if one does
        self.along_v = False  # whether coefficients of order 1 are there
        self.prepared = False
        self._extend()

    @torch.no_grad()
    def __call__(
        self, phi: Float[Tensor, "*one P"], x: Tensor, y: Int[Tensor, "*one batch"]
    ) -> Float[Tensor, "*one P"]:
        self.phi.copy_(phi.view_as(self.phi))
        self.x.copy_(x.view_as(self.x))
        self.y.copy_(y.view_as(self.y))
        self.holder, self.along_v, self.prepared = None, False, False
        self._run(0)
        return self.g[0].clone().view_as(phi)

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """Return the loss itself, where the gradient was last taken."""
        return self.top.value()

    @torch.no_grad()
    def coefficients(self, v: Float[Tensor, "*one P"], order: int) -> list[Float[Tensor, "*one P"]]:
        """Return L''(phi) v and, for order 2, also L'''(phi)[v, v] / 2.

        phi is the point where the gradient was last taken. The second coefficient is often asked
        for once the first is there, which is then not computed again.
        """
        first = 2 if order == 2 and self.along_v and torch.equal(self.v, v.view_as(self.v)) else 1
        self.v.copy_(v.view_as(self.v))
        while len(self.calls) <= order:
            self._extend()
        if not self.prepared:
            for block in self.stack:
                block.prepare()
            self.top.prepare()
            self.prepared = True
        for n in range(first, order + 1):
            self._run(n)
        self.along_v = True
        return [g.clone().view_as(v) for g in self.g[1 : order + 1]]

    def _run(self, order: int) -> None:
        for call in self.calls[order]:
            call()

    def _extend(self) -> None:
        """Allocate what the next order needs, and prepare its calls."""
        order = len(self.calls)
        self.g.append(torch.zeros_like(self.phi))
        g = self.unflatten(self.g[-1])
        calls: list[NativeCall] = []
        for block in self.stack:
            calls += block.forward(order)
        calls += self.top.calls(order, g)
        for block in reversed(self.stack):
            calls += block.backward(order, g)
        self.calls.append(calls)
