"""The functions that a model calls, and where it calls them.

This finds stopped gradients, functions with kinks, and the layer in which an error arose.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

OURS = "analysis.theory."


@dataclass(frozen=True)
class Call:
    """One call of a torch function: by which layer, with which arguments, and with what result."""

    function: Callable[..., Any]
    name: str
    layer: str  # "'path' (Type)", or what else made the call
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    varies: bool  # whether some float among the arguments required a gradient before the call
    with_grad: bool  # not under no_grad
    constant: bool  # whether it gave floats none of which requires a gradient
    # In the forward pass of a torch.autograd.Function, whose backward pass speaks for itself.
    in_rule: bool

    @property
    def place(self) -> str:
        """The function and the layer that called it, in words."""
        return f"{self.name} in {self.layer}" if self.layer else self.name


class Watcher(TorchFunctionMode):
    """A mode that hears of every function that a model calls, but of none inside another."""

    def __init__(self, layers: dict[int, str], listen: Callable[[Call], None]):
        super().__init__()
        self._layers, self._listen = layers, listen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        varies = _varies((args, kwargs))  # asked first, as detach_ makes its argument a constant
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            frame = sys._getframe(1)
            with_grad, in_rule = torch.is_grad_enabled(), _in_rule(frame)
            layer = calling_layer(frame, self._layers)
            results = [leaf for leaf in tree_leaves(result) if _is_number(leaf)]
            constant = bool(results) and not any(leaf.requires_grad for leaf in results)
            name = _name(func)
            self._listen(
                Call(func, name, layer, args, kwargs, result, varies, with_grad, constant, in_rule)
            )
        return result


def layer_names(model: Any) -> dict[int, str]:
    """Return the names of a model's modules, by their identity."""
    if not isinstance(model, nn.Module):
        return {}
    return {id(m): named(name, m) for name, m in model.named_modules()}


def named(name: str, layer: nn.Module) -> str:
    return f"'{name}' ({type(layer).__name__})" if name else type(layer).__name__


def calling_layer(frame: FrameType | None, layers: dict[int, str]) -> str:
    """Return the innermost layer at work in a frame, or else the caller's innermost function."""
    function = ""
    while frame is not None:
        if layer := _layer_of(frame, layers):
            return layer
        package = frame.f_globals.get("__name__", "")
        if package.startswith(OURS):
            break
        if not function and not package.startswith("torch."):
            function = f"{frame.f_code.co_name} (line {frame.f_lineno})"
        frame = frame.f_back
    return function


def failing_layer(traceback: TracebackType | None, layers: dict[int, str]) -> str:
    """Return the innermost layer that an error passed through."""
    found = ""
    while traceback is not None:
        found = _layer_of(traceback.tb_frame, layers) or found
        traceback = traceback.tb_next
    return found


def stopped_gradients(calls: list[Call]) -> Iterator[str]:
    """Yield the calls that cut a float off from the parameters that it depends on."""
    for call in calls:
        if call.in_rule or not call.varies or call.name in NEW or call.name.startswith("__set"):
            continue
        if call.name in NUMBERS or _is_padding(call):
            yield call.place
        elif call.constant and (call.name in DETACHING or not call.with_grad):
            yield f"{call.name if call.name in DETACHING else 'no_grad'} in {call.layer}"


def kinks(calls: list[Call], beyond: list[Call] | None = None) -> Iterator[str]:
    """Yield the calls of functions that have a kink or a jump somewhere.

    beyond: the same calls at another point. A function with a kink at 0 is then named only if some
        number crosses it between the points.
    """
    for call, other in zip(calls, beyond or calls, strict=False):
        name = call.name.removesuffix("_")
        if name not in KINKED or not call.varies:
            continue
        if beyond is None or name not in AT_ZERO or call.name != other.name:
            yield call.place
        elif crossing := int((call.args[0] * other.args[0] <= 0).sum()):
            yield f"{call.place}, where {crossing} of {call.args[0].numel()} numbers cross it"


DETACHING = {"detach", "data", "detach_"}
NUMBERS = {"item", "__float__", "tolist", "numpy", "__array__"}
NEW = {
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
    "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "is_floating_point", "size",
    "dim",
}  # fmt: skip


def at_zero(calls: list[Call]) -> Iterator[str]:
    """Yield the calls of functions with a kink at 0 that get a 0."""
    for call in calls:
        if call.name.removesuffix("_") in AT_ZERO and bool((call.args[0] == 0).any()):
            yield call.place


AT_ZERO = {"relu", "leaky_relu", "prelu", "elu", "selu", "celu", "abs", "absolute"}
KINKED = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "hardtanh", "hardswish",
    "hardsigmoid", "hardshrink", "softshrink", "threshold", "abs", "absolute", "clamp", "clip",
    "clamp_min", "clamp_max", "max", "min", "amax", "amin", "maximum", "minimum", "fmax", "fmin",
    "sort", "topk", "median", "kthvalue", "max_pool1d", "max_pool2d", "max_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "fractional_max_pool2d",
    "fractional_max_pool3d", "l1_loss", "smooth_l1_loss", "huber_loss", "quantile",
    "hinge_embedding_loss", "margin_ranking_loss", "multi_margin_loss", "multilabel_margin_loss",
    "cummax", "cummin", "triplet_margin_loss", "triplet_margin_with_distance_loss",
    "cosine_embedding_loss", "sign", "round", "floor", "ceil", "trunc", "frac", "remainder", "fmod",
    "where", "norm", "vector_norm", "cdist", "pdist", "argmax", "pairwise_distance", "nuclear_norm",
    "matrix_norm", "svdvals", "gumbel_softmax", "nanmedian", "aminmax", "int", "long", "short",
    "bool",
}  # fmt: skip


def _in_rule(frame: FrameType | None) -> bool:
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "apply" and module == "torch.autograd.function":
            return True
        frame = frame.f_back
    return False


def _layer_of(frame: FrameType, layers: dict[int, str]) -> str:
    return layers.get(id(frame.f_locals.get("self")), "")


def _is_padding(call: Call) -> bool:
    if call.name != "embedding":
        return False
    values = dict(zip(("input", "weight", "padding_idx"), call.args, strict=False)) | call.kwargs
    padding = values.get("padding_idx")
    return padding is not None and bool((values["input"] == padding % len(values["weight"])).any())


def _varies(arguments: Any) -> bool:
    return any(_is_number(leaf) and leaf.requires_grad for leaf in tree_leaves(arguments))


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _name(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":  # of an attribute, such as data
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name
