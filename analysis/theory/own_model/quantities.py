"""The vectors of an analysis, each computed in a way that torch has and its channels agree with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.theory.derivatives import gradient
from analysis.theory.own_model.certify import (
    CHANNELS,
    G_BAR,
    MAML,
    PRODUCTS,
    Certificate,
    Probe,
    Setting,
)
from analysis.theory.own_model.checks import NotFinite, check_finite
from analysis.theory.own_model.locate import culprits, not_finite
from analysis.theory.own_model.loops import Along, Way, by_products, forward, reverse
from analysis.theory.own_model.quotients import DIFFERS, HOLDS, Agreement, Differences, compare
from analysis.theory.taylor import inner_gradient_terms, maml_terms

IN_ALPHA = "differences in alpha of the loop"


@dataclass(frozen=True)
class Quantities:
    """The quantities that may have to be withheld.

    products: H_bar_a sum_{b != a} g_bar_b, of which AvgGradInner is the mean.
    way: the way to the derivatives in terms and products; None where they are by differences.
    maml_way: the way of MAML's gradient, the last row of exact and of at_half.
    """

    exact: Float[Tensor, "u P"]
    at_half: Float[Tensor, "u P"]
    g_bar: Float[Tensor, "m P"]
    terms: Float[Tensor, "u orders P"]
    products: Float[Tensor, "m P"]
    way: Way | None
    maml_way: Way


def quantities(setting: Setting, *, certify: bool) -> tuple[Quantities, Certificate]:
    """Return every quantity, and its certificate.

    certify: check each quantity against its channels, and withhold what differs.
    """
    at, certificate = setting, Certificate()
    try:
        g_bar = torch.stack([gradient(loss, at.phi) for loss in at.pool])
    except (NotImplementedError, RuntimeError) as error:
        raise _no_derivative(at, error) from error
    for i, finite in enumerate(g_bar.isfinite().all(-1)):
        if not finite:
            raise _not_finite(at, i)
    probe = Probe(at, g_bar)

    def take_exact(way: Way) -> Tensor:
        exact = by_products(at.steps, at.phi, at.alpha, way)
        # A product that is not finite may be a wrong derivative: its channels check it.
        rows = slice(at.k) if certify else slice(None)
        check_finite(at.names[rows], exact[rows], at.alpha)
        return exact

    def hold_exact(exact: Tensor, way: Way) -> Certificate:
        return Certificate({MAML: probe.maml(exact[-1])})

    # Where gradients are stopped, backward passes alone are what autograd does.
    ways = (reverse,) if at.stops else (reverse, forward)
    exact, maml_way = _best(at, ways, take_exact, hold_exact if certify else None, certificate)
    at_half = by_products(at.steps, at.phi, at.alpha / 2, maml_way)

    (terms, products), way = _higher(at, probe, maml_way, certificate, certify)
    if certify:
        certificate.add(G_BAR, *probe.gradients())
        for name, agreement in zip(at.names, probe.gradients_met(exact[: at.k]), strict=False):
            certificate.add(("exact", name, 0), agreement)
        certificate.spread(G_BAR)
    return _withheld(
        at, Quantities(exact, at_half, g_bar, terms, products, way, maml_way), certificate
    ), certificate


def _best(
    at: Setting,
    ways: Sequence[Way],
    take: Callable[[Way], Any],
    hold: Callable[[Any, Way], Certificate] | None,
    certificate: Certificate,
) -> tuple[Any, Way]:
    """Return something taken in the best way to the derivatives, and that way.

    The best way is the first that torch has and no channel differs from, or else the one with the
    fewest differences. What differs in the other ways is noted, but decides nothing.
    """
    tried: list[tuple[int, int, Any, Way, Certificate]] = []
    errors: list[Exception] = []
    for way in ways:
        try:
            found = take(way)
        except NotFinite:
            raise
        # Of any kind: a model says in its own words what it cannot do with wrapped tensors.
        except Exception as error:
            errors.append(error)
            continue
        held = hold(found, way) if hold else Certificate()
        tried.append((held.withheld(), len(tried), found, way, held))
        if not held.withheld():
            break
    if not tried:
        raise _no_derivative(at, errors[0]) from errors[0]
    _, best, found, way, held = min(tried, key=lambda each: each[:2])
    for _, number, _, other, rejected in tried:
        for key, agreements in (held if number == best else rejected).items():
            certificate.add(key, *(agreements if number == best else _unheard(agreements, other)))
    return found, way


def _higher(
    at: Setting, probe: Probe, maml_way: Way, certificate: Certificate, certify: bool
) -> tuple[tuple[Float[Tensor, "u orders P"], Float[Tensor, "m P"]], Way | None]:
    """Return the terms of the series with the products behind AvgGradInner, and their way.

    AvgGradInner is the mean of the products.
    """

    @cache
    def series() -> list[Differences]:
        """Return the coefficients by differences in alpha.

        There are none of one step, or of order 0 alone.
        """
        return probe.series(maml_way) if at.order and at.k > 1 else []

    def take(way: Way) -> tuple[Tensor, Tensor]:
        products = [way(loss, at.phi, v) for loss, v in zip(at.pool, probe.pairings, strict=True)]
        products_at = partial(Along, way)
        formulas = inner_gradient_terms(at.steps, at.phi, at.order, products_at=products_at)
        formulas.append(maml_terms(at.steps, at.phi, at.order, products_at=products_at))
        powers = at.alpha ** torch.arange(at.order + 1, dtype=at.phi.dtype)
        stacked = [torch.stack(coefficients) for coefficients in formulas]
        terms = torch.stack(stacked) * powers[:, None]
        if at.stops:
            _put_differences(at, series, terms, rows=[-1])
        return terms, torch.stack(products)

    def hold(found: tuple[Tensor, Tensor], way: Way) -> Certificate:
        terms, products = found
        held = Certificate({PRODUCTS: probe.products(way, list(products))})
        for name, row, quotients in zip(at.names, terms, series(), strict=False):
            for n in range(1, at.order + 1):
                held["terms", name, n] = [compare(IN_ALPHA, row[n] / at.alpha**n, quotients, n)]
                # Differences of the loop check it only if the loop's own MAML gradient is right.
                if name == "MAML":
                    held["terms", name, n] += [
                        a for a in certificate[MAML] if a.decides and a.verdict == DIFFERS
                    ]
        return held

    if not at.stops:
        return _best(at, (forward, reverse), take, hold if certify else None, certificate)
    try:
        return _best(at, (forward,), take, hold if certify else None, certificate)
    except NotImplementedError:
        return _by_differences(at, probe, series), None


DifferenceSeries = Callable[[], list[Differences]]


def _by_differences(at: Setting, probe: Probe, series: DifferenceSeries) -> tuple[Tensor, Tensor]:
    """Return the terms and the products as the quotients say.

    This is for a field that is no gradient, where torch has no derivative of it.
    """
    terms = torch.zeros(at.k + 1, at.order + 1, len(at.phi), dtype=at.phi.dtype)
    terms[:-1, 0], terms[-1, 0] = probe.g_bar[: at.k], probe.g_bar[at.k - 1]
    _put_differences(at, series, terms, rows=list(range(at.k + 1)))
    return terms, torch.stack([quotients.value(1) for quotients in probe.by_gradients])


def _put_differences(
    at: Setting, series: DifferenceSeries, terms: Tensor, rows: Sequence[int]
) -> None:
    found = series()
    for row in rows if found else []:
        for n in range(1, at.order + 1):
            terms[row, n] = found[row].value(n) * at.alpha**n


def _withheld(at: Setting, found: Quantities, certificate: Certificate) -> Quantities:
    """Return the quantities with nan in place of what differs.

    Where a gradient at the start differs, all terms are nan, those of order 0 too.
    """
    nan = float("nan")
    exact, at_half, terms = found.exact.clone(), found.at_half.clone(), found.terms.clone()
    g_bar, products = found.g_bar, found.products
    if certificate.differs(G_BAR):
        g_bar, terms = g_bar * nan, terms * nan
    for row, name in enumerate(at.names):
        if certificate.differs(("exact", name, 0)):
            exact[row], at_half[row] = nan, nan
        for n in range(1, at.order + 1):
            if certificate.differs(("terms", name, n)):
                terms[row, n] = nan
    if certificate.differs(PRODUCTS):
        products = products * nan
    return replace(found, exact=exact, at_half=at_half, terms=terms, g_bar=g_bar, products=products)


def _unheard(agreements: list[Agreement], way: Way) -> list[Agreement]:
    return [
        replace(a, channel=f"{CHANNELS[way]}, not taken: {a.channel}", decides=False)
        for a in agreements
        if a.decides and a.verdict != HOLDS
    ]


def _not_finite(at: Setting, i: int) -> ValueError:
    """Return an error that names the functions whose gradient is not finite."""
    places = ", ".join(not_finite(at.model, at.pool[i], at.phi)) or "no function alone shows it"
    return ValueError(
        f"loss: expected a finite gradient, found nan or infinity on minibatch {i} ({places}). "
        "Keep the function away from such a point, as by adding a small number, or take another "
        "point"
    )


def _no_derivative(at: Setting, error: Exception) -> NotImplementedError:
    """Return an error that names the layers in which torch has no derivative, and ways out."""
    order = at.order + 1 if at.k > 1 else 2
    places = culprits(at.model, at.pool[0], at.phi, order=order, failing=True)
    return NotImplementedError(
        f"model: expected derivatives up to order {max(2, at.order + 1)}, found none in torch for "
        f"{'; '.join(places) or 'a part of it that was not found'} ({str(error).splitlines()[0]}). "
        "Write that part in elementary operations, turn off gradient checkpointing, or ask for a "
        "lower order"
    )
