"""Every theorem of the ledger, checked on smooth losses in float64, each beside a wrong formula that must fail.

A check gives rows (claim, case, role, value) for the ledger; those of the rate tests also give the remainders behind
their slopes. `checks` lists them as small independent pieces, which go to worker processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from analysis.claims import PROFILES
from analysis.experiment import Context, Experiment, Result
from analysis.experiments.theorems import CLAIMS, K_MAX
from analysis.runs import Source, split_of
from analysis.theory import manifolds, modified_loss
from analysis.theory.derivatives import derivative
from analysis.theory.expectations import (
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
from analysis.theory.losses import FLOAT, SMALL_POOLS, Pool, omniglot_softplus
from analysis.theory.taylor import (
    Series,
    evaluate_series,
    inner_gradient_series,
    inner_gradient_terms,
    inner_gradients,
    maml_gradient,
    maml_product,
    maml_series,
    maml_terms,
    remainder_slope,
    weighted_terms,
)
from analysis.workers import Progress
from reptile_core.meta_gradients import figure_3, last, total
from reptile_core.tasks import ImagePool

NAME = "theory"
HALVINGS = 7


@dataclass(frozen=True)
class Rate:
    """A rate test: the remainder of `truncated` against `exact` should fall as alpha^order."""

    claim: str
    case: str
    role: str
    order: int
    exact: Callable[[float], Tensor]
    truncated: Callable[[float], Tensor]


def step_sizes(pool: Pool, *, order: int = 0) -> list[float]:
    """Halvings of the alpha at which alpha |H g| / |g| is 0.01 for the sharpest minibatch.

    From order 4 on they begin at 0.03: 0.01^5 is too near to round-off to be halved.
    """
    largest = 0.01 if order < 4 else 0.03
    curvatures = []
    for loss in pool.losses:
        g = derivative(loss, pool.phi)
        curvatures.append(float(derivative(loss, pool.phi, g).norm() / g.norm()))
    return [largest / max(curvatures) * 2.0**-n for n in range(HALVINGS)]


def rate_rows(rate: Rate, pool: Pool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The measurement (slope less the order) and the remainders behind it."""
    alphas = step_sizes(pool, order=rate.order)
    slope, remainders = remainder_slope(rate.exact, rate.truncated, alphas)
    common = {"claim": rate.claim, "case": f"{pool.name}: {rate.case}", "role": rate.role}
    points = [
        common | {"order": rate.order, "alpha": alpha, "remainder": remainder, "slope": slope}
        for alpha, remainder in zip(alphas, remainders, strict=True)
    ]
    return common | {"value": slope - rate.order}, points


def gradient_rates(pool: Pool) -> Iterator[Rate]:
    """taylor-gradient, and g_i's part of taylor-second-order."""
    losses, phi = pool.losses, pool.phi
    series = inner_gradient_terms(losses, phi, 2)
    s = torch.zeros_like(phi)
    for i, loss in enumerate(losses):
        terms, g_bar = series[i], series[i][0]

        def exact(alpha: float, i: int = i) -> Tensor:
            return inner_gradients(losses[: i + 1], phi, alpha)[i]

        wrong_sum: Series = [terms[0], -derivative(loss, phi, s + g_bar)]
        no_third: Series = [*terms[:2], terms[2] - derivative(loss, phi, s, s) / 2]
        if i >= 1 and not _vanishes(terms[2]):
            yield Rate("taylor-gradient", f"g_{i + 1}", "check", 2, exact, _polynomial(terms, 1))
            yield Rate("taylor-gradient", f"g_{i + 1}", "control", 2, exact, _polynomial(wrong_sum, 1))
        if i >= 1 and pool.degree is None:
            yield Rate("taylor-second-order", f"g_{i + 1}", "check", 3, exact, _polynomial(terms, 2))
            yield Rate("taylor-second-order", f"g_{i + 1}", "control", 3, exact, _polynomial(no_third, 2))
        s = s + g_bar


def update_rates(pool: Pool, k: int) -> Iterator[Rate]:
    """taylor-maml, and the meta-gradients' part of taylor-second-order."""
    losses, phi = pool.losses[:k], pool.phi
    series = inner_gradient_terms(losses, phi, 2)
    maml = maml_terms(losses, phi, 2)

    def exact(alpha: float) -> Tensor:
        return maml_gradient(losses, phi, alpha)

    if not _vanishes(maml[2]):
        yield Rate("taylor-maml", f"k = {k}", "check", 2, exact, _polynomial(maml, 1))
        yield Rate("taylor-maml", f"k = {k}", "control", 2, exact, _polynomial(series[-1], 1))
    if pool.degree is not None:
        return
    yield Rate("taylor-second-order", f"MAML, k = {k}", "check", 3, exact, _polynomial(maml, 2))
    for variant in (total(k), last(k)):
        terms = weighted_terms(series, variant.weights)

        def summed(alpha: float, weights: tuple[float, ...] = variant.weights) -> Tensor:
            return sum(w * g for w, g in zip(weights, inner_gradients(losses, phi, alpha), strict=True))  # type: ignore[return-value]

        yield Rate("taylor-second-order", f"{variant.name}, k = {k}", "check", 3, summed, _polynomial(terms, 2))


def any_order_rates(pool: Pool, k: int = 3) -> Iterator[Rate]:
    """taylor-any-order, on g_k and on MAML."""
    losses, phi = pool.losses[:k], pool.phi
    cases: tuple[tuple[str, Callable[[float], Tensor], Series], ...] = (
        (f"g_{k}", lambda alpha: inner_gradients(losses, phi, alpha)[-1], inner_gradient_series(losses, phi, 4)[-1]),
        (f"MAML, k = {k}", lambda alpha: maml_gradient(losses, phi, alpha), maml_series(losses, phi, 4)),
    )
    for name, exact, series in cases:
        for n in range(1, 5):
            wrong = [*series[:n], 1.01 * series[n]]
            yield Rate("taylor-any-order", f"{name}, n = {n}", "check", n + 1, exact, _polynomial(series, n))
            yield Rate("taylor-any-order", f"{name}, n = {n}", "control", n + 1, exact, _polynomial(wrong, n))


def sgd_rates(pool: Pool, m: int = 4) -> Iterator[Rate]:
    """implicit-sgd and minibatch-order."""
    losses, phi = pool.losses[:m], pool.phi

    def epoch(eps: float) -> Tensor:
        return modified_loss.shuffled_displacement(losses, phi, eps)

    def flow(eps: float, correction: float) -> Tensor:
        field = modified_loss.modified_gradient(losses, correction * eps)
        return modified_loss.flow_displacement(field, phi, m * eps)

    yield Rate("implicit-sgd", f"m = {m}", "check", 3, epoch, lambda eps: flow(eps, 1.0))
    yield Rate("implicit-sgd", f"m = {m}", "control", 3, epoch, lambda eps: flow(eps, 0.0))

    a, b = losses[:2]

    def difference(alpha: float) -> Tensor:
        return modified_loss.order_difference(a, b, phi, alpha)

    def prediction(alpha: float, sign: float) -> Tensor:
        return sign * modified_loss.predicted_order_difference(a, b, phi, alpha)

    yield Rate("minibatch-order", "two steps", "check", 3, difference, lambda alpha: prediction(alpha, 1.0))
    yield Rate("minibatch-order", "two steps", "control", 3, difference, lambda alpha: prediction(alpha, -1.0))


def identities(pool: Pool) -> Iterator[dict[str, Any]]:
    """Equalities to round-off: the product form, the two channels, the inner product, the covariances."""
    losses, phi = pool.losses, pool.phi
    alpha = step_sizes(pool)[0] * 10  # identities hold at any alpha

    def row(claim: str, case: str, role: str, found: Tensor, expected: Tensor) -> dict[str, Any]:
        value = float((found - expected).norm() / expected.norm())
        return {"claim": claim, "case": f"{pool.name}: {case}", "role": role, "value": value}

    for k in range(2, len(losses) + 1):
        exact = maml_gradient(losses[:k], phi, alpha)
        at_start = inner_gradients(losses[:k], phi, alpha)[-1]
        for loss in reversed(losses[: k - 1]):
            at_start = at_start - alpha * derivative(loss, phi, at_start)
        yield row("taylor-maml-product", f"k = {k}", "check", maml_product(losses[:k], phi, alpha), exact)
        if k > 2 and pool.degree != 2:  # with k = 2 the only Hessian is at phi_1, and a quadratic's is everywhere
            yield row("taylor-maml-product", f"k = {k}", "control", at_start, exact)

    k = 3
    formula, nested = inner_gradient_terms(losses[:k], phi, 2)[-1], inner_gradient_series(losses[:k], phi, 2)[-1]
    maml_formula, maml_nested = maml_terms(losses[:k], phi, 2), maml_series(losses[:k], phi, 2)
    for n in range(3):
        yield row("taylor-channels", f"g_{k}, order {n}", "check", formula[n], nested[n])
        yield row("taylor-channels", f"MAML, order {n}", "check", maml_formula[n], maml_nested[n])
    if pool.degree != 2:
        s = formula[0].new_zeros(()) + sum(derivative(loss, phi) for loss in losses[: k - 1])
        doubled = formula[2] + derivative(losses[k - 1], phi, s, s) / 2
        yield row("taylor-channels", f"g_{k}, order 2", "control", doubled, nested[2])

    inner, identity = average_gradient_inner(losses, phi), inner_product_gradient(losses, phi)
    yield row("inner-product-identity", "all pairs", "check", inner, identity)
    yield row("inner-product-identity", "all pairs", "control", pair_expectation(losses, phi, "independent"), identity)
    cases = ("independent", "disjoint", "repeated")
    for case, other in zip(cases, (*cases[1:], cases[0]), strict=True):
        found = pair_expectation(losses, phi, case)
        yield row("overlap-covariance", case, "check", found, pair_prediction(losses, phi, case))
        yield row("overlap-covariance", f"{case} as {other}", "control", found, pair_prediction(losses, phi, other))


def expectations(pool: Pool, k: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The table of coefficients: each row also holds what was measured and what the theorem says, for the figure."""
    losses, phi = pool.losses, pool.phi
    terms = average_gradient(losses, phi), average_gradient_inner(losses, phi)
    alpha = step_sizes(pool)[0]
    weights = torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    updates = {variant.name: variant.weights for variant in figure_3(K_MAX) if variant.k == k}
    updates |= {"random weights": tuple(weights)}
    matrix = torch.tensor(list(updates.values()), dtype=torch.float64)
    sums = measure(lambda t: matrix @ expected_inner_gradients(losses, phi, t, k), *terms, alpha=alpha)
    (maml,) = measure(lambda t: expected_maml(losses, phi, t, k).unsqueeze(0), *terms, alpha=alpha)

    def rows(
        claim: str, name: str, found: Any, right: tuple[float, float], wrong: tuple[float, float]
    ) -> Iterator[dict]:
        measured = (found.avg_grad, found.avg_grad_inner)
        for role, truth in (("check", right), ("control", wrong)):
            for term, value, prediction in zip(("AvgGrad", "AvgGradInner"), measured, truth, strict=True):
                if role == "control" and right[term == "AvgGradInner"] == prediction:
                    continue  # this coefficient is the same in the wrong formula
                yield {
                    "claim": claim, "case": f"{pool.name}: {name}, k = {k}, {term}", "role": role,
                    "value": value - prediction, "update": name, "k": k, "term": term, "measured": value,
                    "predicted": prediction,
                }  # fmt: skip

    fomaml = predicted(last(k).weights)
    yield from rows("expectation-maml", "MAML", maml, predicted_maml(k), fomaml)
    for (name, w), found in zip(updates.items(), sums, strict=True):
        right = predicted(w)
        shifted = (right[0], -sum(x * (i + 1) for i, x in enumerate(w)))
        yield from rows("expectation-any-sum", name, found, right, shifted)
        if name == last(k).name:
            yield from rows("expectation-fomaml", "FOMAML", found, right, predicted_maml(k))
        if name == total(k).name:
            yield from rows("expectation-reptile", "Reptile", found, right, fomaml)


def joint_training(pool: Pool) -> Iterator[dict[str, Any]]:
    """k = 1: one step on a minibatch drawn from the mixture, and no AvgGradInner."""
    losses, phi = pool.losses, pool.phi
    alpha = step_sizes(pool)[0]
    terms = average_gradient(losses, phi), average_gradient_inner(losses, phi)
    mixture = derivative(lambda point: torch.stack([loss(point) for loss in losses]).mean(), phi)
    for k, role in ((1, "check"), (2, "control")):

        def update_of(t: float, k: int = k) -> Tensor:
            return expected_inner_gradients(losses, phi, t, k).mean(0)

        update = update_of(alpha)
        (found,) = measure(lambda t, f=update_of: f(t).unsqueeze(0), *terms, alpha=alpha)  # type: ignore[misc]
        difference = float((update - mixture).norm() / mixture.norm())
        for case, value in (("update", difference), ("AvgGradInner", found.avg_grad_inner)):
            yield {"claim": "joint-training", "case": f"{pool.name}: {case}", "role": role, "value": value}


def solution_manifolds(ks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> Iterator[dict[str, Any]]:
    """Distance of Reptile's fixed point from the closed form, for some k."""
    for seed in range(3):
        tasks = manifolds.affine_tasks(seed=seed)
        nearest = manifolds.nearest_point(tasks)
        for k in ks:
            distance = float((manifolds.reptile_fixed_point(tasks, k) - nearest).norm())
            role = {ks[0]: "control", ks[-1]: "check"}.get(k, "between")
            yield {
                "claim": "solution-manifolds",
                "case": f"seed {seed}, k = {k}",
                "role": role,
                "value": distance,
                "k": k,
            }


@dataclass(frozen=True)
class Check:
    """One piece of work: which check, on which pool, for which k (0 where there is none)."""

    name: str
    pool: str = ""
    k: int = 0


def checks() -> list[Check]:
    """All pieces, longest first."""
    ks = range(2, K_MAX + 1)
    expectation_pools = ("tanh network", "cubic")
    pieces = [Check("gradients", "omniglot"), *(Check("updates", "omniglot", k) for k in (3, 2))]
    pieces += [Check("expectations", pool, k) for k in reversed(ks) for pool in expectation_pools]
    pieces += [Check("sgd", "tanh network"), Check("any order", "tanh network")]
    for pool in SMALL_POOLS:
        pieces += [Check(name, pool) for name in ("gradients", "identities", "joint training")]
        pieces += [Check("updates", pool, k) for k in ks]
    return [*pieces, Check("solution manifolds")]


Rows = list[dict[str, Any]]


def run_check(check: Check, progress: Progress, *, source: Source) -> tuple[Rows, Rows]:
    """Rows for the ledger, and the remainders of rate tests. The pool "omniglot" is drawn from the training classes of
    the source's split for seed 0."""
    rows: Rows = []
    points: Rows = []
    if check.name == "solution manifolds":
        rows = list(solution_manifolds())
    else:
        images = ImagePool(split_of(source, seed=0).train, FLOAT) if check.pool == "omniglot" else None
        pool = SMALL_POOLS[check.pool]() if images is None else omniglot_softplus(images)
        if check.name in IDENTITIES:
            rows = list(IDENTITIES[check.name](pool, check.k))
        else:
            measured = [rate_rows(rate, pool) for rate in RATES[check.name](pool, check.k)]
            rows = [row for row, _ in measured]
            points = [point for _, points in measured for point in points]
    progress(1)
    return rows, points


IDENTITIES: dict[str, Callable[[Pool, int], Iterator[dict[str, Any]]]] = {
    "identities": lambda pool, _: identities(pool),
    "expectations": lambda pool, k: expectations(pool, k),
    "joint training": lambda pool, _: joint_training(pool),
}
RATES: dict[str, Callable[[Pool, int], Iterator[Rate]]] = {
    "gradients": lambda pool, _: gradient_rates(pool),
    "updates": lambda pool, k: update_rates(pool, k),
    "any order": lambda pool, _: any_order_rates(pool),
    "sgd": lambda pool, _: sgd_rates(pool),
}


def run(context: Context) -> Result:
    """Judge every theorem on smooth losses."""
    results = context.workers.map(NAME, partial(run_check, source=context.source), checks(), unit=" checks")
    rows = pd.DataFrame([row for rows, _ in results for row in rows])
    points = pd.DataFrame([point for _, points in results for point in points])
    return Result({NAME: rows, "remainders": points}, rows[["claim", "case", "role", "value"]])


EXPERIMENT = Experiment(
    name=NAME,
    shows="section 5: every theorem judged by rate tests and exact enumeration, each beside a wrong formula",
    takes=dict.fromkeys(PROFILES, "about a minute"),
    claims=CLAIMS,
    settings=lambda _: {"checks": len(checks()), "steps_up_to": K_MAX, "dtype": "float64"},
    run=run,
)


def _polynomial(series: Series, order: int) -> Callable[[float], Tensor]:
    return lambda alpha: evaluate_series(series, alpha, order)


def _vanishes(term: Tensor) -> bool:
    """Is this coefficient zero, so that the expansion before it is exact and leaves no slope to fit?"""
    return float(term.norm()) == 0.0
