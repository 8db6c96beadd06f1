"""Section 5.1 on a model of one's own: how far its inner gradients and MAML's gradient are what the series says.

`analyse` takes a network, a loss and minibatches of one task, makes of them losses of one flat vector, and hands these
to the theory. What comes out is measured (k steps of SGD as they are), predicted (the series in alpha) and compared.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, perm
from numbers import Real
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map, tree_unflatten

from analysis.theory.derivatives import Loss, Vector, derivative
from analysis.theory.expectations import (
    average_gradient_inner,
    expected_inner_gradients,
    expected_maml,
    measure,
    predicted,
    predicted_maml,
)
from analysis.theory.taylor import (
    HIGHEST_FORMULA,
    inner_gradient_terms,
    inner_gradients,
    maml_product,
    maml_terms,
)
from analysis.theory.written_out import right_derivatives

Tree = Any  # a tensor, or dicts, lists and tuples of tensors


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found: u = k + 1 gradients (g_1 … g_k and MAML's), m minibatches, P parameters.

    names: "g_1", …, "g_k", "MAML", the rows of `exact` and `terms`.
    exact: the gradients themselves: those that k steps of SGD meet, and MAML's through these steps.
    terms: of each gradient the terms of order 0, 1, … in alpha, alpha^n included: their sum over n is near `exact`.
        terms[i - 1, 0] is g_bar_i and terms[i - 1, 1] is -alpha H_bar_i s_i.
    g_bar: the gradient of every minibatch at the initialization; gram: their inner products.
    avg_grad, avg_grad_inner: the means over the m minibatches, and over their ordered pairs.

    expansion: a row for each gradient and order n. `term` is the norm of the order's term; `remainder` that of the
        gradient less all terms up to n, `relative` to the gradient's own norm; `explained` is 1 - remainder^2 /
        |gradient - order 0|^2, the share of what the inner steps changed that the series accounts for; `slope` is
        log2 of the remainder over that at alpha / 2, and nan where round-off decides it. It is near n + 1 where alpha
        is small enough for the series; if it tends to less, the loss has a kink or one of its derivatives is wrong.
    inner_products: a row for each pair i <= j of minibatches: g_bar_i . g_bar_j and their cosine.
    coefficients: how much of AvgGrad and of alpha AvgGradInner the expectations of MAML, FOMAML (g_k) and Reptile
        (g_1 + … + g_k) hold as alpha -> 0, measured over all ordered choices of k minibatches and extrapolated from
        ± alpha and ± alpha / 2, beside the theorem's; `unexplained` is the part of first order along neither, per
        alpha |AvgGradInner|. Empty where that was left out: `left_out` says why.
    unflatten: takes a vector of P numbers apart, into the parameters' own structure.
    """

    names: tuple[str, ...]
    exact: Float[Tensor, "u P"]
    terms: Float[Tensor, "u orders P"]
    g_bar: Float[Tensor, "m P"]
    gram: Float[Tensor, "m m"]
    avg_grad: Vector
    avg_grad_inner: Vector
    expansion: pd.DataFrame
    inner_products: pd.DataFrame
    coefficients: pd.DataFrame
    left_out: str
    unflatten: Callable[[Vector], Tree]


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
) -> Analysis:
    """Compare k steps of SGD on `model`, and MAML's gradient through them, with their series in alpha.

    model: a module, at its parameters that require a gradient (the others and the buffers are constants, and nothing
        of the module changes), or a function of (parameters, inputs), at `parameters`: a tensor or dicts, lists and
        tuples of tensors. float64 is recommended: in float32 round-off soon hides what is beyond the first order.
    loss: loss(outputs, targets), a scalar, best a mean. A complete loss f(parameters, minibatch) is analysed as
        model = f with loss = lambda value, _: value and minibatches (minibatch, None).
    minibatches: two or more pairs (inputs, targets) from one task, in the order in which SGD meets them. Both are
        tensors, or dicts, lists and tuples of them; a module gets a tuple of inputs as several arguments. They are
        shaped alike but for the first dimension.
    alpha: the learning rate of the inner SGD, above 0.
    steps: k, 1 … the number of minibatches m (all by default); the others are only in the expectations.
    order: the highest of the series, 0 … 2. At 2 each step costs a handful of products with Hessians.
    most_orders: leave the coefficients out if m (m - 1) … (m - k + 1), the ordered choices of k minibatches, is above.
        Each of them costs four times MAML's gradient, and all of them most of the time that this takes.

    The series holds where the loss is smooth (tanh, GELU, softplus). Derivatives go by forward over reverse mode:
    `written_out` mends torch's norms, squared error and attention for it; where torch lacks the forward mode (GLU,
    Huber loss, cdist) it raises NotImplementedError.

    Raises ValueError or TypeError for unusable arguments, a loss that is not a finite scalar function of the
    parameters, and random layers, before any derivative is taken. Warns of normalization by a minibatch's statistics.
    """
    alpha = _check_rate(alpha)
    if isinstance(order, bool) or order not in range(HIGHEST_FORMULA + 1):
        raise ValueError(f"order: expected 0 … {HIGHEST_FORMULA}, found {order}")
    function, parameters = _as_function(model, parameters)
    phi, unflatten = _flatten(parameters)
    batches = _check_minibatches(minibatches, phi)
    k = len(batches) if steps is None else steps
    if k not in range(1, len(batches) + 1):
        raise ValueError(f"steps: expected 1 … {len(batches)}, the number of minibatches, found {k}")
    pool = [_loss_of_vector(function, loss, unflatten, batch) for batch in batches]
    for i, on_minibatch in enumerate(pool):
        _check_loss(on_minibatch, phi, i)
    if isinstance(model, nn.Module):
        _warn_of_minibatch_statistics(model)

    with phi.device:  # so that the constants of the formulas are made beside phi
        exact, at_half = (_exact(pool[:k], phi, t) for t in (alpha, alpha / 2))
        names = (*(f"g_{i}" for i in range(1, k + 1)), "MAML")
        _check_finite(names, exact, alpha)
        series = [*inner_gradient_terms(pool[:k], phi, order), maml_terms(pool[:k], phi, order)]
        powers = alpha ** torch.arange(order + 1, dtype=phi.dtype)
        terms = torch.stack([torch.stack(coefficients) for coefficients in series]) * powers[:, None]
        g_bar = torch.stack([derivative(on_minibatch, phi) for on_minibatch in pool])
        avg_grad, avg_grad_inner = g_bar.mean(0), average_gradient_inner(pool, phi)
        left_out = _why_left_out(len(pool), k, most_orders)
        coefficients = [] if left_out else _coefficients(pool, phi, alpha, k, avg_grad, avg_grad_inner)
    gram = g_bar @ g_bar.T
    return Analysis(
        names=names,
        exact=exact,
        terms=terms,
        g_bar=g_bar,
        gram=gram,
        avg_grad=avg_grad,
        avg_grad_inner=avg_grad_inner,
        expansion=_expansion(names, exact, terms, at_half),
        inner_products=_inner_products(gram),
        coefficients=pd.DataFrame(coefficients, columns=["update", "term", "predicted", "measured"]),
        left_out=left_out,
        unflatten=unflatten,
    )


# What is computed.


def _exact(losses: Sequence[Loss], phi: Vector, alpha: float) -> Float[Tensor, "u P"]:
    return torch.stack([*inner_gradients(losses, phi, alpha), maml_product(losses, phi, alpha)])


def _expansion(
    names: Sequence[str],
    exact: Float[Tensor, "u P"],
    terms: Float[Tensor, "u orders P"],
    at_half: Float[Tensor, "u P"],
) -> pd.DataFrame:
    """The rows of `Analysis.expansion`; at_half are the gradients at alpha / 2, whose terms are 2^-n of those here."""
    halves = 0.5 ** torch.arange(terms.shape[1], dtype=terms.dtype, device=terms.device)
    remainder = (exact[:, None] - terms.cumsum(1)).norm(dim=-1)
    half = (at_half[:, None] - (terms * halves[:, None]).cumsum(1)).norm(dim=-1)
    size = exact.norm(dim=-1, keepdim=True)
    round_off = 100 * torch.finfo(exact.dtype).eps * size  # as in remainder_slope
    columns = {
        "term": terms.norm(dim=-1),
        "remainder": remainder,
        "relative": remainder / size,
        "explained": 1 - (remainder / remainder[:, :1]).square(),
        "slope": torch.where(half > round_off, (remainder / half).log2(), torch.nan),
    }
    rows = pd.MultiIndex.from_product([names, range(terms.shape[1])], names=["gradient", "order"])
    return pd.DataFrame({name: c.flatten().tolist() for name, c in columns.items()}, index=rows).reset_index()


def _inner_products(gram: Float[Tensor, "m m"]) -> pd.DataFrame:
    length = gram.diagonal().sqrt()
    i, j = torch.triu_indices(*gram.shape, device=gram.device)
    columns = {"i": i + 1, "j": j + 1, "inner_product": gram[i, j], "cosine": gram[i, j] / (length[i] * length[j])}
    return pd.DataFrame({name: column.tolist() for name, column in columns.items()})


def _why_left_out(m: int, k: int, most_orders: int) -> str:
    orders = perm(m, k)
    return f"{orders} ordered choices of {k} of {m} minibatches, above {most_orders}" if orders > most_orders else ""


def _coefficients(
    pool: Sequence[Loss], phi: Vector, alpha: float, k: int, avg_grad: Vector, avg_grad_inner: Vector
) -> list[tuple[str, str, float, float]]:
    """The rows of `Analysis.coefficients`."""

    def updates(t: float) -> Float[Tensor, "3 P"]:
        g = expected_inner_gradients(pool, phi, t, k)
        return torch.stack([expected_maml(pool, phi, t, k), g[-1], g.sum(0)])

    theorem = {
        "MAML": predicted_maml(k),
        "FOMAML": predicted([0.0] * (k - 1) + [1.0]),
        "Reptile": predicted([1.0] * k),
    }
    found = measure(updates, avg_grad, avg_grad_inner, alpha=alpha)
    return [
        row
        for (update, (first, inner)), measured in zip(theorem.items(), found, strict=True)
        for row in (
            (update, "AvgGrad", first, measured.avg_grad),
            (update, "AvgGradInner", inner, measured.avg_grad_inner),
            (update, "unexplained", 0.0, measured.unexplained),
        )
    ]


# From models and minibatches to losses of one vector.


def _as_function(model: Any, parameters: Tree) -> tuple[Callable[[Tree, Tree], Tree], Tree]:
    if not isinstance(model, nn.Module):
        if not callable(model):
            raise TypeError(f"model: expected a torch.nn.Module or a function, found {type(model).__name__}")
        if parameters is None:
            raise ValueError("parameters: expected those to give to the function `model`, found None")
        return model, parameters
    if parameters is not None:
        raise ValueError("parameters: expected None beside a torch.nn.Module, which has its own, found some")
    if random := [_layer(name, layer) for name, layer in model.named_modules() if _is_random(layer)]:
        raise ValueError(
            f"model: expected a function of parameters and inputs, found random layers in training: "
            f"{', '.join(random)}; set p to 0 or call .eval() on them"
        )

    def function(values: dict[str, Tensor], inputs: Tree) -> Tree:
        # In training, layers such as batch norm write to their buffers: here to copies.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return functional_call(model, {**values, **buffers}, inputs)

    return function, {name: value for name, value in model.named_parameters() if value.requires_grad}


def _flatten(parameters: Tree) -> tuple[Vector, Callable[[Vector], Tree]]:
    """One vector of all parameters, in the order of their tree, and the way back."""
    leaves, structure = tree_flatten(parameters)
    if not leaves:
        raise ValueError("parameters: expected at least one that requires a gradient, found none")
    for path, leaf in tree_flatten_with_path(parameters)[0]:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"parameters: expected tensors, found {type(leaf).__name__} at {keystr(path)}")
        if not leaf.is_floating_point():
            raise TypeError(f"parameters: expected real floating-point numbers, found {leaf.dtype} at {keystr(path)}")
    if len(kinds := {f"{leaf.dtype} on {leaf.device}" for leaf in leaves}) > 1:
        raise ValueError(f"parameters: expected one dtype and device, found {', '.join(sorted(kinds))}")
    shapes = [leaf.shape for leaf in leaves]

    def unflatten(vector: Vector) -> Tree:
        parts = vector.split([shape.numel() for shape in shapes])
        return tree_unflatten([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)], structure)

    return torch.cat([leaf.detach().flatten() for leaf in leaves]), unflatten


def _loss_of_vector(
    function: Callable[[Tree, Tree], Tree],
    loss: Callable[[Any, Any], Tensor],
    unflatten: Callable[[Vector], Tree],
    minibatch: tuple[Tree, Tree],
) -> Loss:
    inputs, targets = minibatch

    def on_minibatch(phi: Vector) -> Tensor:
        with right_derivatives():
            return loss(function(unflatten(phi), inputs), targets)

    return on_minibatch


# What is checked.


def _check_rate(alpha: Any) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"alpha: expected a number, found {type(alpha).__name__}")
    rate = float(alpha)
    if not (isfinite(rate) and rate > 0):
        raise ValueError(f"alpha: expected a finite number above 0, found {rate}")
    return rate


def _check_minibatches(minibatches: Iterable[tuple[Tree, Tree]], phi: Vector) -> list[tuple[Tree, Tree]]:
    batches = list(minibatches)
    if len(batches) < 2:
        raise ValueError(f"minibatches: expected at least 2, found {len(batches)}")
    for i, batch in enumerate(batches):
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TypeError(f"minibatches: expected pairs (inputs, targets), found {_outline(batch)} in minibatch {i}")
        if (found := _outline(batch)) != (first := _outline(batches[0])):
            raise ValueError(f"minibatches: expected all like the first, {first}, found {found} in minibatch {i}")
        for leaf in tree_flatten(batch)[0]:
            if isinstance(leaf, Tensor) and (
                leaf.device != phi.device or (leaf.is_floating_point() and leaf.dtype != phi.dtype)
            ):
                raise ValueError(
                    f"minibatches: expected the parameters' {phi.dtype} (or integers) on {phi.device}, "
                    f"found {leaf.dtype} on {leaf.device} in minibatch {i}"
                )
    return [(inputs, targets) for inputs, targets in batches]


def _outline(tree: Tree) -> str:
    """What minibatches have in common: structure, dtypes, and shapes but for the first dimension."""

    def describe(leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return type(leaf).__name__
        return f"{leaf.dtype}[{', '.join(['*', *map(str, leaf.shape[1:])]) if leaf.ndim else ''}]"

    return str(tree_map(describe, tuple(tree) if isinstance(tree, list) else tree)).replace("'", "")


def _check_loss(on_minibatch: Loss, phi: Vector, i: int) -> None:
    with torch.enable_grad():
        value, again = (on_minibatch(phi.clone().requires_grad_()) for _ in range(2))
    if not isinstance(value, Tensor):
        raise TypeError(f"loss: expected a scalar tensor, found {type(value).__name__} on minibatch {i}")
    if value.shape:
        raise ValueError(f"loss: expected a scalar, such as a mean, found shape {tuple(value.shape)} on minibatch {i}")
    if value.dtype != phi.dtype:
        raise ValueError(f"loss: expected the parameters' {phi.dtype}, found {value.dtype} on minibatch {i}")
    if not value.isfinite():
        raise ValueError(f"loss: expected a finite number, found {value.item()} on minibatch {i}")
    if not value.requires_grad:
        raise ValueError(f"loss: expected a function of the parameters, found none of them in it on minibatch {i}")
    # Sums in another order, as on a GPU, differ by some eps; noise such as dropout by far more.
    if not torch.isclose(value, again, rtol=1e3 * torch.finfo(phi.dtype).eps):
        raise ValueError(
            f"loss: expected the same value each time, found {value.item()} and {again.item()} on minibatch {i}; "
            "is there dropout or other noise in it?"
        )


def _check_finite(names: Sequence[str], exact: Float[Tensor, "u P"], alpha: float) -> None:
    if bad := [name for name, finite in zip(names, exact.isfinite().all(-1), strict=True) if not finite]:
        raise ValueError(f"alpha: expected one at which all gradients stay finite, found {alpha}: {', '.join(bad)}")


def _is_random(layer: nn.Module) -> bool:
    if isinstance(layer, _DropoutNd):
        return layer.training and layer.p > 0
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.training and layer.dropout > 0
    return isinstance(layer, nn.RReLU) and layer.training


def _warn_of_minibatch_statistics(model: nn.Module) -> None:
    if layers := [
        _layer(name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, _NormBase) and (layer.training or layer.running_mean is None)
    ]:
        warnings.warn(
            f"model: normalizes by the statistics of the input in {', '.join(layers)}. In torch 2.13 the second "
            "derivatives of that are wrong in two of the four orders of nesting (forward mode first), the third ones "
            "in all. Here it is computed in elementary operations, whose derivatives are right, and running "
            "statistics stay as they are; elsewhere torch's own need not agree.",
            stacklevel=3,
        )


def _layer(name: str, layer: nn.Module) -> str:
    return f"'{name}' ({type(layer).__name__})"
