"""Every theorem of the ledger, checked on smooth losses in float64.

Each check has a wrong formula that must fail. A check gives rows (claim, case, role, value, data)
for the ledger; rate tests also give the remainders behind their slopes. `checks` lists them as
small independent pieces, which go to worker processes. What a piece has found is kept as a file, so
that an interrupted run loses none of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import analysis.theory
import reptile_core
from analysis.experiments.shared.experiment import Context, Experiment, Result
from analysis.experiments.theory_claims import CLAIMS, K_MAX
from analysis.results.claims import PROFILES
from analysis.results.evidence import CHECK, CONTROL, SHOWN
from analysis.results.tables import in_one_table
from analysis.runs.job import Source, record_digest, split_of
from analysis.runs.workers import Progress
from analysis.theory import manifolds, modified_loss
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
from reptile_core.files import write_atomically
from reptile_core.meta_gradients import figure_3, last, sum_of
from reptile_core.tasks import ImagePool

NAME = "theory"
HALVINGS = 7
OMNIGLOT, MANIFOLDS = "omniglot", "solution manifolds"
TERMS = "AvgGrad", "AvgGradInner"
Pair = tuple[float, float]  # the coefficients of the terms
# What the losses of each pool are made of, in words. For those on images, see `data_of`.
DATA = {
    "quadratic": "quadratic losses, float64",
    "cubic": "cubic losses, float64",
    "tanh network": "small tanh network, float64",
    "": "affine solution manifolds, float64",
}


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
    """Return halvings of the alpha at which alpha |H g| / |g| is 0.01 for the sharpest minibatch.

    From order 4 on they begin at 0.03: 0.01^5 is too near to round-off to be halved.
    """
    largest = 0.01 if order < 4 else 0.03
    return [largest / pool.curvature * 2.0**-n for n in range(HALVINGS)]


def rate_rows(rate: Rate, pool: Pool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the measurement (slope less the order) and the remainders behind it."""
    alphas = step_sizes(pool, order=rate.order)
    slope, remainders = remainder_slope(rate.exact, rate.truncated, alphas)
    common = {"claim": rate.claim, "case": f"{pool.name}: {rate.case}", "role": rate.role}
    points = [
        common | {"order": rate.order, "alpha": alpha, "remainder": remainder, "slope": slope}
        for alpha, remainder in zip(alphas, remainders, strict=True)
    ]
    return common | {"value": slope - rate.order}, points


def gradient_rates(pool: Pool) -> Iterator[Rate]:
    """Yield the rates of taylor-gradient, and of g_i in taylor-second-order."""
    losses, phi = pool.losses, pool.phi
    series = inner_gradient_terms(losses, phi, 2)
    inner = cache(lambda alpha: inner_gradients(losses, phi, alpha))
    s = torch.zeros_like(phi)
    for i, loss in enumerate(losses):
        terms, g_bar = series[i], series[i][0]

        def exact(alpha: float, i: int = i) -> Tensor:
            return inner(alpha)[i]

        wrong_sum: Series = [terms[0], -derivative(loss, phi, s + g_bar)]
        no_third: Series = [*terms[:2], terms[2] - derivative(loss, phi, s, s) / 2]
        case = f"g_{i + 1}"
        if i >= 1 and not _vanishes(terms[2]):
            yield Rate("taylor-gradient", case, CHECK, 2, exact, _polynomial(terms, 1))
            yield Rate("taylor-gradient", case, CONTROL, 2, exact, _polynomial(wrong_sum, 1))
        if i >= 1 and pool.degree is None:
            yield Rate("taylor-second-order", case, CHECK, 3, exact, _polynomial(terms, 2))
            yield Rate("taylor-second-order", case, CONTROL, 3, exact, _polynomial(no_third, 2))
        s = s + g_bar


def update_rates(pool: Pool, k: int) -> Iterator[Rate]:
    """Yield the rates of taylor-maml, and of the meta-gradients in taylor-second-order."""
    losses, phi = pool.losses[:k], pool.phi
    series = inner_gradient_terms(losses, phi, 2)
    maml = maml_terms(losses, phi, 2)
    inner = cache(lambda alpha: torch.stack(inner_gradients(losses, phi, alpha)))
    exact = cache(lambda alpha: maml_gradient(losses, phi, alpha))

    if not _vanishes(maml[2]):
        yield Rate("taylor-maml", f"k = {k}", CHECK, 2, exact, _polynomial(maml, 1))
        yield Rate("taylor-maml", f"k = {k}", CONTROL, 2, exact, _polynomial(series[-1], 1))
    if pool.degree is not None:
        return
    yield Rate("taylor-second-order", f"MAML, k = {k}", CHECK, 3, exact, _polynomial(maml, 2))
    for variant in (sum_of(k), last(k)):
        terms = weighted_terms(series, variant.weights)

        def summed(alpha: float, weights: tuple[float, ...] = variant.weights) -> Tensor:
            return phi.new_tensor(weights) @ inner(alpha)

        case = f"{variant.name}, k = {k}"
        yield Rate("taylor-second-order", case, CHECK, 3, summed, _polynomial(terms, 2))


def any_order_rates(pool: Pool, k: int = 3) -> Iterator[Rate]:
    """Yield the rates of taylor-any-order, on g_k and on MAML."""
    losses, phi = pool.losses[:k], pool.phi

    def last_gradient(alpha: float) -> Tensor:
        return inner_gradients(losses, phi, alpha)[-1]

    def of_maml(alpha: float) -> Tensor:
        return maml_gradient(losses, phi, alpha)

    cases: tuple[tuple[str, Callable[[float], Tensor], Series], ...] = (
        (f"g_{k}", last_gradient, inner_gradient_series(losses, phi, 4)[-1]),
        (f"MAML, k = {k}", of_maml, maml_series(losses, phi, 4)),
    )
    for name, gradient_at, series in cases:
        exact = cache(gradient_at)
        for n in range(1, 5):
            wrong = [*series[:n], 1.01 * series[n]]
            case, order = f"{name}, n = {n}", n + 1
            yield Rate("taylor-any-order", case, CHECK, order, exact, _polynomial(series, n))
            yield Rate("taylor-any-order", case, CONTROL, order, exact, _polynomial(wrong, n))


def sgd_rates(pool: Pool, m: int = 4) -> Iterator[Rate]:
    """Yield the rates of implicit-sgd and minibatch-order."""
    losses, phi = pool.losses[:m], pool.phi

    epoch = cache(lambda eps: modified_loss.shuffled_displacement(losses, phi, eps))

    def flow(eps: float, correction: float) -> Tensor:
        field = modified_loss.modified_gradient(losses, correction * eps)
        return modified_loss.flow_displacement(field, phi, m * eps)

    yield Rate("implicit-sgd", f"m = {m}", CHECK, 3, epoch, lambda eps: flow(eps, 1.0))
    yield Rate("implicit-sgd", f"m = {m}", CONTROL, 3, epoch, lambda eps: flow(eps, 0.0))

    a, b = losses[:2]

    def difference(alpha: float) -> Tensor:
        return modified_loss.order_difference(a, b, phi, alpha)

    def prediction(alpha: float, sign: float = 1.0) -> Tensor:
        return sign * modified_loss.predicted_order_difference(a, b, phi, alpha)

    opposite = partial(prediction, sign=-1.0)
    yield Rate("minibatch-order", "two steps", CHECK, 3, difference, prediction)
    yield Rate("minibatch-order", "two steps", CONTROL, 3, difference, opposite)


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


def expected_sums(pool: Pool, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the coefficients of E[sum_i w_i g_i] for sums of k = 2 … K_MAX steps.

    The weights are figure 3's, and random ones.
    """
    generator = torch.Generator()
    sums = [(variant.name, variant.weights) for variant in figure_3(K_MAX) if variant.k > 1]
    for k in range(2, K_MAX + 1):
        random = torch.randn(k, generator=generator.manual_seed(seed), dtype=torch.float64)
        sums.append(("random weights", tuple(random.tolist())))
    matrix = torch.tensor([w + (0.0,) * (K_MAX - len(w)) for _, w in sums], dtype=torch.float64)

    def all_sums(alpha: float) -> Tensor:
        return matrix @ expected_inner_gradients(pool.losses, pool.phi, alpha, K_MAX)

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


@dataclass(frozen=True)
class Check:
    """One piece of work: which check, on which pool, for which k (0 where there is none)."""

    name: str
    pool: str = ""
    k: int = 0


def checks() -> list[Check]:
    """Return all pieces, longest first.

    Those on the paper's own network come before those on small losses.
    """
    ks = range(K_MAX, 1, -1)
    pieces = [Check("expected MAML", OMNIGLOT, k) for k in ks]
    on_omniglot = "sgd", "any order", "expected sums", "gradients", "identities"
    pieces += [Check(name, OMNIGLOT) for name in on_omniglot]
    pieces += [*(Check("updates", OMNIGLOT, k) for k in ks), Check("joint training", OMNIGLOT)]
    for pool in ("tanh network", "cubic"):
        pieces += [Check("expected sums", pool), *(Check("expected MAML", pool, k) for k in ks)]
    pieces += [Check("sgd", "tanh network"), Check("any order", "tanh network")]
    for pool in SMALL_POOLS:
        pieces += [Check(name, pool) for name in ("gradients", "identities", "joint training")]
        pieces += [Check("updates", pool, k) for k in ks]
    return [*pieces, Check(MANIFOLDS)]


Rows = list[dict[str, Any]]


Found = tuple[Rows, Rows]  # for the ledger, and the remainders of rate tests


def run_check(check: Check, progress: Progress, *, source: Source) -> Found:
    """Return what one piece finds.

    The pool "omniglot" is drawn from the training classes of the source's split for seed 0.
    """
    rows: Rows = []
    points: Rows = []
    if check.name == MANIFOLDS:
        rows = list(solution_manifolds())
    else:
        pool = pool_of(check, source)
        if check.name in IDENTITIES:
            rows = list(IDENTITIES[check.name](pool, check.k))
        else:
            for rate in RATES[check.name](pool, check.k):
                row, points_of_rate = rate_rows(rate, pool)
                rows.append(row)
                points += points_of_rate
    progress(1)
    data = data_of(check, source)
    return [row | {"data": data} for row in rows], points


def pool_of(check: Check, source: Source) -> Pool:
    if check.pool != OMNIGLOT:
        return SMALL_POOLS[check.pool]()
    return omniglot_softplus(ImagePool(split_of(source, seed=0).train, FLOAT))


def data_of(check: Check, source: Source) -> str:
    """Return the data of a piece in words: the script's images, or losses of its own."""
    if check.pool != OMNIGLOT:
        return DATA[check.pool]
    minibatches = "real minibatches" if source.real else f"minibatches of {source.name}"
    return f"Omniglot network with softplus, {minibatches}"


def run_or_read(
    check: Check, progress: Progress, *, source: Source, folder: Path, fresh: bool
) -> Found:
    """Return what one piece finds, read from its file in `folder` if it is there.

    fresh: True to compute it whatever is there.
    """
    path = folder / f"{key(check, source)}.json"
    found = None if fresh else _read(path)
    if found is None:
        found = run_check(check, progress, source=source)
        write_atomically(path, json.dumps(found).encode())
    else:
        progress(1)
    return found


def key(check: Check, source: Source) -> str:
    """Return the digest of all that decides what a piece finds.

    That is the piece itself, the code, PyTorch's version, and the images where it has some.
    """
    data = source.identity if check.pool == OMNIGLOT else ""
    return record_digest(
        {"check": asdict(check), "data": data, "code": code(), "torch": torch.__version__}
    )


@cache
def code() -> str:
    """Return the SHA-256 of this file and of all Python files of the theory and of the core."""
    folders = [Path(path) for path in (*analysis.theory.__path__, *reptile_core.__path__)]
    found = hashlib.sha256(Path(__file__).read_bytes())
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            found.update(f"\n{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _read(path: Path) -> Found | None:
    """Return what a file holds; None where there is none or it holds something else.

    The piece is then done again.
    """
    try:
        rows, points = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return rows, points


IDENTITIES: dict[str, Callable[[Pool, int], Iterator[dict[str, Any]]]] = {
    "identities": lambda pool, _: identities(pool),
    "expected sums": lambda pool, _: expected_sums(pool),
    "expected MAML": lambda pool, k: expected_maml_gradient(pool, k),
    "joint training": lambda pool, _: joint_training(pool),
}
RATES: dict[str, Callable[[Pool, int], Iterator[Rate]]] = {
    "gradients": lambda pool, _: gradient_rates(pool),
    "updates": lambda pool, k: update_rates(pool, k),
    "any order": lambda pool, _: any_order_rates(pool),
    "sgd": lambda pool, _: sgd_rates(pool),
}


def run(context: Context) -> Result:
    """Check every theorem on smooth losses."""
    work = partial(
        run_or_read, source=context.source, folder=context.runs / "checks", fresh=context.fresh
    )
    results = context.workers.map(NAME, work, checks(), unit=" checks")
    rows = in_one_table(found for found, _ in results)
    points = in_one_table(remainders for _, remainders in results)
    data = ("small smooth losses in float64", context.source.name)
    return Result(
        {NAME: rows, "remainders": points},
        rows[["claim", "case", "role", "value", "data"]],
        data=data,
    )


EXPERIMENT = Experiment(
    name=NAME,
    shows=(
        "section 5: every theorem judged by rate tests and exact enumeration, each with a wrong "
        "formula"
    ),
    takes=dict.fromkeys(PROFILES, "about a minute and a half"),
    claims=CLAIMS,
    settings=lambda _: {"checks": len(checks()), "steps_up_to": K_MAX, "dtype": "float64"},
    run=run,
    # Its theorems hold on any images: the minibatches of three checks may be of the stand-in.
    fetches=False,
)


def _polynomial(series: Series, order: int) -> Callable[[float], Tensor]:
    return lambda alpha: evaluate_series(series, alpha, order)


def _vanishes(term: Tensor) -> bool:
    """Return whether this coefficient is zero.

    The expansion before it is then exact, and leaves no slope to fit.
    """
    return float(term.norm()) == 0.0
