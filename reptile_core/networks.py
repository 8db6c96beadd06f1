"""The paper's networks as pure functions of (parameters, inputs), for training and analysis.

Parameters are one flat vector phi with leading lanes, (*lanes, P). An SGD step, a meta-update or a
Taylor term is then one line of vector arithmetic, and theory code never sees a network. A lane is
an independent copy of everything: a task of a meta-batch, a seed, a variant. phi and inputs have
the same lanes, or one of the two has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod, sqrt
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reptile_core import native, philox
from reptile_core.gradient_blocks import Blocks, Parameters
from reptile_core.layers import convolution_batch_norm, max_pool
from reptile_core.sizes import KERNEL, same_size

if TYPE_CHECKING:
    from reptile_core.own_network import OwnNetwork

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "softplus": F.softplus, "tanh": torch.tanh}


@dataclass(frozen=True)
class Network:
    """A function of (phi, x), with the names and shapes of the parameters in phi, in order.

    blocks: what `gradients` needs to differentiate it by hand; None where that is not possible.
    takes: shape of one input; None where it is not checked.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    function: Callable[[Parameters, Tensor], Tensor]
    blocks: Blocks | None = None
    takes: tuple[int, ...] | None = None

    @staticmethod
    def of(module: nn.Module, takes: tuple[int, ...], name: str | None = None) -> "OwnNetwork":
        """Return a network made from your own module, to be the `network` of a Run.

        module: maps x (batch, *takes) to logits (batch, n_way). It is copied, and phi starts at its
            parameters that require a gradient. Batch norm in training mode uses the batch at hand,
            as in the paper's networks.
        takes: shape of one input, such as (1, 28, 28).
        name: appears in errors and in the run's key; by default the name of the module's type.

        Raises ValueError or TypeError where the module is not a function of parameters and inputs,
        such as with dropout.
        """
        from reptile_core.own_network import of_module  # here, as it imports this module

        return of_module(module, takes, name)

    def check(self, x: Tensor) -> None:
        """Raise ValueError where x has another shape than the network takes.

        x: (*lanes, batch, *takes).
        """
        if self.takes is not None:
            check_shape(self.takes, tuple(x.shape[-len(self.takes) :]), self.name)

    @property
    def n_parameters(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())

    def __call__(
        self, phi: Float[Tensor, "*lanes P"], x: Tensor
    ) -> Float[Tensor, "*lanes batch out"]:
        self.check(x)
        return self.function(self.unflatten(phi), x)

    def unflatten(self, phi: Float[Tensor, "*lanes P"]) -> Parameters:
        """Return views into phi by name.

        They come from one split, whose derivative is one concatenation.
        """
        if phi.shape[-1] != self.n_parameters:
            raise ValueError(
                f"phi: expected {self.n_parameters} parameters for {self.name}, found "
                f"{phi.shape[-1]}"
            )
        parts = phi.split([prod(shape) for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(*phi.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def initialize(self, seed: int, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, " P"]:
        """Return Glorot-uniform weights, zero shifts and unit scales.

        These are TensorFlow's defaults, which the authors used. They are drawn on the CPU from the
        counter-based generator, so that every device starts from the same bits.
        """
        draws = philox.uniform(seed, philox.Purpose.INITIALIZATION, self.n_parameters)
        parts = []
        for (name, shape), u in zip(
            self.shapes.items(), draws.split([prod(s) for s in self.shapes.values()]), strict=True
        ):
            if name.endswith("weight"):
                fan_in, fan_out = shape
                if name.startswith("conv"):  # TensorFlow counts the receptive field in both fans
                    fan_out *= KERNEL**2
                parts.append((2 * u - 1) * sqrt(6 / (fan_in + fan_out)))
            else:
                parts.append(torch.full_like(u, float(name.endswith("scale"))))
        return torch.cat(parts).to(dtype)


def _convolutional(
    name: str, *, n_way: int, size: int, channels: int, filters: int, activation: str, pool: bool
) -> Network:
    """Return a network of four blocks of convolution and batch norm, then a linear layer.

    Each block halves the size, by stride or by pooling.
    """
    if n_way < 2:
        raise ValueError(f"n_way: expected at least 2 classes, found {n_way}")
    act, side = _activation(activation), size
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(4):
        c_in = channels if block == 0 else filters
        shapes[f"conv{block}.weight"] = (KERNEL**2 * c_in, filters)
        shapes[f"norm{block}.scale"] = shapes[f"norm{block}.shift"] = (filters,)
        size = same_size(size, 2)
    shapes["linear.weight"] = (size * size * filters, n_way)
    shapes["linear.bias"] = (n_way,)

    def function(p: Parameters, x: Tensor) -> Tensor:
        x = x if channels > 1 else x.unsqueeze(-1)
        for block in range(4):
            weight, scale, shift = (
                p[f"conv{block}.weight"],
                p[f"norm{block}.scale"],
                p[f"norm{block}.shift"],
            )
            if pool:
                x = act(max_pool(convolution_batch_norm(x, weight, scale, shift, stride=1)))
            else:
                x = convolution_batch_norm(x, weight, scale, shift, stride=2, activation=act)
        return x.flatten(-3) @ p["linear.weight"] + p["linear.bias"].unsqueeze(-2)

    # Where pooling follows it, a smooth activation could round different inputs to equal maxima.
    by_hand = (
        (act is F.relu or not pool)
        and native.supports_channels(filters)
        and KERNEL**2 * channels < filters
    )
    takes = (side, side) if channels == 1 else (side, side, channels)
    blocks = Blocks(side, channels, pool, activation) if by_hand else None
    return Network(name, shapes, function, blocks, takes)


def omniglot(n_way: int, *, activation: str = "relu") -> Network:
    """Return the paper's Omniglot network.

    It maps x (*lanes, batch, 28, 28) in [0, 1] to logits (*lanes, batch, n_way).
    """
    return _convolutional(
        "omniglot", n_way=n_way, size=28, channels=1, filters=64, activation=activation, pool=False
    )


def mini_imagenet(
    n_way: int,
    *,
    size: int = 84,
    filters: int = 32,
    activation: str = "relu",
    name: str = "mini_imagenet",
) -> Network:
    """Return the paper's Mini-ImageNet network.

    It maps x (*lanes, batch, size, size, 3) to logits (*lanes, batch, n_way).
    """
    return _convolutional(
        name,
        n_way=n_way,
        size=size,
        channels=3,
        filters=filters,
        activation=activation,
        pool=True,
    )


def mlp(widths: tuple[int, ...] = (1, 64, 64, 1), *, activation: str = "tanh") -> Network:
    """Return a fully connected network, by default the one for sine waves.

    It maps x (*lanes, batch, widths[0]) to (*lanes, batch, widths[-1]). The paper says ReLU for the
    sine waves, but the authors' published script uses tanh. Both are an option here.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths: expected at least two positive widths, found {widths}")
    act = _activation(activation)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, fans in enumerate(pairwise(widths)):
        shapes |= {f"linear{layer}.weight": fans, f"linear{layer}.bias": fans[1:]}

    def function(p: Parameters, x: Tensor) -> Tensor:
        last = len(widths) - 2
        for layer in range(last + 1):
            x = x @ p[f"linear{layer}.weight"] + p[f"linear{layer}.bias"].unsqueeze(-2)
            x = act(x) if layer < last else x
        return x

    return Network("mlp", shapes, function, takes=widths[:1])


def check_shape(takes: tuple[int, ...], found: tuple[int, ...], name: str) -> None:
    """Raise ValueError where images have another shape than a network takes.

    The message says how to get from one shape to the other, where it is known.
    """
    if found == takes:
        return
    if len(takes) == 3 and found == (takes[-1], *takes[:-1]):
        way = "; they have their channels first: images.movedim(-3, -1) puts them last"
    elif len(takes) == 3 and found == (*takes[1:], takes[0]):
        way = "; they have their channels last: images.movedim(-1, -3) puts them first"
    elif found == (1, *takes) or found == (*takes, 1):
        axis = -len(found) if found == (1, *takes) else -1
        way = f"; images.squeeze({axis}) drops their single channel"
    elif takes == (1, *found) or takes == (*found, 1):
        axis = -len(takes) if takes == (1, *found) else -1
        way = f"; images.unsqueeze({axis}) adds a single channel"
    else:
        way = ""
    raise ValueError(
        f"images: expected shape {takes} each for the network {name}, found {found}{way}"
    )


def _activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, found {name!r}")
    return ACTIVATIONS[name]
