"""Losses of one vector, made from models and minibatches, which leave the model as it was."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.utils.rnn import PackedSequence

from analysis.theory.derivatives import Vector
from analysis.theory.own_model.keeping import Keeper
from analysis.theory.own_model.trees import (
    Tree,
    fresh,
    is_named_tuple,
    is_record,
    leaves,
    map_leaves,
)
from analysis.theory.torch_fixes import right_derivatives

# A pass that recomputes values would meet the caller's parameters, not those of this evaluation.
NO_HOOKS = "saved tensors are hooked, as by gradient checkpointing"


class OwnLoss:
    """The loss on one minibatch, as a function of the vector of all parameters.

    Each call starts from the same state. Inputs, targets and buffers are copies, and whatever else
    the model keeps is put back afterwards.
    """

    def __init__(
        self,
        function: Callable[[Tree, Tree], Tree],
        loss: Callable[[Any, Any], Tensor],
        unflatten: Callable[[Vector], Tree],
        minibatch: tuple[Tree, Tree],
        keeper: Keeper,
    ):
        self.function, self._loss, self._unflatten = function, loss, unflatten
        self._minibatch, self._keeper = minibatch, keeper
        self.alters_its_data = self.carries_state = False

    def __call__(self, phi: Vector) -> Tensor:
        return self.watched(phi, nullcontext())

    def watched(self, phi: Vector, watcher: AbstractContextManager) -> Tensor:
        """Evaluate the loss under a torch function mode.

        Each function that the model or the loss calls goes through it.
        """
        inputs, targets = copies = fresh(self._minibatch)
        versions = _versions(copies)
        try:
            with right_derivatives(), disable_saved_tensors_hooks(NO_HOOKS), watcher:
                return self._loss(self.function(self._unflatten(phi), inputs), targets)
        finally:
            self._keeper.put_back()
            self.alters_its_data |= versions != _versions(copies)

    def after(self, before: Vector, phi: Vector) -> Tensor:
        """Return the loss at phi in the state that an evaluation at `before` has left."""
        try:
            with right_derivatives(), disable_saved_tensors_hooks(NO_HOOKS):
                for point in (before, phi):
                    values, (inputs, targets) = self._unflatten(point), fresh(self._minibatch)
                    if isinstance(self.function, ModuleFunction):
                        self.function.exchange(values, buffers=point is before)
                        outputs = self.function.run(inputs)
                    else:
                        outputs = self.function(values, inputs)
                    value = self._loss(outputs, targets)
        finally:
            self._keeper.put_back()
        return value.detach()

    def gradient_of_the_module_itself(self) -> Vector:
        """Return the gradient as any training loop takes it.

        It is in the caller's parameters, by plain torch.
        """
        assert isinstance(self.function, ModuleFunction)
        inputs, targets = fresh(self._minibatch)
        try:
            self.function.exchange(self.function.parameters)
            value = self._loss(self.function.run(inputs), targets)
            own = list(self.function.parameters.values())
            parts = torch.autograd.grad(value, own, allow_unused=True, materialize_grads=True)
        finally:
            self._keeper.put_back()
        return torch.cat([part.to_dense().flatten() for part in parts])


class ModuleFunction:
    """A module as a function of (parameters, inputs).

    Its parameters are exchanged wherever they are used. A parameter or a module may have several
    names. A parameter may also be in a list, tuple or dict that a module keeps, as those of
    recurrent layers are. The keeper puts the caller's own back after each call.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        named = list(model.named_parameters())
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.frozen = [p for _, p in named if not p.requires_grad]
        # The places of parameters and buffers. A keeper makes sure that they are the same before
        # each call.
        self._parameters: list[tuple[dict[str, Any], str, int]] = []
        self._buffers: list[tuple[dict[str, Any], str, Tensor]] = []
        self._kept: list[tuple[dict[str, Any], str, Any]] = []
        for module in model.modules():
            slots = vars(module)
            parameters, buffers = slots["_parameters"], slots["_buffers"]
            self._parameters += [
                (parameters, name, id(p)) for name, p in parameters.items() if p is not None
            ]
            self._buffers += [(buffers, name, b) for name, b in buffers.items() if b is not None]
            for name, value in slots.items():
                if name != "_parameters" and _holds_parameters(value):
                    self._kept.append((slots, name, value))
        self._signature = _signature(model)

    def __call__(self, values: dict[str, Tensor], inputs: Tree) -> Tree:
        self.exchange(values)
        return self.run(inputs)

    def run(self, inputs: Tree) -> Tree:
        """Call the module with the parameters and buffers that it has now."""
        args, kwargs = self.arguments(inputs)
        return self.model(*args, **kwargs)

    def exchange(
        self, values: Mapping[str, Tensor], *, like: Sequence[Tensor] = (), buffers: bool = True
    ) -> None:
        """Put `values` in the parameters' places, and copies where frozen ones and buffers are.

        The copies may be written to. A buffer is on the levels of torch.func on which the
        parameters are, so that what is computed from them can be written into it.

        buffers: False to leave the buffers as the last call left them.
        """
        others = {id(p): values[name] for name, p in self.parameters.items()}
        others |= {id(p): p.detach().clone() for p in self.frozen}
        for slots, name, identity in self._parameters:
            slots[name] = others[identity]
        if self._buffers and buffers:
            zero = next(iter([*values.values(), *like])).new_zeros(())
            for slots, name, buffer in self._buffers:
                if id(buffer) not in others:  # once, where two modules share it
                    others[id(buffer)] = _writable(buffer, zero)
                slots[name] = others[id(buffer)]
        for slots, name, value in self._kept:
            slots[name] = map_leaves(lambda leaf: others.get(id(leaf), leaf), value)

    def arguments(self, inputs: Tree) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the arguments and keywords by which the module takes its inputs.

        A tuple becomes several arguments, a mapping becomes keywords where they fit.
        """
        if isinstance(inputs, Mapping):
            return ((), dict(inputs)) if self._takes(**inputs) else ((inputs,), {})
        if isinstance(inputs, PackedSequence) or is_record(inputs) or not isinstance(inputs, tuple):
            return (inputs,), {}
        if is_named_tuple(inputs):
            apart = self._names_of_arguments()[: len(inputs)] == list(inputs._fields)  # type: ignore[attr-defined]
            return (inputs, {}) if apart or not self._takes(inputs) else ((inputs,), {})
        return inputs, {}

    def _names_of_arguments(self) -> list[str]:
        return list(self._signature.parameters) if self._signature else []

    def _takes(self, *args: Any, **kwargs: Any) -> bool:
        if self._signature is None:
            return not kwargs
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True


def evaluated(loss: Callable[[Vector], Tensor], phi: Vector) -> Tensor:
    """Evaluate a loss without a graph.

    It gets one where the model itself takes gradients, as of an energy.
    """
    try:
        with torch.no_grad():
            return loss(phi)
    except RuntimeError:
        with torch.enable_grad():
            return loss(phi.detach().clone().requires_grad_()).detach()


def flatten(parameters: Tree) -> tuple[Vector, Callable[[Vector], Tree]]:
    """Return one vector of all parameters, in the order of their tree, and the way back."""
    found = list(leaves(parameters))
    if not found:
        raise ValueError("parameters: expected at least one that requires a gradient, found none")
    for path, leaf in found:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"parameters: expected tensors, found {type(leaf).__name__} at {path}")
        if not leaf.is_floating_point():
            raise TypeError(
                f"parameters: expected real floating-point numbers, found {leaf.dtype} at {path}"
            )
    if len(kinds := {f"{leaf.dtype} on {leaf.device}" for _, leaf in found}) > 1:
        raise ValueError(
            f"parameters: expected one dtype and device, found {', '.join(sorted(kinds))}"
        )
    shapes = [leaf.shape for _, leaf in found]

    def unflatten(vector: Vector) -> Tree:
        parts = iter(vector.split([shape.numel() for shape in shapes]))
        order = iter(shapes)
        return map_leaves(lambda _: next(parts).reshape(next(order)), parameters)

    return torch.cat([leaf.detach().clone().flatten() for _, leaf in found]), unflatten


def _entries(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _holds_parameters(value: Any) -> bool:
    return any(isinstance(entry, nn.Parameter) for entry in _entries(value))


def _versions(tree: Tree) -> list[int]:
    return [leaf._version for _, leaf in leaves(tree) if isinstance(leaf, Tensor)]


def _writable(buffer: Tensor, zero: Tensor) -> Tensor:
    copy = buffer.detach().clone()
    if buffer.is_floating_point() and buffer.layout == torch.strided:
        return copy + zero.to(copy)
    return copy


def _signature(model: nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # of functions in C
        return None
