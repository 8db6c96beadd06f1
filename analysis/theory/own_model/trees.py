"""Tensors in whatever holds them.

These are dicts, lists, tuples, named tuples, data classes and packed sequences.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Tree = Any  # a tensor, or what holds tensors


def map_leaves(f: Callable[[Any], Any], tree: Tree) -> Tree:
    """Return the same tree with f of every leaf.

    Mappings other than dicts become dicts.
    """
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, PackedSequence):
        data = f(tree.data)
        return tree._replace(data=data) if isinstance(data, Tensor) else data
    if is_record(tree):
        changed = copy.copy(tree)
        for field in fields(tree):  # a frozen data class sets its own fields in this way too
            object.__setattr__(changed, field.name, map_leaves(f, getattr(tree, field.name)))
        return changed
    if isinstance(tree, Mapping):
        mapped = {key: map_leaves(f, value) for key, value in tree.items()}
        return type(tree)(mapped) if type(tree) is not dict and isinstance(tree, dict) else mapped
    if is_named_tuple(tree):
        return type(tree)._make(map_leaves(f, value) for value in tree)
    if isinstance(tree, tuple | list):
        return type(tree)(map_leaves(f, value) for value in tree)
    return f(tree)


def leaves(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Yield every leaf after the path that leads to it, such as ['key'], [0] or .field."""
    if isinstance(tree, Tensor):
        yield "", tree
    elif isinstance(tree, PackedSequence):
        yield ".data", tree.data
    elif is_record(tree):
        yield from _below([(f".{field.name}", getattr(tree, field.name)) for field in fields(tree)])
    elif isinstance(tree, Mapping):
        yield from _below([(f"[{key!r}]", value) for key, value in tree.items()])
    elif is_named_tuple(tree):
        yield from _below(
            [(f".{name}", value) for name, value in zip(tree._fields, tree, strict=True)]
        )
    elif isinstance(tree, tuple | list):
        yield from _below([(f"[{i}]", value) for i, value in enumerate(tree)])
    else:
        yield "", tree


def fresh(tree: Tree) -> Tree:
    """Return the tree with copied tensors: altering these alters no data of the caller's."""
    return map_leaves(copied, tree)


def copied(leaf: Any) -> Any:
    """Return a copy of a tensor, without its graph; anything else as it is."""
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def outline(tree: Tree) -> str:
    """Describe what minibatches have in common.

    That is the structure, the dtypes, and the shapes but for the first dimension.
    """

    def describe(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return type(leaf).__name__
        shape = ["*", *map(str, leaf.shape[1:])] if leaf.ndim else []
        return f"{leaf.dtype}[{', '.join(shape)}]"

    if isinstance(tree, list):
        tree = tuple(tree)
    return str(map_leaves(describe, tree)).replace("'", "")


def is_record(tree: Tree) -> bool:
    return is_dataclass(tree) and not isinstance(tree, type)


def is_named_tuple(tree: Tree) -> bool:
    return isinstance(tree, tuple) and hasattr(tree, "_fields")


def _below(children: list[tuple[str, Tree]]) -> Iterator[tuple[str, Any]]:
    for path, child in children:
        for rest, leaf in leaves(child):
            yield path + rest, leaf
