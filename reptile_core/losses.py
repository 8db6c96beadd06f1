"""The classification loss of a minibatch as a function of phi, and its derivatives by hand.

The latter exist only for some networks; see `CrossEntropy.gradient`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reptile_core import native
from reptile_core.gradients import GradientByHand
from reptile_core.networks import Network, check_shape
from reptile_core.points import Point, Value, take


@dataclass(frozen=True)
class Minibatch:
    """Inputs and labels of one gradient.

    x: (*lanes, batch, …).
    y: (*lanes, batch), classes 0 … n_way-1.
    """

    x: Tensor
    y: Int[Tensor, "*lanes batch"]


@dataclass(frozen=True)
class CrossEntropy:
    """The classification loss of a minibatch as a function of phi, one number per lane.

    reduction: "sum", as the authors' code minimizes it, or "mean". A learning rate of 0.003 on the
        sum of 25 examples is one of 0.075 on the mean.
    """

    network: Network
    reduction: str
    _prepared: dict[tuple, GradientByHand] = field(default_factory=dict, compare=False, repr=False)
    _held: dict[tuple, list[GradientByHand]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean"):
            raise ValueError(f'reduction: expected "sum" or "mean", found {self.reduction!r}')

    def __call__(self, phi: Float[Tensor, "*lanes P"], batch: Minibatch) -> Float[Tensor, "*lanes"]:
        self._check(batch)
        if phi.requires_grad and torch.is_grad_enabled() and not batch.x.requires_grad:
            point = self.point(phi, batch)
            if point is not None:
                return Value.apply(phi, point).view(phi.shape[:-1] or batch.y.shape[:-1])
        log_p = F.log_softmax(self.network(phi, batch.x), -1)
        _check_labels(batch.y, log_p.shape[-1])
        per_example = -log_p.gather(-1, batch.y.unsqueeze(-1)).squeeze(-1)
        return per_example.sum(-1) if self.reduction == "sum" else per_example.mean(-1)

    def gradient(
        self, phi: Float[Tensor, "*lanes P"], batch: Minibatch
    ) -> Float[Tensor, "*lanes P"] | None:
        """Return L'(phi) by hand, or None where this is not possible.

        It takes one lane of a network with such blocks, on a CPU with the C loops.
        """
        make, key = self._make(phi, batch), self._key(phi, batch)
        if make is None:
            return None
        if key not in self._prepared:
            self._prepared[key] = make()
        return self._prepared[key](phi, batch.x, batch.y)

    def point(self, phi: Float[Tensor, "*lanes P"], batch: Minibatch) -> Point | None:
        """Return the loss at phi by hand with its higher derivatives, or None where not possible.

        The conditions are those of `gradient`.
        """
        make = self._make(phi, batch)
        if make is None:
            return None
        by_hand = take(self._held.setdefault(self._key(phi, batch), []), make)
        return Point(by_hand, lambda point: self(point, batch), phi, batch.x, batch.y)

    def _make(self, phi: Tensor, batch: Minibatch) -> Callable[[], GradientByHand] | None:
        """Return a function that makes the buffers to differentiate by hand, or None.

        None where differentiating by hand is not possible.
        """
        self._check(batch)
        blocks, count = self.network.blocks, batch.y.shape[-1]
        one_lane = phi.numel() == self.network.n_parameters and batch.y.numel() == count
        if not (blocks and one_lane and phi.dtype == batch.x.dtype):
            return None
        if not (native.supports_tensor(phi) and native.supports_tensor(batch.x)):
            return None
        # In float32, smooth activations stay on autograd, so that published runs keep their bits.
        if blocks.activation != "relu" and phi.dtype == torch.float32:
            return None
        _check_labels(batch.y, self.network.shapes["linear.bias"][0])
        weight = 1.0 if self.reduction == "sum" else 1 / count
        return partial(
            GradientByHand, self.network.unflatten, blocks, count, weight, phi.detach().view(-1)
        )

    def _check(self, batch: Minibatch) -> None:
        """Raise ValueError where inputs of a minibatch are not shaped as the network takes them."""
        takes, lanes = self.network.takes, batch.y.ndim - 1
        if takes is None:
            return
        without = batch.x.ndim == 1 + len(takes)  # lanes may share their inputs
        check_shape(takes, tuple(batch.x.shape[1 + (0 if without else lanes) :]), self.network.name)

    def _key(self, phi: Tensor, batch: Minibatch) -> tuple:
        """Return the key of a set of buffers.

        A thread has its own set, as the buffers are written into.
        """
        return batch.y.shape[-1], phi.dtype, get_ident()


def _check_labels(y: Int[Tensor, "*lanes batch"], classes: int) -> None:
    """Raise ValueError where labels are not classes 0 … classes - 1.

    On a GPU and in transforms of torch.func their values are not read.
    """
    if y.dtype != torch.long:
        raise ValueError(f"y: expected labels of dtype {torch.long}, found {y.dtype}")
    if y.device.type == "cpu" and y.numel() and native.plain(y):
        low, high = (int(end) for end in y.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"y: expected labels from 0 to {classes - 1}, found {low if low < 0 else high}"
            )
