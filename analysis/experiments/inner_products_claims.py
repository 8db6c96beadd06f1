"""The claims about inner products between gradients of one task's minibatches."""

from analysis.experiments.shared.experiment import EPOCH
from analysis.paper import quotes
from analysis.results.claims import Claim, Control

RISES, RISES_LAST, STEP = "inner-product-rises", "inner-product-rises-last", "inner-product-step"
COSINE = (
    "cosine within tasks less that between tasks, at the end of training (400 iterations at the "
    "quick profile, 40,000 at the paper's) less at the start"
)
TWENTIETH = (
    "a twentieth of an aligned pair's; a cosine cannot be above 1, nor a difference of two "
    "differences of them above 4"
)
FOIL = Control(kind="foil", words="joint training, g1, in its place, on the same tasks")
CLAIMS = (
    Claim(
        id=RISES,
        kind="experiment",
        sources=("B",),
        statement=(
            "meta-training along Reptile's update, g1 + … + gk, raises the cosine between "
            "gradients of minibatches of one task, at the initialization: more than that of pairs "
            "from different tasks, and more than joint training does"
        ),
        quantity=COSINE,
        band=(0.05, 4.0),
        limits=(-4.0, 4.0),
        reason=TWENTIETH,
        control=FOIL,
        quotation=quotes.INNER_PRODUCT,
        epoch=EPOCH,
        amended=(
            "The post says it of Reptile's update alone, so g2 and g4 have become a claim of their "
            "own. The old control, the same pairs grouped by their number, fell whenever the check "
            "rose; joint training, which was in the check, has taken its place. At first the "
            "cosine within tasks alone was judged; it rises as well along a direction that all "
            "tasks share, which says nothing of one task."
        ),
    ),
    Claim(
        id=RISES_LAST,
        kind="experiment",
        sources=("N",),
        statement=(
            "meta-training along the last gradient, g2 or g4, raises the cosine between gradients "
            "of minibatches of one task, too"
        ),
        quantity=COSINE,
        band=(0.05, 4.0),
        limits=(-4.0, 4.0),
        reason=TWENTIETH,
        control=FOIL,
        quotation=quotes.beyond(
            "of the last gradient alone, whose expectation holds AvgGradInner as well"
        ),
        epoch=EPOCH,
        amended="These two cases were part of inner-product-rises; the post says nothing of them.",
    ),
    Claim(
        id=STEP,
        kind="experiment",
        sources=("B",),
        statement=(
            "a small step along what Reptile's expected update has beyond k AvgGrad raises the "
            "inner product between gradients of minibatches of its task"
        ),
        quantity="(after - before) / (|after| + |before|) of the mean inner product",
        band=(0.0, 1.0),
        limits=(-1.0, 1.0),
        reason="any rise, over seeds",
        control=Control(
            kind="foil", words="a step of the same length along AvgGrad: k = 1, joint training"
        ),
        quotation=quotes.INNER_PRODUCT,
        epoch=EPOCH,
        amended=(
            "The change was taken relative to the value before, which may be near 0: such a ratio "
            "has no bound and a long tail. It is measured on eight tasks a seed in the place of "
            "two."
        ),
    ),
)
