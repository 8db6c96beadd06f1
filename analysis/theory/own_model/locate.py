"""Where a derivative goes wrong: each layer, then each function that the layer calls, alone and by the same channels.

A layer or function alone is a scalar of its own parameters and inputs: the sum of its results with fixed weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analysis.theory.derivatives import Loss, Vector, gradient
from analysis.theory.own_model.keeping import Keeper
from analysis.theory.own_model.loops import Way, forward, reverse
from analysis.theory.own_model.losses import ModuleFunction, OwnLoss, flatten
from analysis.theory.own_model.quotients import DIFFERS, KINK, compare, differences
from analysis.theory.own_model.trees import leaves, map_leaves
from analysis.theory.own_model.watching import Call, Watcher, layer_names, named
from analysis.theory.written_out import right_derivatives

MOST_CALLS = 200  # of functions that are looked at: each takes some tens of evaluations
ORDERS = "gradient", "second derivative", "third derivative"


def culprits(model: Any, loss: OwnLoss, phi: Vector, order: int, *, failing: bool = False) -> list[str]:
    """Names the layers, and in them the functions, whose derivatives up to `order` differ from differences, or fail.

    failing: only those that fail.
    """
    found = []
    if isinstance(model, nn.Module):
        found = _in_layers(model, "", _layer_calls(model, loss, phi), order)
    blamed = {layer for layer, _ in found}
    calls = [c for c in heard(model, loss, phi) if not isinstance(model, nn.Module) or not blamed or c.layer in blamed]
    functions: dict[str, str] = {}
    for call in calls[:MOST_CALLS]:
        if call.name in NO_FUNCTIONS or not (fault := _fault_of_call(call, order)):
            continue
        functions.setdefault(f"{call.name} in {call.layer}" if call.layer else call.name, fault)
    named_in = {layer for layer, _ in found if any(name.endswith(f" in {layer}") for name in functions)}
    rest = [f"{layer}: {fault}" for layer, fault in found if layer not in named_in]
    faults = [*(f"{name}: {fault}" for name, fault in functions.items()), *rest]
    return [fault for fault in faults if " fails in " in fault] if failing else faults


def heard(model: Any, loss: OwnLoss, phi: Vector) -> list[Call]:
    """Lists the functions that a model and a loss call, in their order."""
    calls: list[Call] = []
    with torch.enable_grad():
        loss.watched(phi.clone().requires_grad_(), Watcher(layer_names(model), calls.append))
    return calls


@dataclass(frozen=True)
class _LayerCall:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _layer_calls(model: nn.Module, loss: OwnLoss, phi: Vector) -> dict[int, _LayerCall]:
    """The first call of each module, by the module's identity."""
    calls: dict[int, _LayerCall] = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(id(module), _LayerCall(_constants(args), _constants(kwargs)))

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        with torch.no_grad():
            loss(phi)  # which puts back the hooks that there were
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _in_layers(module: nn.Module, path: str, calls: dict[int, _LayerCall], order: int) -> list[tuple[str, str]]:
    """The innermost layers inside a module that are at fault, with their faults."""
    found = []
    for name, child in module.named_children():
        full = f"{path}.{name}" if path else name
        fault = _fault_of_layer(child, calls[id(child)], order) if id(child) in calls else ""
        if fault or id(child) not in calls:  # such as a list of layers
            found += _in_layers(child, full, calls, order) or ([(named(full, child), fault)] if fault else [])
    return found


def _fault_of_layer(module: nn.Module, call: _LayerCall, order: int) -> str:
    function = ModuleFunction(module)
    keeper = Keeper(module)
    inputs = [leaf for _, leaf in leaves((call.args, call.kwargs)) if _is_number(leaf)]
    parameters = {"parameters": function.parameters, "inputs": inputs}

    def run(values: Any, _: Any) -> Any:
        exchanged = iter(values["inputs"])
        args, kwargs = map_leaves(lambda leaf: next(exchanged) if _is_number(leaf) else leaf, (call.args, call.kwargs))
        function.exchange(values["parameters"], like=values["inputs"])
        return module(*args, **kwargs)

    if not function.parameters and not inputs:
        return ""
    x, unflatten = flatten(parameters)
    return _fault(OwnLoss(run, _weighted, unflatten, ((), ()), keeper), x, order)


def _fault_of_call(call: Call, order: int) -> str:
    arguments = call.args, call.kwargs
    inputs = [leaf for _, leaf in leaves(arguments) if _is_number(leaf) and leaf.requires_grad]
    if not inputs:
        return ""
    x, unflatten = flatten(inputs)

    def value(point: Vector) -> Tensor:
        exchanged = iter(unflatten(point))
        args, kwargs = map_leaves(
            lambda leaf: next(exchanged) + 0 if _is_number(leaf) and leaf.requires_grad else leaf, arguments
        )
        with right_derivatives():
            return _weighted(call.function(*args, **kwargs))

    return _fault(value, x, order)


def _fault(f: Loss, x: Vector, order: int) -> str:
    """Tells in which order, and by which mode, the derivative of f is another than that by differences."""
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.randn(len(x), generator=generator, dtype=torch.float64).to(x) for _ in range(2))
    u, v = u / u.norm(), v / v.norm()
    length = float(x.norm()) + 0.01 * len(x) ** 0.5
    with torch.no_grad():
        start = f(x)
        if not (isinstance(start, Tensor) and start.isfinite()):
            return ""
        slope = differences(lambda t: f(x + t * u), start, length)[0]
    try:
        g = gradient(f, x)
    except RuntimeError:  # the results depend on nothing here
        return ""
    first = compare("", g @ u, slope, size=float(g.norm()) / len(x) ** 0.5)
    if first.verdict in (DIFFERS, KINK):
        return f"its {ORDERS[0]} differs" if first.verdict == DIFFERS else "it has a kink here"
    if order >= 2 and (fault := _of_order(2, f, x, [v], length)):
        return fault
    return _of_order(3, f, x, [v, u], length) if order >= 3 else ""


def _of_order(n: int, f: Loss, x: Vector, directions: Sequence[Vector], length: float) -> str:
    lower = partial(gradient, f) if n == 2 else _second(f, x, directions[0])
    if lower is None:
        return ""
    quotient = differences(lambda t: lower(x + t * directions[-1]), lower(x), length)[0]
    for way, mode in ((forward, "forward"), (reverse, "reverse")):
        try:
            found = compare("", way(f, x, *directions), quotient)
        except Exception as error:
            return f"its {ORDERS[n - 1]} fails in {mode} mode ({_first_line(error)})"
        if found.verdict == DIFFERS:
            return f"its {ORDERS[n - 1]} differs in {mode} mode"
    return ""


def _second(f: Loss, x: Vector, v: Vector) -> Callable[[Vector], Vector] | None:
    for way in (reverse, forward):
        try:
            way(f, x, v)
        except Exception:
            continue
        return partial(_along, way, f, v)
    return None


def _along(way: Way, f: Loss, v: Vector, point: Vector) -> Vector:
    return way(f, point, v)


def _weighted(results: Any, _: Any = None) -> Tensor:
    """The sum of all numbers with weights that repeat nowhere."""
    numbers = [leaf for _, leaf in leaves(results) if _is_number(leaf)]
    sums = [(n * torch.arange(1, n.numel() + 1).to(n).sin().view(n.shape)).sum() for n in numbers]
    return torch.stack(sums).sum() if sums else torch.zeros(())


def _constants(tree: Any) -> Any:
    return map_leaves(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0][:100]


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


NO_FUNCTIONS = {"__set__", "__setitem__", "item", "tolist", "__float__", "backward", "requires_grad_", "detach", "data"}
