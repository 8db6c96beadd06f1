"""The search for the place where a derivative goes wrong.

First each layer is checked alone, then each function that the layer calls, by the same channels.
Alone, a layer or function is a scalar of its own parameters and inputs: the sum of its results with
fixed weights.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from analysis.theory.derivatives import Loss, Vector, gradient
from analysis.theory.own_model.keeping import Keeper
from analysis.theory.own_model.loops import Way, forward, reverse
from analysis.theory.own_model.losses import ModuleFunction, OwnLoss, evaluated, flatten
from analysis.theory.own_model.quotients import DIFFERS, Differences, compare
from analysis.theory.own_model.trees import copied, leaves, map_leaves
from analysis.theory.own_model.watching import Call, Watcher, layer_names, named
from analysis.theory.torch_fixes import right_derivatives

MAX_NAMED = 8  # functions that are named
KINK_HERE = "it has a kink here"
FAILS = " fails in "
ORDERS = "gradient", "second derivative", "third derivative"


def culprits(
    model: Any, loss: OwnLoss, phi: Vector, order: int, *, failing: bool = False
) -> list[str]:
    """Return the layers and functions whose derivatives are at fault, in words.

    Their derivatives up to `order` differ from differences, or fail. Where layers are at fault,
    only functions inside them are named.

    failing: return only those that fail.
    """
    moved = near(phi)
    found = []
    if isinstance(model, nn.Module):
        calls_of_layers = _layer_calls(model, loss, phi), _layer_calls(model, loss, moved)
        found = _in_layers(model, "", calls_of_layers, order)
    found = [(layer, fault) for layer, fault in found if FAILS in fault or not failing]
    blamed = {layer for layer, _ in found}
    functions: dict[str, str] = {}
    for call, beyond in zip(heard(model, loss, phi), heard(model, loss, moved), strict=False):
        if (
            call.name in NO_FUNCTIONS
            or call.name != beyond.name
            or (blamed and call.layer not in blamed)
        ):
            continue
        if len(functions) >= MAX_NAMED:
            break
        fault = _fault_of_call(call, beyond, order)
        if FAILS in fault if failing else fault:
            functions.setdefault(call.place, fault)
    rest = [f"{layer}: {fault}" for layer, fault in found if not _is_one_in(layer, functions)]
    return [*(f"{name}: {fault}" for name, fault in functions.items()), *rest]


def _is_one_in(layer: str, functions: Iterable[str]) -> bool:
    """Return whether one of the named functions belongs to this layer."""
    return any(name.endswith(f" in {layer}") for name in functions)


def heard(model: Any, loss: OwnLoss, phi: Vector) -> list[Call]:
    """Return the calls of functions by a model and a loss, in their order."""
    calls: list[Call] = []
    with torch.enable_grad():
        loss.watched(phi.clone().requires_grad_(), Watcher(layer_names(model), calls.append))
    return calls


def own_rules(loss: OwnLoss, phi: Vector) -> list[str]:
    """Return the kinds of torch.autograd.Function in a loss.

    Their backward passes are written by hand.
    """
    with torch.enable_grad():
        todo: list[Any] = [loss(phi.clone().requires_grad_()).grad_fn]
    seen: set[Any] = set()
    found: dict[str, None] = {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found[type(node).__name__.removesuffix("Backward")] = None
        todo += [before for before, _ in node.next_functions]
    return list(found)


@dataclass(frozen=True)
class _LayerCall:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_Calls = dict[int, _LayerCall]  # the first call of each module, by the module's identity


def near(phi: Vector) -> Vector:
    """Return a point near phi, a thousandth of its length away in a random direction.

    Arguments are moved as they move from phi to there: a symmetric matrix stays symmetric.
    """
    generator = torch.Generator().manual_seed(1)
    d = torch.randn(len(phi), generator=generator, dtype=torch.float64, device="cpu").to(phi)
    return phi + d * (1e-3 * (float(phi.norm()) / float(d.norm()) + 0.01))


def _layer_calls(model: nn.Module, loss: OwnLoss, phi: Vector) -> _Calls:
    calls: _Calls = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(id(module), _LayerCall(_constants(args), _constants(kwargs)))

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        evaluated(loss, phi)  # this puts back the hooks that were there
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _in_layers(
    module: nn.Module, path: str, calls: tuple[_Calls, _Calls], order: int
) -> list[tuple[str, str]]:
    """Return the innermost layers inside a module that are at fault, with their faults."""
    found = []
    for name, child in module.named_children():
        full = f"{path}.{name}" if path else name
        called = all(id(child) in at for at in calls)
        fault = ""
        if called:
            here, beyond = calls
            fault = _fault_of_layer(child, here[id(child)], beyond[id(child)], order)
        if fault or not called:  # not called: such as a list of layers
            inside = _in_layers(child, full, calls, order)
            if fault and not inside:
                inside = [(named(full, child), fault)]
            found += inside
    return found


def _fault_of_layer(module: nn.Module, call: _LayerCall, beyond: _LayerCall, order: int) -> str:
    function, keeper = ModuleFunction(module), Keeper(module)
    tree = call.args, call.kwargs
    inputs = [leaf for _, leaf in leaves(tree) if _is_number(leaf)]
    moved = [leaf for _, leaf in leaves((beyond.args, beyond.kwargs)) if _is_number(leaf)]
    if (not function.parameters and not inputs) or [a.shape for a in inputs] != [
        b.shape for b in moved
    ]:
        return ""

    def run(values: Any, _: Any) -> Any:
        exchanged = iter(values["inputs"])
        args, kwargs = map_leaves(lambda leaf: next(exchanged) if _is_number(leaf) else leaf, tree)
        function.exchange(values["parameters"], like=values["inputs"])
        return module(*args, **kwargs)

    x, unflatten = flatten({"parameters": function.parameters, "inputs": inputs})
    own = list(function.parameters.values())
    steps = [*(near(p.detach().flatten()) - p.detach().flatten() for p in own)]
    steps += [(b - a).flatten() for a, b in zip(inputs, moved, strict=True)]
    return _fault(OwnLoss(run, _weighted, unflatten, ((), ()), keeper), x, torch.cat(steps), order)


def not_finite(model: Any, loss: OwnLoss, phi: Vector) -> list[str]:
    """Return the functions whose gradient alone is not finite, though their value is."""
    found: dict[str, None] = {}
    for call in heard(model, loss, phi):
        inputs = _inputs(call)
        if call.name in NO_FUNCTIONS or not inputs:
            continue
        value, x = _alone(call, inputs)
        try:
            finite = bool(value(x).isfinite()) and not bool(gradient(value, x).isfinite().all())
        except RuntimeError:  # no function of tensors alone
            continue
        if finite:
            found[call.place] = None
    return list(found)[:MAX_NAMED]


def _fault_of_call(call: Call, beyond: Call, order: int) -> str:
    inputs, moved = _inputs(call), _inputs(beyond)
    if not inputs or [a.shape for a in inputs] != [b.shape for b in moved]:
        return ""
    value, x = _alone(call, inputs)
    step = torch.cat([(b - a).detach().flatten() for a, b in zip(inputs, moved, strict=True)])
    return _fault(value, x, step, order)


def _inputs(call: Call) -> list[Tensor]:
    return [leaf for _, leaf in leaves((call.args, call.kwargs)) if _varies(leaf)]


def _alone(call: Call, inputs: list[Tensor]) -> tuple[Loss, Vector]:
    """Return a call as a function of one vector, and that vector.

    The vector holds the arguments that vary.
    """
    tree = call.args, call.kwargs
    x, unflatten = flatten(inputs)

    def value(point: Vector) -> Tensor:
        exchanged = iter(unflatten(point))
        # Added to 0, they are no leaves, so that they may be altered in place.
        args, kwargs = map_leaves(lambda leaf: next(exchanged) + 0 if _varies(leaf) else leaf, tree)
        with right_derivatives():
            return _weighted(call.function(*args, **kwargs))

    return value, x


def _fault(f: Loss, x: Vector, step: Vector, order: int) -> str:
    """Return how the derivative of f along a step is wrong: in which order, and by which mode.

    It is compared with differences. The result is empty where there is no fault.
    """
    length, size = float(x.norm()) + 0.01 * len(x) ** 0.5, float(step.norm())
    if not size:
        return ""
    d = step / size
    try:
        with torch.no_grad():
            slope = Differences(lambda t: f(x + t * d), length, x.dtype, at_zero=f(x))
            slope.sharpest  # noqa: B018, so that it is taken without a graph
        g = gradient(f, x)
    except RuntimeError as error:
        if "not implemented" in str(error):
            return f"its {ORDERS[0]}{FAILS}reverse mode ({_first_line(error)})"
        return ""  # no function of tensors alone, or the results depend on nothing here
    first = compare("", g @ d, slope, size=float(g.norm()) / len(g) ** 0.5)
    if first.verdict == DIFFERS or first.here:
        return f"its {ORDERS[0]} differs" if first.verdict == DIFFERS else KINK_HERE
    faults = (_of_order(n, f, x, [d] * (n - 1), length) for n in range(2, order + 1))
    return next((fault for fault in faults if fault), "")


def _of_order(n: int, f: Loss, x: Vector, directions: Sequence[Vector], length: float) -> str:
    lower = partial(gradient, f) if n == 2 else _second(f, x, directions[0])
    if lower is None:
        return ""
    quotients = Differences(lambda t: lower(x + t * directions[-1]), length, x.dtype)
    faults = []
    for way, mode in ((forward, "forward"), (reverse, "reverse")):
        try:
            verdict = compare("", way(f, x, *directions), quotients).verdict
        except Exception as error:
            faults.append(f"its {ORDERS[n - 1]}{FAILS}{mode} mode ({_first_line(error)})")
            continue
        if verdict == DIFFERS:
            faults.append(f"its {ORDERS[n - 1]} differs in {mode} mode")
    return " and ".join(faults)


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
    """Return a weighted sum of all numbers, plus a quarter of the sum of their squares.

    The weights repeat nowhere. The result is not linear in any number.
    """
    numbers = [leaf for _, leaf in leaves(results) if _is_number(leaf)]
    weights = [torch.arange(1, n.numel() + 1).to(n).sin().view(n.shape) for n in numbers]
    sums = [(n * w + n * n / 4).sum() for n, w in zip(numbers, weights, strict=True)]
    return torch.stack(sums).sum() if sums else torch.zeros(())


def _constants(tree: Any) -> Any:
    return map_leaves(copied, tree)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0][:100]


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _varies(leaf: Any) -> bool:
    return _is_number(leaf) and leaf.requires_grad


NO_FUNCTIONS = {
    "__set__", "__setitem__", "item", "tolist", "__float__", "backward", "requires_grad_", "detach",
    "data",
}  # fmt: skip
