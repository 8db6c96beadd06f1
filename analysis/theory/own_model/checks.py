"""Refusals of what an analysis cannot use: arguments, layers and losses.

Each is refused by name and with the way out.
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import isfinite, log
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from analysis.theory.derivatives import Vector
from analysis.theory.own_model.locate import near
from analysis.theory.own_model.losses import OwnLoss, evaluated
from analysis.theory.own_model.trees import Tree, leaves, outline
from analysis.theory.own_model.watching import named

Evaluation = Callable[[OwnLoss, Vector], Tensor]


class NotFinite(ValueError):
    """A rate at which SGD leaves the finite numbers."""


def check_rate(alpha: Any) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"alpha: expected a number, found {type(alpha).__name__}")
    rate = float(alpha)
    if not (isfinite(rate) and rate > 0):
        raise ValueError(f"alpha: expected a finite number above 0, found {rate}")
    return rate


def check_whole(name: str, value: Any, lowest: int, highest: int, why: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(
            f"{name}: expected a whole number, {lowest} … {highest}{why}, found {value}"
        )
    whole = int(value)
    if not lowest <= whole <= highest:
        raise ValueError(f"{name}: expected {lowest} … {highest}{why}, found {value}")
    return whole


def check_minibatches(
    minibatches: Iterable[tuple[Tree, Tree]], phi: Vector
) -> list[tuple[Tree, Tree]]:
    batches = list(minibatches)
    if len(batches) < 2:
        raise ValueError(f"minibatches: expected at least 2, found {len(batches)}")
    for i, batch in enumerate(batches):
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TypeError(
                f"minibatches: expected pairs (inputs, targets), found {outline(batch)} in "
                f"minibatch {i}"
            )
        if (found := outline(batch)) != (first := outline(batches[0])):
            raise ValueError(
                f"minibatches: expected all like the first, {first}, found {found} in minibatch {i}"
            )
        for _, leaf in leaves(batch):
            if isinstance(leaf, Tensor) and (
                leaf.device != phi.device or (leaf.is_floating_point() and leaf.dtype != phi.dtype)
            ):
                raise ValueError(
                    f"minibatches: expected the parameters' {phi.dtype} (or integers) on "
                    f"{phi.device}, found {leaf.dtype} on {leaf.device} in minibatch {i}"
                )
    return [(inputs, targets) for inputs, targets in batches]


def check_module(model: nn.Module) -> None:
    """Refuse layers that cannot be analysed, before anything is evaluated."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: expected a module in Python, found one compiled by torch.jit; give its original"
        )
    layers = list(model.named_modules())
    for name, layer in layers:
        own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        if any(map(is_lazy, own)):
            raise ValueError(
                f"model: expected parameters with shapes, found {named(name, layer)} not yet "
                "initialized; call the module once on inputs"
            )
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            _check_embedding(named(name, layer), layer)
    if random := [named(name, layer) for name, layer in layers if _is_random(layer)]:
        raise ValueError(
            "model: expected a function of parameters and inputs, found random layers in training: "
            f"{', '.join(random)}; set p to 0 or call .eval() on them"
        )
    parameters = set(map(id, model.parameters()))
    buffers = [(name, b) for name, b in model.named_buffers() if id(b) not in parameters]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    check_memory("model", trained, [*frozen, *buffers])


def check_memory(
    argument: str,
    trained: Iterable[tuple[str, Tensor]],
    fixed: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Refuse a trained tensor that shares memory: a step of SGD would move the other with it."""
    moving = [(*_memory(t), name, True) for name, t in trained if _has_memory(t)]
    still = [(*_memory(t), name, False) for name, t in fixed if _has_memory(t)]
    # Where all memory so far ends, and that of trained tensors, with the name of each.
    every_end = moving_end = (("", 0), "")
    for start, end, name, moves in sorted(moving + still):
        before, other = every_end if moves else moving_end
        if start < before:
            raise ValueError(
                f"{argument}: expected parameters with memory of their own, found {other} and "
                f"{name} in the same; make them one parameter, or copy one of them"
            )
        every_end = max(every_end, (end, name))
        moving_end = max(moving_end, (end, name)) if moves else moving_end


def _has_memory(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return False
    return tensor.numel() > 0 and tensor.data_ptr() != 0  # as it is on the meta device


def _memory(tensor: Tensor) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return the first address of a tensor and the one after its last, on its device."""
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    device, start = str(tensor.device), tensor.data_ptr()
    return (device, start), (device, start + (1 + steps) * tensor.element_size())


def check_loss(on_minibatch: OwnLoss, phi: Vector, i: int, evaluations: int) -> None:
    """Check that the loss is a finite scalar function of phi, with the same value each time."""
    with torch.enable_grad():
        value = on_minibatch(phi.clone().requires_grad_())
    if not isinstance(value, Tensor):
        raise TypeError(
            f"loss: expected a scalar tensor, found {type(value).__name__} on minibatch {i}"
        )
    if value.shape:
        raise ValueError(
            f"loss: expected a scalar, such as a mean, found shape {tuple(value.shape)} on "
            f"minibatch {i}"
        )
    if value.dtype != phi.dtype:
        raise ValueError(
            f"loss: expected the parameters' {phi.dtype}, found {value.dtype} on minibatch {i}"
        )
    if not value.isfinite():
        raise ValueError(f"loss: expected a finite number, found {value.item()} on minibatch {i}")
    if not value.requires_grad:
        raise ValueError(
            "loss: expected a function of the parameters, found none of them in it on minibatch "
            f"{i}"
        )
    value = value.detach()
    for how, again in _again(on_minibatch, phi, evaluations):
        if _alike(value, again):
            continue
        found = f"found {value.item()} and {again.item()} on minibatch {i}"
        if how is not _with_gradients and all(
            _alike(again, how(on_minibatch, phi)) for _ in range(3)
        ):
            raise ValueError(
                f"loss: expected the same value {HOW[how]} as with gradients, {found}; does the "
                "model write through .data, or ask whether gradients are on?"
            )
        raise ValueError(
            f"loss: expected the same value each time, {found}; is there dropout or other noise in "
            "it? Call .eval() on the layer that draws it, or fix what it draws"
        )
    with torch.enable_grad(), suppress(Exception):
        again = on_minibatch.after(near(phi), phi.clone().requires_grad_())
        on_minibatch.carries_state = not _alike(value, again)


def evaluations_against_noise(minibatches: int) -> int:
    """Return how often to evaluate the loss of each minibatch in search of noise.

    Take a block of the model that is skipped once in ten calls. With this many evaluations, those
    of a minibatch are all alike, for all minibatches, with a probability of at most 0.0005.
    """
    n = 2
    while minibatches * log(0.9**n + 0.1**n) > log(5e-4):
        n += 1
    return n


def check_finite(names: Iterable[str], exact: Tensor, alpha: float) -> None:
    is_finite = exact.isfinite().all(-1)
    bad = [name for name, finite in zip(names, is_finite, strict=True) if not finite]
    if bad:
        raise NotFinite(
            f"alpha: expected one at which all gradients stay finite, found {alpha}: "
            f"{', '.join(bad)}"
        )


def warn_of_minibatch_statistics(model: nn.Module, stacklevel: int) -> None:
    if layers := [
        named(name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, _NormBase) and (layer.training or layer.running_mean is None)
    ]:
        warnings.warn(
            (
                f"model: normalizes by the statistics of the input in {', '.join(layers)}. In "
                "torch 2.13 the second derivatives of that are wrong in two of the four orders of "
                "nesting (forward mode first), the third ones in all. Here it is computed in "
                "elementary operations, whose derivatives are right, and running statistics stay "
                "as they are; elsewhere torch's own need not agree."
            ),
            stacklevel=stacklevel,
        )


def _alike(value: Tensor, again: Tensor) -> bool:
    """Return whether two values differ by a few eps at most, as sums in another order do on a GPU.

    Noise makes them differ by far more.
    """
    round_off = 1e3 * torch.finfo(value.dtype).eps
    return bool(torch.isclose(value, again, rtol=round_off, atol=min(round_off, 1e-8)))


def _again(
    on_minibatch: OwnLoss, phi: Vector, evaluations: int
) -> Iterable[tuple[Evaluation, Tensor]]:
    """Yield each way to evaluate the loss again, with the value.

    The ways are those of derivatives, in plain torch and in torch.func where it can, and once
    without any. Random generators run on from one evaluation to the next.
    """
    ways: list[Evaluation] = [*[_with_gradients] * (evaluations - 2), evaluated]
    for how in ways:
        yield how, how(on_minibatch, phi)
    with suppress(Exception):  # the derivative itself says why
        yield _in_func, _in_func(on_minibatch, phi)


def _with_gradients(on_minibatch: OwnLoss, phi: Vector) -> Tensor:
    with torch.enable_grad():
        return on_minibatch(phi.clone().requires_grad_()).detach()


def _in_func(on_minibatch: OwnLoss, phi: Vector) -> Tensor:
    return grad_and_value(on_minibatch)(phi)[1].detach()


HOW: dict[Evaluation, str] = {evaluated: "without a graph", _in_func: "in torch.func"}


def _check_embedding(name: str, layer: nn.Embedding | nn.EmbeddingBag) -> None:
    if layer.max_norm is not None:
        raise ValueError(
            "model: expected parameters that a forward pass does not alter, found max_norm in "
            f"{name}; set it to None, and bound the norm in the optimizer's step if it must be"
        )
    if layer.scale_grad_by_freq:
        raise ValueError(
            f"model: expected gradients of the loss, found scale_grad_by_freq in {name}, which "
            "scales them; set it to False"
        )


def _is_random(layer: nn.Module) -> bool:
    if isinstance(layer, _DropoutNd):
        return layer.training and layer.p > 0
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.training and layer.dropout > 0
    return isinstance(layer, nn.RReLU) and layer.training
