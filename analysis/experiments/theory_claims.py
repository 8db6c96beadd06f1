"""The theorems of the ledger, with their criteria, written before any check was run.

Bands are two-sided: a slope that is too good is a fault as well.
"""

from math import inf
from typing import NamedTuple

from analysis.paper import quotes
from analysis.paper.quotes import beyond
from analysis.results.claims import Claim, Control

K_MAX = 5
SLOPE = (
    "the next order bends the fit by less than its share, a few times alpha times curvature, which "
    "is 0.01 to 0.03"
)
COEFFICIENT = (
    "Richardson's error at this alpha is of the fourth order in alpha times curvature, below 1e-5; "
    "the smallest error of a wrong formula is 0.36"
)
ROUND_OFF = "float64 round-off, 2e-16, through a few thousand operations"


class Criterion(NamedTuple):
    """Quantity that is measured, the ends of its band, and why the band is that wide."""

    quantity: str
    low: float
    high: float
    reason: str


def _theorem(
    id: str, sources: str, statement: str, criterion: Criterion, wrong: str, quotation: str
) -> Claim:
    """Return the claim of a theorem.

    wrong: the formula that is put in the right one's place and must fail.
    """
    return Claim(
        id=id,
        kind="theorem",
        sources=tuple(sources.split(", ")),
        statement=statement,
        quotation=quotation,
        quantity=criterion.quantity,
        band=(criterion.low, criterion.high),
        limits=(0.0, inf) if criterion.low == 0.0 else (-inf, inf),  # norms
        reason=criterion.reason,
        control=Control(kind="wrong formula", words=wrong),
        least="smoke",
    )


CLAIMS = (
    _theorem(
        "taylor-gradient",
        "P5.1",
        "g_i = g_bar_i - alpha H_bar_i sum_{j<i} g_bar_j + O(alpha^2), i = 2 … 5",
        Criterion("slope of the remainder less 2", -0.05, 0.05, SLOPE),
        "the sum taken over j <= i",
        (
            r"Section 5.1, equations 13 to 16: $g_i = \bar g_i - \alpha \bar H_i \sum_{j<i} \bar "
            r"g_j$ $+ \, O(\alpha^2)$"
        ),
    ),
    _theorem(
        "taylor-maml",
        "P5.1",
        "MAML's gradient has its two first-order sums, k = 2 … 5",
        Criterion("slope of the remainder less 2", -0.05, 0.05, SLOPE),
        "FOMAML's one sum in their place",
        (
            r"Section 5.1, equations 17 to 24: $g_{\text{MAML}} = \bar g_k - \alpha \bar H_k "
            r"\sum_{j<k} \bar g_j$ $- \, \alpha \sum_{j<k} \bar H_j \bar g_k + O(\alpha^2)$"
        ),
    ),
    _theorem(
        "taylor-maml-product",
        "P5.1",
        "MAML's gradient is prod_{j<k} (I - alpha L_j''(phi_j)) g_k, exactly",
        Criterion("relative difference", 0.0, 1e-12, ROUND_OFF),
        "Hessians taken at phi_1",
        (
            r"Section 5.1: $g_{\text{MAML}} = \prod_{j<k}$ $(I - \alpha "
            r"L_j^{\prime\prime}(\phi_j)) \, g_k$"
        ),
    ),
    _theorem(
        "taylor-second-order",
        "N",
        (
            "with the alpha^2 terms, third derivatives included, a remainder of order 3 is left of "
            "every gradient"
        ),
        Criterion("slope of the remainder less 3", -0.05, 0.05, SLOPE),
        "without the third derivative",
        beyond(
            r"the second-order term of $g_i$ is $\alpha^2 \bar H_i \sum_{j<i} \bar H_j \sum_{l<j} "
            r"\bar g_l$ $+ \, \tfrac{1}{2} \alpha^2 \, T_i[s, s]$, with $s = \sum_{j<i} \bar g_j$ "
            r"and $T_i = L_i^{\prime\prime\prime}(\phi_1)$"
        ),
    ),
    _theorem(
        "taylor-any-order",
        "N",
        (
            "nested forward mode gives the series to any order: truncated after n it leaves order "
            "n + 1, n = 1 … 4"
        ),
        Criterion("slope of the remainder less (n + 1)", -0.05, 0.05, SLOPE),
        "the last coefficient times 1.01",
        beyond(
            r"$g_i(\alpha) = \sum_{m=0}^{n} \frac{\alpha^m}{m!} \, g_i^{(m)}(0)$ $+ \, "
            r"O(\alpha^{n+1})$"
        ),
    ),
    _theorem(
        "taylor-channels",
        "N",
        "the coefficients by formula equal those by nested forward mode, orders 0, 1 and 2",
        Criterion("relative difference", 0.0, 1e-12, ROUND_OFF),
        "the third derivative's 1/2 left out",
        beyond(
            r"the terms written out, such as $-\alpha \bar H_i \sum_{j<i} \bar g_j$, are the "
            r"derivatives $\frac{\alpha^m}{m!} \, g_i^{(m)}(0)$"
        ),
    ),
    *(
        _theorem(
            f"expectation-{name}",
            "P5.1, B",
            f"{words}, k = 2 … {K_MAX}",
            Criterion("error of a coefficient", -1e-3, 1e-3, COEFFICIENT),
            f"the coefficients of {other}",
            f"Section 5.1, equations 33 to 41: {equation}. {quotes.SAME_TERMS}",
        )
        for name, words, other, equation in (
            (
                "maml",
                "E[g_MAML] = AvgGrad - 2 (k-1) alpha AvgGradInner",
                "FOMAML",
                r"$E[g_{\text{MAML}}] = \text{AvgGrad}$ "
                r"$- \, 2 (k-1) \, \alpha \, \text{AvgGradInner}$ $+ \, O(\alpha^2)$",
            ),
            (
                "fomaml",
                "E[g_k] = AvgGrad - (k-1) alpha AvgGradInner",
                "MAML",
                (
                    r"$E[g_k] = \text{AvgGrad}$ $- \, (k-1) \, \alpha \, \text{AvgGradInner}$ $+ "
                    r"\, O(\alpha^2)$"
                ),
            ),
            (
                "reptile",
                "E[g_1 + … + g_k] = k AvgGrad - 1/2 k (k-1) alpha AvgGradInner",
                "FOMAML",
                r"$E[g_1 + \dots + g_k] = k \, \text{AvgGrad}$ "
                r"$- \, \tfrac{1}{2} k (k-1) \, \alpha \, \text{AvgGradInner}$ $+ \, O(\alpha^2)$",
            ),
        )
    ),
    _theorem(
        "expectation-any-sum",
        "N",
        (
            "E[sum w_i g_i] = sum w_i AvgGrad - alpha sum w_i (i-1) AvgGradInner: figure 3's "
            "variants and random w"
        ),
        Criterion("error of a coefficient", -1e-3, 1e-3, COEFFICIENT),
        "i in place of i - 1",
        beyond(
            r"$E[\sum_i w_i g_i] = \sum_i w_i \, \text{AvgGrad}$ $- \, \alpha \sum_i w_i (i-1) \, "
            r"\text{AvgGradInner}$ $+ \, O(\alpha^2)$"
        ),
    ),
    _theorem(
        "inner-product-identity",
        "P5.1",
        "AvgGradInner = 1/2 d/dphi E[g_bar_1 . g_bar_2]",
        Criterion("relative difference", 0.0, 1e-12, ROUND_OFF),
        "pairs of equal minibatches let in",
        r"Section 5.1: $\text{AvgGradInner} = E[\bar H_2 \bar g_1]$ "
        r"$= \tfrac{1}{2} \, E[\frac{\partial}{\partial \phi_1} (\bar g_1 \cdot \bar g_2)]$",
    ),
    _theorem(
        "overlap-covariance",
        "N",
        (
            "E[H_bar_2 g_bar_1] = 1/2 d/dphi (|E g|^2 + tr Cov): independent, disjoint and "
            "repeated minibatches"
        ),
        Criterion("relative difference", 0.0, 1e-12, ROUND_OFF),
        "one case's covariance for another's",
        beyond(
            r"$E[\bar H_2 \bar g_1] = \tfrac{1}{2} \frac{d}{d\phi} ( |E \bar g|^2$ $+ \, \text{tr} "
            r"\, \text{Cov}(\bar g_1, \bar g_2) )$, of minibatches that are independent, disjoint "
            "parts of one pool, or the same one twice"
        ),
    ),
    _theorem(
        "joint-training",
        "B, P5.1",
        "k = 1 is joint training: the same update, and no AvgGradInner in it",
        Criterion(
            "relative difference; coefficient",
            -1e-9,
            1e-9,
            "round-off of the extrapolation, 2e-16 / alpha",
        ),
        "k = 2",
        f"{quotes.JOINT} Section 5.1: $-\\tfrac{{1}}{{2}} k (k-1) \\, \\alpha = 0$ at $k = 1$",
    ),
    _theorem(
        "solution-manifolds",
        "P5.2",
        (
            "on affine manifolds Reptile's fixed point goes to the minimizer of the mean squared "
            "distance as k grows"
        ),
        Criterion(
            "distance at k = 64",
            0.0,
            1e-6,
            "the slowest direction has shrunk by (1.3^2 - 1)^64 = 5e-11",
        ),
        "k = 1, joint training",
        (
            r"Section 5.2: minimize $E_\tau[ \tfrac{1}{2} D(\phi, W_\tau)^2 ]$ by steps $\phi "
            r"\leftarrow (1 - \epsilon) \, \phi + \epsilon P_{W_\tau}(\phi)$, the projection "
            r"$P_{W_\tau}(\phi)$ approximated by $k$ inner steps"
        ),
    ),
    _theorem(
        "implicit-sgd",
        "B, N",
        (
            "an epoch of shuffled SGD moves in the mean as gradient flow on L + (eps/4m) sum "
            "|dL_k|^2, to O(eps^3)"
        ),
        Criterion("slope of the difference less 3", -0.05, 0.05, SLOPE),
        "gradient flow on L alone",
        f"{quotes.OUTSIDE} "
        + beyond(
            r"SGD in $m$ minibatches, shuffled, follows $L + \frac{\epsilon}{4m} \sum_k |\nabla "
            r"L_k|^2$ in the mean (Smith et al., arXiv 2101.12176)"
        ),
    ),
    _theorem(
        "minibatch-order",
        "N",
        "theta_AB - theta_BA = alpha^2 (H_B g_A - H_A g_B) + O(alpha^3)",
        Criterion("slope of the remainder less 3", -0.05, 0.05, SLOPE),
        "the opposite sign",
        beyond(r"$\theta_{AB} - \theta_{BA}$ $= \alpha^2 (H_B g_A - H_A g_B)$ $+ \, O(\alpha^3)$"),
    ),
)
