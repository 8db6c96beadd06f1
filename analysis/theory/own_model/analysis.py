"""What an analysis found, as numbers, tables and five lines of words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.theory.derivatives import Vector
from analysis.theory.own_model.quotients import DIFFERS, HOLDS, VERDICTS
from analysis.theory.own_model.trees import Tree

FAR = 0.9  # the share of what the inner steps change that first order is to explain


@dataclass(frozen=True)
class Analysis:
    """The results of `analyse` for u = k + 1 gradients, m minibatches and P parameters.

    names: "g_1", …, "g_k", "MAML", the rows of `exact` and `terms`.
    alpha: the learning rate of the inner SGD.
    exact: the gradients themselves: those that k steps of SGD meet, and MAML's through these steps.
    terms: for each gradient the terms of order 0, 1, … in alpha, alpha^n included. Their sum over n
        is near `exact`. terms[i - 1, 0] is g_bar_i and terms[i - 1, 1] is -alpha H_bar_i s_i.
    g_bar: the gradient of every minibatch at the initialization.
    gram: the inner products of `g_bar`.
    avg_grad, avg_grad_inner: the means over the m minibatches, and over their ordered pairs.

    expansion: a row for each gradient and order n, with these columns:
        term       the norm of the order's term
        remainder  the norm of the gradient less all terms up to n
        relative   the remainder over the gradient's own norm
        explained  1 - remainder^2 / |gradient - order 0|^2, the share of what the inner steps
                   changed that the series accounts for
        slope      log2 of the remainder over that at alpha / 2; nan where round-off decides it.
                   It is near n + 1 where alpha is small enough for the series. If it tends to
                   less, the loss has a kink.
    inner_products: a row for each pair i <= j of minibatches: g_bar_i . g_bar_j and their cosine.
    coefficients: how much of AvgGrad and of alpha AvgGradInner the expectations of MAML, FOMAML
        (g_k) and Reptile (g_1 + … + g_k) contain as alpha -> 0. They are measured over all ordered
        choices of k minibatches, and stand next to the theorem's. They are extrapolated from a
        small step of their own, whatever alpha is. `unexplained` is the first-order part along
        neither, per alpha |AvgGradInner|. Empty where that was left out: `left_out` says why.
    unflatten: takes a vector of P numbers apart, into the parameters' own structure.

    certificate: a row for each quantity (with the gradient for `exact` and `terms`, and the order
        for `terms`) and each channel that it was checked against. `agreement` is their relative
        difference, `explained` the difference that step size and round-off can account for, and
        `verdict` one of:
        holds             the difference is explained
        stopped gradient  the model stops gradients: this one is what SGD meets, not the slope of
                          the loss
        undecided         step and round-off hide the quantity
        kink              there are kinks at this point, where a gradient is one of several, or so
                          near that they hide the quantity
        differs           a derivative is wrong: the quantity is nan where differences say so
                          (`withheld`)
        not checked       no channel was tried (certify=False), or the quantity was left out
    distrust: what is wrong or has another meaning, a sentence each, with the layer or function and
        the way out.
    notes: what is right but may surprise.
    """

    names: tuple[str, ...]
    alpha: float
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
    certificate: pd.DataFrame
    distrust: tuple[str, ...]
    notes: tuple[str, ...]

    def verdict(self, quantity: str) -> str:
        """Return the worst verdict on a quantity, such as "terms", over all its rows."""
        rows = self.certificate[(self.certificate.quantity == quantity) & self.certificate.decides]
        return max(rows.verdict, key=VERDICTS.index) if len(rows) else "not checked"

    @property
    def withheld(self) -> tuple[str, ...]:
        """The quantities that hold nan in place of what differs from its channels."""
        return tuple(q for q in self.certificate.quantity.unique() if self.verdict(q) == DIFFERS)

    def summary(self) -> str:
        """Return five lines: what holds on this model, how far alpha can go, what to distrust."""
        return "\n".join(
            [self._checked(), self._slopes(), self._reach(), self._theorem(), self._distrusted()]
        )

    def _checked(self) -> str:
        held = self.certificate[self.certificate.decides & (self.certificate.verdict == HOLDS)]
        if not len(self.certificate):
            return "Checked: nothing, as certify=False."
        whole = int(self.certificate.decides.sum())
        withheld = "nothing is withheld"
        if self.withheld:
            withheld = f"withheld: {', '.join(self.withheld)}"
        return (
            f"Checked: {len(held)} of {whole} comparisons with channels that share no rule hold, "
            f"all within what step and round-off explain; {withheld}."
        )

    def _slopes(self) -> str:
        rows = self.expansion[(self.expansion.gradient != "g_1") & self.expansion.slope.notna()]
        if not len(rows):
            hidden = self._without_series() or "round-off hides how the remainders fall"
            return f"Series: {hidden}."
        by_order = rows.groupby("order").slope.agg(["min", "max"])
        ranges = [
            f"{row['min']:.2f} … {row['max']:.2f} for {n + 1}" for n, row in by_order.iterrows()
        ]
        return (
            f"Series: at alpha = {self.alpha:g} the remainders fall as alpha to the power "
            f"{', '.join(ranges)}."
        )

    def _reach(self) -> str:
        if (reach := self.reach()) is None:
            needed = "it needs terms of second order" if self.terms.shape[1] < 3 else ""
            zero = "the terms of first or of second order are zero"
            return f"Reach: not known, as {self._without_series() or needed or zero}."
        name, far = reach
        return (
            f"Reach: first order explains {FAR:.0%} of what the inner steps change up to alpha of "
            f"about {far:.1g} ({name} is the first to leave it)."
        )

    def _without_series(self) -> str:
        """Return why there is no series to judge: one step, or what is withheld; else nothing."""
        if len(self.names) == 2:
            return "there is a single step"
        given = self.exact.isfinite().all() and self.terms.isfinite().all()
        return "" if given else "gradients or terms are withheld"

    def reach(self) -> tuple[str, float] | None:
        """Return the gradient that first order is first to leave unexplained, with its alpha.

        It is the alpha up to which first order explains nine tenths of the change. The share that
        it leaves is about |term of order 2|^2 / |term of order 1|^2, in proportion to alpha^2.
        """
        if self.terms.shape[1] < 3:
            return None
        first = self.terms[:, 1].norm(dim=-1).tolist()
        second = self.terms[:, 2].norm(dim=-1).tolist()
        limits = {
            name: self.alpha * (1 - FAR) ** 0.5 * a / b
            for name, a, b in zip(self.names, first, second, strict=True)
            if a > 0 and b > 0
        }
        return min(limits.items(), key=lambda item: item[1]) if limits else None

    def _theorem(self) -> str:
        cosines = self.inner_products[self.inner_products.i != self.inner_products.j].cosine
        mean = f"Minibatches: their gradients' mean cosine is {cosines.mean():.2f}"
        if self.left_out or not len(self.coefficients):
            return (
                f"{mean}; the coefficients are left out: {self.left_out or 'none were asked for'}."
            )
        table = self.coefficients[self.coefficients.term == "AvgGradInner"]
        each = [
            f"{row.update} {row.measured:.3f} (theorem {row.predicted:g})"
            for row in table.itertuples()
        ]
        return f"{mean}; of alpha AvgGradInner there are {', '.join(each)}."

    def _distrusted(self) -> str:
        notes = f" Note: {' '.join(self.notes)}" if self.notes else ""
        nothing = (
            "nothing that was looked for." if len(self.certificate) else "what was not checked."
        )
        return f"Distrust: {' '.join(self.distrust) or nothing}{notes}"


def expansion(
    names: Sequence[str],
    exact: Float[Tensor, "u P"],
    terms: Float[Tensor, "u orders P"],
    at_half: Float[Tensor, "u P"],
) -> pd.DataFrame:
    """Return the rows of `Analysis.expansion`.

    at_half: the gradients at alpha / 2, whose terms are 2^-n of these.
    """
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
    values = {name: column.flatten().tolist() for name, column in columns.items()}
    return pd.DataFrame(values, index=rows).reset_index()


def inner_products(gram: Float[Tensor, "m m"]) -> pd.DataFrame:
    """Return the rows of `Analysis.inner_products`."""
    length = gram.diagonal().sqrt()
    i, j = torch.triu_indices(*gram.shape, device=gram.device)
    columns = {
        "i": i + 1,
        "j": j + 1,
        "inner_product": gram[i, j],
        "cosine": gram[i, j] / (length[i] * length[j]),
    }
    return pd.DataFrame({name: column.tolist() for name, column in columns.items()})
