"""Claims: what is said and where, the band for its measurements, and the control that must fail.

A claim is data. `judge` gives the verdict, from a table of evidence alone.
"""

from dataclasses import dataclass
from math import inf, isfinite, isnan
from typing import Literal

Profile = Literal["smoke", "quick", "paper"]
PROFILES: tuple[Profile, ...] = ("smoke", "quick", "paper")  # from small to large
SEEDS_OF_AN_EPOCH = 1_000


@dataclass(frozen=True, kw_only=True)
class Control:
    """A measurement that must fail, which shows that the check can fail.

    kind: one of
        "wrong formula"  for theorems: it must be outside the band of the claim in every case;
        "foil"           another treatment, which the check must beat seed by seed: the mean paired
                         difference is above 0 in the direction of the band's open end. Where the
                         band has two ends, the foil itself must be outside it;
        "sham"           a comparison without a treatment, whose interval must be within `band`.
    words: what it is.
    band: of a sham; None for other kinds.
    """

    kind: Literal["wrong formula", "foil", "sham"]
    words: str
    band: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if (self.kind == "sham") != (self.band is not None):
            raise ValueError(
                f"band: expected one of a sham and of nothing else, found {self.band} of a "
                f"{self.kind}"
            )
        if self.band is not None:
            _check_band("control.band", self.band)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim: what is said, where, and what would show it.

    id: its name in tables.
    kind: "theorem" (exact values, each of which must be in the band) or "experiment" (values over
        seeds, whose mean must).
    sources: any of "B" (the authors' post), "P6.2" (a section of the paper), "N" (ours).
    statement: the claim in a sentence.
    quotation: what the source says, LaTeX between dollars.
    quantity: what is measured, in words with its unit.
    band: where the quantity must be; an end may be infinite.
    limits: the least and the greatest value that the quantity can have.
    reason: why this band.
    control: what is measured in the check's place and must fail.
    epoch: which seeds judge it: 1000 · epoch, 1000 · epoch + 1, …. It is raised whenever the
        criterion changes, so that a criterion is never judged on seeds that shaped it.
    amended: what was changed, and why; empty if nothing was.
    least: the smallest profile at which it is judged.
    """

    id: str
    kind: Literal["theorem", "experiment"]
    statement: str
    band: tuple[float, float]
    control: Control
    sources: tuple[str, ...] = ()
    quantity: str = ""
    reason: str = ""
    quotation: str = ""
    limits: tuple[float, float] = (-inf, inf)
    epoch: int = 0
    amended: str = ""
    least: Profile = "quick"

    def __post_init__(self) -> None:
        _check_band(f"band of {self.id}", self.band)
        _check_band(f"limits of {self.id}", self.limits)
        if (self.kind == "theorem") != (self.control.kind == "wrong formula"):
            raise ValueError(
                f"control of {self.id}: expected a wrong formula for a theorem and a foil or a "
                f"sham for an experiment, found a {self.control.kind} for a {self.kind}"
            )
        if self.least not in PROFILES:
            raise ValueError(
                f"least of {self.id}: expected one of {', '.join(PROFILES)}, found {self.least!r}"
            )

    @property
    def direction(self) -> int:
        """The end of the band that can be missed: 1 for the low, -1 for the high, 0 for both."""
        low, high = map(isfinite, self.tested)
        return int(low) - int(high) if low != high else 0

    @property
    def tested(self) -> tuple[float, float]:
        """The band without the ends that the quantity cannot pass, which need no test."""
        (low, high), (least, most) = self.band, self.limits
        return low if low > least else -inf, high if high < most else inf


def seeds(epoch: int, count: int) -> list[int]:
    """Return the first `count` seeds of an epoch.

    Raises ValueError where there are not so many.
    """
    if not 0 <= count <= SEEDS_OF_AN_EPOCH:
        raise ValueError(
            f"count: expected 0 to {SEEDS_OF_AN_EPOCH} seeds of an epoch, found {count}"
        )
    return list(range(SEEDS_OF_AN_EPOCH * epoch, SEEDS_OF_AN_EPOCH * epoch + count))


def _check_band(name: str, band: tuple[float, float]) -> None:
    low, high = band
    if isnan(low) or isnan(high) or low > high:
        raise ValueError(f"{name}: expected low <= high, found [{low}, {high}]")
