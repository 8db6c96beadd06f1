"""The equalities of the theorems: identities, coefficients of expectations, and fixed points."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from analysis.experiments.theory_claims import K_MAX
from analysis.experiments.theory_rates import step_sizes
from analysis.results.evidence import CHECK, CONTROL, SHOWN
from analysis.theory import manifolds
from analysis.theory.derivatives import derivative
from analysis.theory.expectations import (
    Coefficients,
    average_gradient,
    average_gradient_inner,
    expected_inner_gradients,
    expected_maml,
    inner_product_gradient,
    measure,
    pair_expectation,
    pair_prediction,
    predicted,
    predicted_maml,
)
from analysis.theory.losses import Pool
from analysis.theory.taylor import (
    inner_gradient_series,
    inner_gradient_terms,
    inner_gradients,
    maml_gradient,
    maml_product,
    maml_series,
    maml_terms,
)
from reptile_core.meta_gradients import figure_3, last, sum_of

TERMS = "AvgGrad", "AvgGradInner"
Pair = tuple[float, float]  # the coefficients of the terms


def identities(pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield the equalities that hold to round-off.

    They are the product form, the two channels, the inner product, and the covariances.
    """
    losses, phi = pool.losses, pool.phi
    alpha = step_sizes(pool)[0] * 10  # the identities hold at any alpha

    def row(claim: str, case: str, role: str, found: Tensor, expected: Tensor) -> dict[str, Any]:
        value = float((found - expected).norm() / expected.norm())
        return {"claim": claim, "case": f"{pool.name}: {case}", "role": role, "value": value}

    for k in range(2, len(losses) + 1):
        exact = maml_gradient(losses[:k], phi, alpha)
        at_start = inner_gradients(losses[:k], phi, alpha)[-1]
        for loss in reversed(losses[: k - 1]):
            at_start = at_start - alpha * derivative(loss, phi, at_start)
        product = maml_product(losses[:k], phi, alpha)
        yield row("taylor-maml-product", f"k = {k}", CHECK, product, exact)
        # With k = 2 the only Hessian is at phi_1, and a quadratic has the same one everywhere.
        if k > 2 and pool.degree != 2:
            yield row("taylor-maml-product", f"k = {k}", CONTROL, at_start, exact)

    k = 3
    formula = inner_gradient_terms(losses[:k], phi, 2)[-1]
    nested = inner_gradient_series(losses[:k], phi, 2)[-1]
    maml_formula, maml_nested = maml_terms(losses[:k], phi, 2), maml_series(losses[:k], phi, 2)
    for n in range(3):
        yield row("taylor-channels", f"g_{k}, order {n}", CHECK, formula[n], nested[n])
        yield row("taylor-channels", f"MAML, order {n}", CHECK, maml_formula[n], maml_nested[n])
    if pool.degree != 2:
        s = formula[0].new_zeros(()) + sum(derivative(loss, phi) for loss in losses[: k - 1])
        doubled = formula[2] + derivative(losses[k - 1], phi, s, s) / 2
        yield row("taylor-channels", f"g_{k}, order 2", CONTROL, doubled, nested[2])

    inner, identity = average_gradient_inner(losses, phi), inner_product_gradient(losses, phi)
    with_equal_pairs = pair_expectation(losses, phi, "independent")
    yield row("inner-product-identity", "all pairs", CHECK, inner, identity)
    yield row("inner-product-identity", "all pairs", CONTROL, with_equal_pairs, identity)
    cases = ("independent", "disjoint", "repeated")
    for case, other in zip(cases, (*cases[1:], cases[0]), strict=True):
        found = pair_expectation(losses, phi, case)
        right, wrong = pair_prediction(losses, phi, case), pair_prediction(losses, phi, other)
        yield row("overlap-covariance", case, CHECK, found, right)
        yield row("overlap-covariance", f"{case} as {other}", CONTROL, found, wrong)


def expected_sums(pool: Pool, *, seed: int = 0, k_max: int = K_MAX) -> Iterator[dict[str, Any]]:
    """Yield the coefficients of E[sum_i w_i g_i] for sums of k = 2 … k_max steps.

    The weights are figure 3's, and random ones.
    """
    generator = torch.Generator()
    sums = [(variant.name, variant.weights) for variant in figure_3(k_max) if variant.k > 1]
    for k in range(2, k_max + 1):
        random = torch.randn(k, generator=generator.manual_seed(seed), dtype=torch.float64)
        sums.append(("random weights", tuple(random.tolist())))
    matrix = torch.tensor([w + (0.0,) * (k_max - len(w)) for _, w in sums], dtype=torch.float64)

    def all_sums(alpha: float) -> Tensor:
        return matrix @ expected_inner_gradients(pool.losses, pool.phi, alpha, k_max)

    for (name, w), coefficients in zip(sums, _measured(pool, all_sums), strict=True):
        k, right = len(w), predicted(w)
        row = partial(_coefficient_rows, pool, k=k, found=coefficients, right=right)
        wrong = right[0], -sum(x * (i + 1) for i, x in enumerate(w))
        yield from row("expectation-any-sum", name, wrong=wrong)
        if name == last(k).name:
            yield from row("expectation-fomaml", "FOMAML", wrong=predicted_maml(k))
        if name == sum_of(k).name:
            yield from row("expectation-reptile", "Reptile", wrong=predicted(last(k).weights))


def expected_maml_gradient(pool: Pool, k: int) -> Iterator[dict[str, Any]]:
    """Yield the coefficients of E[g_MAML] with k steps."""

    def one_row(alpha: float) -> Tensor:
        return expected_maml(pool.losses, pool.phi, alpha, k).unsqueeze(0)

    (found,) = _measured(pool, one_row)
    right, wrong = predicted_maml(k), predicted(last(k).weights)
    yield from _coefficient_rows(
        pool, "expectation-maml", "MAML", k=k, found=found, right=right, wrong=wrong
    )


def joint_training(pool: Pool) -> Iterator[dict[str, Any]]:
    """Yield rows for k = 1: one step on a minibatch from the mixture, and no AvgGradInner."""
    losses, phi = pool.losses, pool.phi
    alpha = step_sizes(pool)[0]
    mixture = derivative(lambda point: torch.stack([loss(point) for loss in losses]).mean(), phi)
    for k, role in ((1, CHECK), (2, CONTROL)):

        def update_of(t: float, k: int = k) -> Tensor:
            return expected_inner_gradients(losses, phi, t, k).mean(0)

        update = update_of(alpha)
        (found,) = _measured(pool, lambda t, f=update_of: f(t).unsqueeze(0))  # type: ignore[misc]
        difference = float((update - mixture).norm() / mixture.norm())
        for case, value in (("update", difference), ("AvgGradInner", found.avg_grad_inner)):
            row = {"claim": "joint-training", "case": f"{pool.name}: {case}", "role": role}
            yield row | {"value": value}


def solution_manifolds(ks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> Iterator[dict[str, Any]]:
    """Yield the distance of Reptile's fixed point from the closed form, for some k."""
    for seed in range(3):
        tasks = manifolds.affine_tasks(seed=seed)
        nearest = manifolds.nearest_point(tasks)
        for k in ks:
            distance = float((manifolds.reptile_fixed_point(tasks, k) - nearest).norm())
            role = {ks[0]: CONTROL, ks[-1]: CHECK}.get(k, SHOWN)
            row = {"claim": "solution-manifolds", "case": f"seed {seed}, k = {k}", "role": role}
            yield row | {"value": distance, "k": k}


def _measured(pool: Pool, updates: Callable[[float], Tensor]) -> list[Coefficients]:
    terms = average_gradient(pool.losses, pool.phi), average_gradient_inner(pool.losses, pool.phi)
    return measure(updates, *terms, alpha=step_sizes(pool)[0])


def _coefficient_rows(
    pool: Pool, claim: str, update: str, *, k: int, found: Coefficients, right: Pair, wrong: Pair
) -> Iterator[dict[str, Any]]:
    """Yield the errors of both coefficients by the right and by the wrong formula.

    The rows also have what the figure shows.
    """
    for role, predictions in ((CHECK, right), (CONTROL, wrong)):
        measured = (found.avg_grad, found.avg_grad_inner)
        for term, value, prediction, truth in zip(TERMS, measured, predictions, right, strict=True):
            if role == CONTROL and prediction == truth:
                continue  # this coefficient is the same in the wrong formula
            yield {
                "claim": claim, "case": f"{pool.name}: {update}, k = {k}, {term}", "role": role,
                "value": value - prediction, "update": update, "k": k, "term": term,
                "measured": value, "predicted": prediction,
            }  # fmt: skip
