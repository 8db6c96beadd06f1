"""The state of the caller's objects, kept and put back: an analysis changes none of them.

An analysis evaluates a model some hundred times. A model may write into buffers, keep activations,
count its calls, or alter its own options or hooks, and a hook may append to a list elsewhere. A
keeper holds shallow copies of every dict, list and set that is reachable from the model, and copies
of the tensors that are not parameters. It puts back what differs, with its old identity.
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A container of more entries, such as a vocabulary, is neither searched nor compared in each call.
MANY = 1000
# Levels of objects other than modules that are searched: a model may refer to its trainer, and that
# to all data.
DEEP = 6


class Keeper:
    """The state of what is reachable from some objects, as it was when the keeper was made."""

    def __init__(self, *roots: Any):
        self._dicts: list[tuple[dict, dict]] = []
        self._lists: list[tuple[Any, list]] = []
        self._tensors: dict[int, _Held] = {}
        self._generators: list[Callable[[], Any]] = []
        self._seen: set[int] = set()
        for root in roots:
            self._look_at(root, DEEP, inside=False)
        # Most are empty, such as a module's dicts of hooks. Only their truth value is looked at.
        self._empty = [held for held, copy in self._dicts if not copy]
        self._dicts = [(held, copy) for held, copy in self._dicts if copy]

    def put_back(self, *, everything: bool = False) -> None:
        """Put back what differs.

        everything: include containers of many entries, and random generators.
        """
        if any(self._empty):
            for held in self._empty:
                held.clear()
        for held, copy in self._dicts:
            if (everything or len(copy) <= MANY) and not _same_dict(held, copy):
                held.clear()
                held.update(copy)
        for entries, before in self._lists:
            if (everything or len(before) <= MANY) and not _same_list(entries, before):
                entries.clear()
                entries.update(before) if isinstance(entries, set) else entries.extend(before)
        for tensor in self._tensors.values():
            tensor.put_back()
        if everything:
            for restore in self._generators:
                restore()

    def _look_at(self, thing: Any, depth: int, *, inside: bool) -> None:
        """Note a thing and what it holds.

        inside: whether it is inside a module, where the values of tensors are state too.
        """
        if depth < 0 or id(thing) in self._seen or thing is None or isinstance(thing, _PLAIN):
            return
        self._seen.add(id(thing))
        if isinstance(thing, nn.Module):  # the depth counts from the module that holds a thing
            self._look_at(vars(thing), DEEP, inside=True)
        elif isinstance(thing, Tensor):
            if inside:
                self._tensors[id(thing)] = _Held(thing)
                self._look_at(getattr(thing, "_backward_hooks", None), depth, inside=True)
        elif isinstance(thing, dict):
            self._dicts.append((thing, dict(thing)))
            self._all_of(thing.values(), depth, inside)
        elif isinstance(thing, list | set | deque):
            self._lists.append((thing, list(thing)))
            self._all_of(thing, depth, inside)
        elif isinstance(thing, tuple):
            self._all_of(thing, depth, inside)
        elif isinstance(thing, FunctionType | MethodType | partial):
            for other in _behind(thing):
                self._look_at(other, depth - 1, inside=False)
        elif (restore := _restoring(thing)) is not None:
            self._generators.append(restore)
        elif (
            hasattr(thing, "__dict__")
            and type(thing).__module__.split(".")[0] not in _NOT_THE_CALLERS
        ):
            self._look_at(vars(thing), depth - 1, inside=inside)

    def _all_of(self, things: Collection[Any], depth: int, inside: bool) -> None:
        if len(things) <= MANY:
            for thing in list(things):
                self._look_at(thing, depth - 1, inside=inside)


class _Held:
    """A tensor with its values, copied when this is made: what is altered in place is lost."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.gradient = tensor, tensor.grad if tensor.is_leaf else None
        self.requires = tensor.requires_grad if tensor.is_leaf else None
        # Parameters are never written to: others stand in their places while a model runs.
        own = (
            isinstance(tensor, nn.Parameter)
            or tensor.is_inference()
            or tensor.layout != torch.strided
        )
        self.version = None if own else tensor._version
        self.values = None if own else tensor.detach().clone()

    def put_back(self) -> None:
        if self.requires is not None and self.tensor.requires_grad != self.requires:
            self.tensor.requires_grad_(self.requires)
        if self.requires is not None and self.tensor.grad is not self.gradient:
            self.tensor.grad = self.gradient
        if self.values is not None and self.tensor._version != self.version:
            with torch.no_grad():
                self.tensor.copy_(self.values)
            self.version = self.tensor._version


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Leave the global generators of torch, Python and NumPy as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


_NOT_THE_CALLERS = {*sys.stdlib_module_names, "torch", "numpy", "pandas"}
_PLAIN = (
    str, bytes, int, float, complex, bool, type, type(torch), torch.dtype, torch.device, torch.Size,
)  # fmt: skip


def _behind(thing: Any) -> list[Any]:
    """Return what a function can reach.

    That is its defaults, what it closes over, and the containers and modules that it names.
    """
    if isinstance(thing, partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
    named = (thing.__globals__.get(name) for name in thing.__code__.co_names)
    holders = [value for value in named if isinstance(value, dict | list | set | deque | nn.Module)]
    return [*cells, *(thing.__defaults__ or ()), *holders]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _restoring(thing: Any) -> Callable[[], Any] | None:
    """Return a function that takes a random generator back to its present state.

    Returns None for what is no generator.
    """
    if isinstance(thing, torch.Generator):
        return partial(thing.set_state, thing.get_state())
    if isinstance(thing, random.Random):
        return partial(thing.setstate, thing.getstate())
    if isinstance(thing, np.random.Generator):
        return partial(setattr, thing.bit_generator, "state", thing.bit_generator.state)
    if isinstance(thing, np.random.RandomState):
        return partial(thing.set_state, thing.get_state())
    return None


def _same_dict(held: dict, copy: dict) -> bool:
    return (
        len(held) == len(copy)
        and all(map(is_, held.values(), copy.values()))
        and all(map(is_, held, copy))
    )


def _same_list(held: Any, copy: list) -> bool:
    return len(held) == len(copy) and all(map(is_, held, copy))
