"""Every quantity of an analysis, checked against channels that share no differentiation rule.

    gradients          differences of the loss along a random direction;
                       the caller's own module in plain torch
    products L'' v     differences of gradients; the other order of modes
    MAML's gradient    one backward pass through the loop;
                       differences of the adapted loss along a random direction
    terms of a series  differences in alpha of SGD's loop, and of a backward pass through it
    coefficients       themselves at another step

Differences decide. A second rule that disagrees with the first is named all the same.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import chain
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.theory.derivatives import Vector, gradient
from analysis.theory.own_model.loops import (
    Way,
    adapted_loss,
    by_products,
    forward,
    reverse,
    through_the_loop,
)
from analysis.theory.own_model.losses import ModuleFunction, OwnLoss, evaluated
from analysis.theory.own_model.quotients import (
    DIFFERS,
    HOLDS,
    STOPPED,
    Agreement,
    Differences,
    compare,
    compare_rules,
    worst,
)

Key = tuple[str, str, int]  # quantity, gradient or "", order
CHANNELS = {forward: "forward over reverse mode", reverse: "reverse over reverse mode"}
# Minibatches on which a second rule is tried. Rules are the same on all, so these are enough;
# differences are taken on each.
ASKED_TWICE = 2
G_BAR, PRODUCTS, MAML = ("g_bar", "", 0), ("avg_grad_inner", "", 0), ("exact", "MAML", 0)
COEFFICIENTS = ("coefficients", "", 0)


@dataclass(frozen=True)
class Setting:
    """The subject of an analysis: the losses of m minibatches at phi, and what is done with them.

    k: number of steps, over the first of the losses. order: of the series. stops: the names of
        stopped gradients.
    """

    model: Any
    pool: Sequence[OwnLoss]
    k: int
    phi: Vector
    alpha: float
    order: int
    stops: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*(f"g_{i}" for i in range(1, self.k + 1)), "MAML")

    @property
    def steps(self) -> Sequence[OwnLoss]:
        return self.pool[: self.k]

    @property
    def length(self) -> float:
        """The length that phi may move until a loss changes by its own size.

        It is phi's own length, with its numbers counted as a hundredth at least.
        """
        return float(self.phi.norm()) + 0.01 * len(self.phi) ** 0.5


class Certificate(dict[Key, list[Agreement]]):
    """The agreements of each quantity with its channels."""

    def add(self, key: Key, *agreements: Agreement) -> None:
        self.setdefault(key, []).extend(agreements)

    def verdict(self, *keys: Key) -> str:
        """Return the worst verdict on some quantities, from the channels that decide."""
        deciding = self._deciding(keys)
        return worst(deciding).verdict if deciding else HOLDS

    def differs(self, *keys: Key) -> bool:
        return self.verdict(*keys) == DIFFERS

    def spread(self, source: Key) -> None:
        """Let every quantity differ where `source` differs, on which all of them are built."""
        wrong = [a for a in self._deciding([source]) if a.verdict == DIFFERS]
        for key in self.keys() - {source}:
            self.add(key, *(a for a in wrong if a not in self[key]))

    def withheld(self) -> int:
        return sum(self.differs(key) for key in self)

    def table(self) -> pd.DataFrame:
        """Return the rows of `Analysis.certificate`.

        They are the worst of each quantity and channel, and what follows for derived quantities.
        """
        rows = []
        derived = self._derived()
        for key in dict.fromkeys([*self, *derived]):
            for a in _worst_of_each_channel([*self.get(key, ()), *derived.get(key, ())]):
                rows.append((*key, a.channel, a.error, a.explained, a.verdict, a.decides))
        columns = [
            "quantity", "gradient", "order", "channel", "agreement", "explained", "verdict",
            "decides",
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def _derived(self) -> "dict[Key, list[Agreement]]":
        sources = {
            "avg_grad": ["g_bar"],
            "gram": ["g_bar"],
            "inner_products": ["g_bar"],
            "expansion": ["exact", "terms"],
            "coefficients": ["g_bar", "exact", "avg_grad_inner"],
        }
        derived: dict[Key, list[Agreement]] = {}
        for quantity, of in sources.items():
            agreements = self._deciding(key for key in self if key[0] in of)
            left_out = quantity == "coefficients" and COEFFICIENTS not in self
            if agreements and not left_out:
                channel = f"those of {', '.join(of)}"
                derived[quantity, "", 0] = [replace(worst(agreements), channel=channel)]
        return derived

    def _deciding(self, keys: Iterable[Key]) -> list[Agreement]:
        """Return the agreements of some quantities with the channels that decide."""
        every = chain.from_iterable(self.get(key, []) for key in keys)
        return [a for a in every if a.decides]


@dataclass(frozen=True)
class Probe:
    """The channels at one setting.

    Those that do not depend on the way to the derivatives are taken once.
    """

    setting: Setting
    g_bar: Float[Tensor, "m P"]

    def gradients(self) -> list[Agreement]:
        """Return the agreements of the gradients of all minibatches at phi."""
        at, found = self.setting, [*self._of_slopes]
        if isinstance(at.pool[0].function, ModuleFunction):
            own = attempt(at.pool[0].gradient_of_the_module_itself)
            if own is not None:
                found.append(compare_rules("the module itself", self.g_bar[0], own, decides=True))
        return found

    def gradients_met(self, met: Float[Tensor, "k P"]) -> list[Agreement]:
        """Return the agreement of each of g_1 … g_k where SGD meets it; g_1 is met at phi."""
        at = self.setting
        points = at.phi - at.alpha * met.cumsum(0)
        return [self._of_slopes[0], *map(self._gradient, at.steps[1:], points, met[1:])]

    def maml(self, found: Vector) -> list[Agreement]:
        """Return the agreements of MAML's gradient."""
        at = self.setting
        value = adapted_loss(at.steps, at.alpha)
        by_loop = attempt(lambda: through_the_loop(at.steps, at.phi, at.alpha)[-1])
        # Where products cancel most of g_k, round-off of it is left.
        size = float(self.g_bar[at.k - 1].norm())
        agreements = [self._scalar("differences of the adapted loss", value, at.phi, found)]
        if by_loop is not None:
            agreements.append(
                compare_rules(
                    "a backward pass through the loop", found, by_loop, decides=True, size=size
                )
            )
        return agreements

    def products(self, way: Way, products: Sequence[Vector]) -> list[Agreement]:
        """Return the agreements of products with the pairings.

        They were taken in `way`, and are compared with differences and with the other way.
        """
        at = self.setting
        pairs = zip(products, self.by_gradients, strict=True)
        found = [
            compare("differences of gradients", product, differences)
            for product, differences in pairs
        ]
        other = reverse if way is forward else forward
        if at.stops:  # backward passes alone hold constant what is stopped
            return found
        cases = list(zip(at.pool, self.pairings, products, strict=True))
        for loss, v, product in cases[:ASKED_TWICE]:
            if (again := attempt(partial(other, loss, at.phi, v))) is not None:
                found.append(compare_rules(CHANNELS[other], product, again, decides=False))
        return found

    @cached_property
    def _of_slopes(self) -> list[Agreement]:
        cases = zip(self.setting.pool, self.g_bar, strict=True)
        return [self._gradient(loss, self.setting.phi, g) for loss, g in cases]

    @cached_property
    def pairings(self) -> list[Vector]:
        """The sum over b != a of g_bar_b, for each minibatch a.

        AvgGradInner is the mean of their products with H_bar_a.
        """
        whole = self.g_bar.sum(0)
        return [whole - g for g in self.g_bar]

    @cached_property
    def by_gradients(self) -> list[Differences]:
        """The products with the pairings, by differences of gradients."""
        cases = zip(self.setting.pool, self.g_bar, self.pairings, strict=True)
        return [self._moved(loss, g, v) for loss, g, v in cases]

    def series(self, maml_way: Way) -> list[Differences]:
        """Return the coefficients of alpha^1 … of g_1 … g_k and MAML, by differences in alpha.

        The differences are of the loop.
        maml_way: the way of MAML's gradient, which is checked against differences of the adapted
            loss.
        """
        at = self.setting
        whole = through_the_loop if maml_way is reverse else partial(by_products, way=maml_way)
        loop = cache(lambda t: whole(at.steps, at.phi, t))
        size = float(self.g_bar[: max(at.k - 1, 1)].sum(0).norm())
        unit = self.setting.length / size if size else 1.0
        rows: list[Callable[[float], Tensor]] = [
            lambda t: self.g_bar[0],
            *(partial(_row, loop, row) for row in range(1, at.k + 1)),
        ]  # g_1 is constant
        starts = [*self.g_bar[: at.k], self.g_bar[at.k - 1]]
        cases = zip(rows, starts, strict=True)
        return [Differences(row, unit, start.dtype, at.order, start) for row, start in cases]

    @cached_property
    def _direction(self) -> Vector:
        """A random direction of length 1, in which a wrong gradient of any parameter shows."""
        generator = torch.Generator().manual_seed(0)
        d = torch.randn(
            len(self.setting.phi), generator=generator, dtype=torch.float64, device="cpu"
        )
        return (d / d.norm()).to(self.setting.phi)

    def _gradient(self, loss: OwnLoss, point: Vector, g: Vector) -> Agreement:
        return self._scalar("differences of the loss", partial(evaluated, loss), point, g)

    def _scalar(
        self, channel: str, value: Callable[[Vector], Tensor], point: Vector, g: Vector
    ) -> Agreement:
        d = self._direction
        quotients = Differences(lambda t: value(point + t * d), self.setting.length, point.dtype)
        agreement = compare(channel, g @ d, quotients, size=float(g.norm()) / len(g) ** 0.5)
        stopped = self.setting.stops and agreement.verdict == DIFFERS
        return replace(agreement, verdict=STOPPED) if stopped else agreement

    def _moved(self, loss: OwnLoss, g: Vector, v: Vector) -> Differences:
        size, phi = float(v.norm()), self.setting.phi
        unit = self.setting.length / size if size else 1.0
        return Differences(lambda t: gradient(loss, phi + t * v), unit, g.dtype, at_zero=g)


def attempt(call: Callable[[], Tensor]) -> Tensor | None:
    """Return what a channel finds; None where torch has no rule for it."""
    try:
        return call()
    except Exception:
        return None


def _row(rows: Callable[[float], Tensor], row: int, t: float) -> Tensor:
    return rows(t)[row]


def _worst_of_each_channel(agreements: list[Agreement]) -> list[Agreement]:
    by_channel: dict[str, list[Agreement]] = {}
    for a in agreements:
        by_channel.setdefault(a.channel, []).append(a)
    return [worst(mine) for mine in by_channel.values()]
