"""`analyse`: the quantities of section 5.1 on a model of one's own, and their certificate."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import permutations
from math import nan, perm
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from analysis.theory.derivatives import Vector
from analysis.theory.expectations import (
    Coefficients,
    are_independent,
    measure,
    predicted,
    predicted_maml,
)
from analysis.theory.own_model.analysis import Analysis, expansion, inner_products
from analysis.theory.own_model.certify import COEFFICIENTS, Setting
from analysis.theory.own_model.checks import (
    check_loss,
    check_memory,
    check_minibatches,
    check_module,
    check_rate,
    check_whole,
    evaluations_against_noise,
    warn_of_minibatch_statistics,
)
from analysis.theory.own_model.distrust import explain
from analysis.theory.own_model.keeping import Keeper, same_randomness
from analysis.theory.own_model.locate import heard
from analysis.theory.own_model.loops import by_products
from analysis.theory.own_model.losses import NO_HOOKS, ModuleFunction, OwnLoss, flatten
from analysis.theory.own_model.quantities import Quantities, quantities
from analysis.theory.own_model.quotients import HOLDS, UNDECIDED, Agreement
from analysis.theory.own_model.trees import Tree, leaves
from analysis.theory.own_model.watching import failing_layer, layer_names, stopped_gradients
from analysis.theory.taylor import HIGHEST_FORMULA

SHARP = 0.1  # the relative error of a coefficient from which it is undecided, as in `compare`


def analyse(
    model: nn.Module | Callable[[Tree, Tree], Tree],
    loss: Callable[[Any, Any], Tensor],
    minibatches: Iterable[tuple[Tree, Tree]],
    alpha: float,
    *,
    parameters: Tree = None,
    steps: int | None = None,
    order: int = HIGHEST_FORMULA,
    most_orders: int = 120,
    certify: bool = True,
) -> Analysis:
    """Compare k steps of SGD on `model`, and MAML's gradient, with their series in alpha.

    MAML's gradient goes through these steps.

    model: a module, or a function of (parameters, inputs). A module is analysed at its parameters
        that require a gradient; the others and the buffers are constants, and nothing of the module
        changes. A function is analysed at `parameters`: a tensor, or dicts, lists, tuples and data
        classes of tensors. float64 is recommended: in float32 round-off soon hides what is beyond
        the first order.
    loss: loss(outputs, targets), a scalar, best a mean. A complete loss f(parameters, minibatch) is
        analysed as model = f with loss = lambda value, _: value and minibatches (minibatch, None).
    minibatches: two or more pairs (inputs, targets) from one task, in the order in which SGD meets
        them. Both are tensors, packed sequences, or dicts, lists, tuples and data classes of them.
        A module gets a tuple of inputs as several arguments, and a mapping as keywords if its
        forward takes these names. All have the same shapes but for the first dimension.
    alpha: the learning rate of the inner SGD, above 0.
    steps: k, 1 … the number of minibatches m (all by default). The other minibatches enter the
        expectations only.
    order: the highest order of the series, 0 … 2. At 2 each step costs a handful of products with
        Hessians.
    most_orders: leave the coefficients out where there are more than this many ordered choices of k
        minibatches, m (m - 1) … (m - k + 1). Each choice costs four times MAML's gradient; together
        they take most of the time.
    certify: check every quantity against other channels, withhold what differs and name the layer
        at fault. This takes about as long again as everything but the coefficients.

    The series holds where the loss is smooth (tanh, GELU, softplus). MAML's exact gradient goes by
    reverse over reverse mode. The terms go by forward over reverse, for which `torch_fixes` mends
    torch's norms, squared error and attention. Where torch lacks a mode, or differences show it to
    be wrong, the other one is taken.

    Stopped gradients (detach, no_grad, .data, padding of an embedding) have one meaning. A backward
    pass holds the stopped value constant. Every gradient here is what such passes give, MAML's
    through its loop too. From step to step the value moves with the parameters. The terms are the
    derivatives in alpha of these gradients, as SGD meets them. `distrust` names the stops.

    Raises ValueError or TypeError, before any derivative is taken, for unusable arguments, for a
    loss that is not a finite scalar function of the parameters, and for random or lazy layers.
    Raises NotImplementedError, which names the layer, where torch has no derivative. Warns of what
    `distrust` says, and of normalization by a minibatch's statistics.
    """
    alpha = check_rate(alpha)
    order = check_whole("order", order, 0, HIGHEST_FORMULA)
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    with torch.inference_mode(False), torch.enable_grad():
        keeper = Keeper(model, loss)
        try:
            function, parameters = _as_function(model, parameters)
            phi, unflatten = flatten(parameters)
            batches = check_minibatches(minibatches, phi)
            m = len(batches)
            k = m
            if steps is not None:
                k = check_whole("steps", steps, 1, m, ", the number of minibatches")
            pool = [OwnLoss(function, loss, unflatten, batch, keeper) for batch in batches]
            with same_randomness(phi.device), _made_on(phi.device):
                stops = _check(model, pool, phi)
                setting = Setting(model, pool, k, phi, alpha, order, stops)
                found = _analysis(setting, unflatten, most_orders, certify)
        finally:
            keeper.put_back(everything=True)
    for sentence in found.distrust:
        warnings.warn(f"analyse: {sentence}", stacklevel=2)
    return found


def _analysis(
    setting: Setting, unflatten: Callable[[Vector], Tree], most_orders: int, certify: bool
) -> Analysis:
    found, certificate = quantities(setting, certify=certify)
    m = len(setting.pool)
    avg_grad, avg_grad_inner = found.g_bar.mean(0), found.products.sum(0) / perm(m, 2)
    left_out = _why_left_out(m, setting.k, most_orders, avg_grad, avg_grad_inner)
    coefficients: list[tuple[str, str, float, float]] = []
    if not left_out:
        coefficients, agreement = _coefficients(setting, found, avg_grad, avg_grad_inner)
        if certify:
            certificate.add(COEFFICIENTS, *([agreement] if agreement else []))
    gram = found.g_bar @ found.g_bar.T
    rows = expansion(setting.names, found.exact, found.terms, found.at_half)
    distrust, notes = explain(setting, certificate, found, rows)
    return Analysis(
        names=setting.names,
        alpha=setting.alpha,
        exact=found.exact,
        terms=found.terms,
        g_bar=found.g_bar,
        gram=gram,
        avg_grad=avg_grad,
        avg_grad_inner=avg_grad_inner,
        expansion=rows,
        inner_products=inner_products(gram),
        coefficients=pd.DataFrame(
            coefficients, columns=["update", "term", "predicted", "measured"]
        ),
        left_out=left_out,
        unflatten=unflatten,
        certificate=certificate.table(),
        distrust=distrust,
        notes=notes,
    )


def _made_on(device: torch.device) -> AbstractContextManager:
    """Return a context in which the formulas' constants are made on phi's device.

    It does nothing where that is the default device, as it costs time in every call.
    """
    return nullcontext() if device == torch.get_default_device() else device


def _why_left_out(
    m: int, k: int, most_orders: int, avg_grad: Vector, avg_grad_inner: Vector
) -> str:
    orders = perm(m, k)
    if orders > most_orders:
        return f"{orders} ordered choices of {k} of {m} minibatches, above {most_orders}"
    if _are_given(avg_grad, avg_grad_inner) and not are_independent(avg_grad, avg_grad_inner):
        return "AvgGrad and AvgGradInner are parallel here, or one of them is zero"
    return ""


def _are_given(*vectors: Vector) -> bool:
    """Return whether none of these quantities is withheld."""
    return all(bool(v.isfinite().all()) for v in vectors)


def _coefficients(
    setting: Setting, quantities: Quantities, avg_grad: Vector, avg_grad_inner: Vector
) -> tuple[list[tuple[str, str, float, float]], Agreement | None]:
    """Return the rows of `Analysis.coefficients`, and their agreement with another step's.

    There is no agreement where one of the two vectors is withheld, and the coefficients with it.
    """
    k = setting.k

    def updates(t: float) -> Float[Tensor, "3 P"]:
        """Return the expectations, over all ordered choices, of MAML, FOMAML and Reptile."""
        total = torch.zeros(k + 1, len(setting.phi), dtype=setting.phi.dtype)
        for losses in permutations(setting.pool, k):
            total += by_products(losses, setting.phi, t, quantities.maml_way)
        mean = total / perm(len(setting.pool), k)
        return torch.stack([mean[-1], mean[-2], mean[:-1].sum(0)])

    theorem = {
        "MAML": predicted_maml(k),
        "FOMAML": predicted([0.0] * (k - 1) + [1.0]),
        "Reptile": predicted([1.0] * k),
    }
    found, agreement = [Coefficients(nan, nan, nan, nan)] * 3, None
    if _are_given(avg_grad, avg_grad_inner):
        step = _step_towards_0(setting, quantities)
        found = measure(updates, avg_grad, avg_grad_inner, alpha=step)
        error = max(c.error / max(1.0, abs(c.avg_grad_inner)) for c in found)
        verdict = HOLDS if error <= SHARP else UNDECIDED
        agreement = Agreement("half the step", error, error, verdict)
    rows = []
    for (update, (first, inner)), measured in zip(theorem.items(), found, strict=True):
        rows += [
            (update, "AvgGrad", first, measured.avg_grad),
            (update, "AvgGradInner", inner, measured.avg_grad_inner),
            (update, "unexplained", 0.0, measured.unexplained),
        ]
    return rows, agreement


def _step_towards_0(setting: Setting, found: Quantities) -> float:
    """Return the alpha from which the coefficients are extrapolated to 0.

    The steps of SGD then move phi and its gradient by about eps^(1/5) of their size, where
    Richardson's error and round-off are alike.
    """
    whole = found.g_bar.sum(0)
    curvatures = found.products.norm(dim=-1) / (whole - found.g_bar).norm(dim=-1)
    speed = max(float(curvatures.nan_to_num(0.0).max()), float(whole.norm()) / setting.length)
    return torch.finfo(whole.dtype).eps ** 0.2 / speed


def _as_function(model: Any, parameters: Tree) -> tuple[Callable[[Tree, Tree], Tree], Tree]:
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise TypeError(
                f"model: expected a torch.nn.Module or a function, found {type(model).__name__}"
            )
        if parameters is None:
            raise ValueError(
                "parameters: expected those to give to the function `model`, found None"
            )
        check_memory("parameters", leaves(parameters))
        return model, parameters
    if parameters is not None:
        raise ValueError(
            "parameters: expected None with a torch.nn.Module, which has its own, found some"
        )
    check_module(model)
    function = ModuleFunction(model)
    return function, function.parameters


def _check(model: Any, pool: Sequence[OwnLoss], phi: Vector) -> tuple[str, ...]:
    """Refuse what cannot be analysed, and return the names of stopped gradients."""
    evaluations = evaluations_against_noise(len(pool))
    stops: dict[str, None] = {}
    for i, on_minibatch in enumerate(pool):
        try:
            check_loss(on_minibatch, phi, i, evaluations)
        except Exception as error:
            layer = failing_layer(error.__traceback__, layer_names(model))
            if NO_HOOKS in str(error):
                raise ValueError(
                    "model: expected a forward pass that is kept as a whole, found gradient "
                    f"checkpointing or another hook on saved tensors in {layer or 'the model'}; "
                    "turn it off"
                ) from error
            if layer:
                error.add_note(f"analyse: this arose in {layer}, with the inputs of minibatch {i}")
            raise
        stops |= dict.fromkeys(stopped_gradients(heard(model, on_minibatch, phi)))
    if isinstance(model, nn.Module):
        warn_of_minibatch_statistics(model, stacklevel=4)
    return tuple(stops)
