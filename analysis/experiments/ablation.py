"""Figure 3 (section 6.2): learning curves with sums of g_1 … g_k as the meta-gradient.

g_1 … g_k are the inner gradients. The settings are in `analysis.paper.figure_3`. Runs are trained
on a prefix of the paper's schedule: the outer step is annealed over 40,000 iterations, however few
of them are trained.
"""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import pandas as pd

from analysis.experiments.shared import claim_seeds
from analysis.experiments.shared.curves import Curves, Scale, measure
from analysis.experiments.shared.experiment import EPOCH, Context, Experiment, Result
from analysis.experiments.shared.own_variants import shortened
from analysis.paper import quotes
from analysis.paper.figure_3 import EVALUATION, ITERATIONS, SETTINGS, configure
from analysis.results.claims import Claim, Control
from analysis.results.evidence import CHECK, CONTROL, NO_EVIDENCE, rows, tabulate
from analysis.results.tables import over_seeds
from reptile_core.meta_gradients import Variant, average, figure_3, last, sum_of
from reptile_core.tasks import Sampling

NAME = "ablation"
G1 = last(1).name
SHORT, LONG = 2, 4  # minibatches, of the methods that are compared
# From and to which iteration the paper's curves have parted and are not yet near their ends.
EARLY = 1_000, 5_000
SCALES = {
    "smoke": Scale(looks=(2, 4), tasks=4, seeds=2),
    "quick": Scale(looks=(200, 400), tasks=24, seeds=5),
    "paper": Scale(
        looks=(200, 400, 600, 1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 20_000, 30_000, 40_000),
        tasks=100,
        seeds=5,
    ),
}
# Further looks at g1, g1+g2 and g2, which part later than the others.
LATE_LOOKS = {"quick": (1_250, 1_500)}
LATE = (G1, sum_of(SHORT).name, last(SHORT).name)
LEFT_OUT = {"quick": (3,)}  # k that no contrast needs
# Measured on two cores of an AMD EPYC at smoke; the others are estimates.
TAKES = {"smoke": "half a minute", "quick": "about 8 minutes", "paper": "2 hours a seed"}

LONGER_REASON = "any gain: the paper names no size"
LONGER_AMENDED = (
    "Until epoch 2 one claim held every step from k to k + 1 and a contrast of families, and it "
    "fell with any of them. The paper asserts the families apart, so each is a claim now, from its "
    "shortest method to its longest. After a first look at 500 iterations it had been bound to the "
    "paper's scale; it is judged on a prefix of that schedule."
)
G1_INSTEAD = Control(kind="foil", words="g1 in the place of the longer one")


def _longer(suffix: str, statement: str) -> Claim:
    """Return the claim that one family of methods learns faster with more minibatches."""
    return Claim(
        id=f"ablation-more-is-better{suffix}",
        kind="experiment",
        sources=("B", "P6.2"),
        statement=statement,
        quantity=f"accuracy, mean over the looks, k = {LONG} less k = {SHORT}",
        band=(0.0, 1.0),
        limits=(-1.0, 1.0),
        reason=LONGER_REASON,
        control=G1_INSTEAD,
        quotation=(
            f"Section 6.2, figure 3: every method improves with more minibatches. {quotes.MORE}"
        ),
        epoch=EPOCH,
        amended=LONGER_AMENDED,
    )


CLAIMS = (
    Claim(
        id="ablation-g1",
        kind="experiment",
        sources=("B", "P6.2"),
        statement="g1 alone makes no progress",
        quantity="accuracy after the last look at g1, less that at the start",
        band=(-1.0, 0.05),
        limits=(-1.0, 1.0),
        reason="a quarter of what the least of the others gains in the paper's figure (about 0.2)",
        control=Control(kind="foil", words="g2 in its place"),
        quotation=f"Section 6.2, figure 3: $g_1$ alone is quite ineffective. {quotes.G1}",
        epoch=EPOCH,
        amended=(
            "Until epoch 2 runs of 400 iterations were annealed within these, where g1 gains a few "
            "points. The paper's schedule has a hundred times as many, and its prefix is what is "
            "trained now. The control was the longest sum. At the quick scale the last look came "
            "after 2,000 iterations on epoch 2, and comes after 1,500 since, to save time."
        ),
    ),
    Claim(
        id="ablation-g2-beats-sum",
        kind="experiment",
        sources=("P6.2",),
        statement="g1 + g2 is noticeably worse than g2",
        quantity="accuracy, mean over the looks, g2 less g1+g2",
        band=(0.01, 1.0),
        limits=(-1.0, 1.0),
        reason="one point of accuracy is what the eye notices on such curves",
        control=Control(kind="foil", words="g1 in the place of g2"),
        quotation=(
            "Section 6.2, figure 3: two-step Reptile, $g_1 + g_2$, is noticeably worse than "
            "two-step FOMAML, $g_2$"
        ),
        epoch=EPOCH,
        amended=(
            "It was first judged at any scale. It was bound to the paper's after runs annealed "
            "within 500 iterations had shown the opposite (g1+g2 ahead by two points). Since epoch "
            "2 it is judged on a prefix of the paper's schedule: early, where the paper's curves "
            "differ, and, where the whole of it is trained, over all. On epoch 1 early was up to "
            "600 iterations, where the two have hardly parted (1.2 points, -0.5 to 2.9, "
            "undecided); it is from 1,000 to 5,000 since. On epoch 2 the quick scale looked at "
            "1,500 and 2,000 iterations (6.1 points, 3.7 to 8.5, supported); it looks at 1,250 and "
            "1,500 since, to save time."
        ),
    ),
    _longer("", "sums of gradients learn faster with more minibatches"),
    _longer("-averages", "averages of gradients learn faster with more minibatches"),
    _longer("-last", "last gradients learn faster with more minibatches"),
    Claim(
        id="ablation-sums-gain-more",
        kind="experiment",
        sources=("P6.2",),
        statement="sums gain more from further minibatches than last gradients do",
        quantity=(
            f"gain in accuracy from k = {SHORT} to k = {LONG}, mean over the looks, sums less last "
            "gradients"
        ),
        band=(0.0, 2.0),
        limits=(-2.0, 2.0),
        reason=LONGER_REASON,
        control=Control(kind="foil", words="g1 in the place of the longer sum"),
        quotation=(
            "Section 6.2, figure 3: more minibatches improve sums more than the last gradient alone"
        ),
        epoch=EPOCH,
        amended="Until epoch 2 it was a case of ablation-more-is-better, and undecided with it.",
    ),
)
FAMILIES = {"": sum_of, "-averages": average, "-last": last}  # by the ending of the claim's id
COMPARES = {
    f"ablation-more-is-better{suffix}": (family(SHORT).name, family(LONG).name)
    for suffix, family in FAMILIES.items()
} | {
    "ablation-g1": (G1,),
    "ablation-g2-beats-sum": (last(SHORT).name, sum_of(SHORT).name),
    "ablation-sums-gain-more": tuple(
        family(k).name for family, k in product((sum_of, last), (SHORT, LONG))
    ),
}


def variants(profile: str) -> tuple[Variant, ...]:
    """Return the methods of figure 3 that a profile trains."""
    return tuple(variant for variant in figure_3() if variant.k not in LEFT_OUT.get(profile, ()))


def trained(context: Context) -> tuple[Variant, ...]:
    """Return the variants that are trained, the user's own after figure 3's."""
    return (*variants(context.profile), *context.options.get("variants", ()))


def seeds_of_runs(context: Context, scale: Scale) -> dict[str, list[int]]:
    """Return the seeds of each variant, by name."""
    names = [variant.name for variant in trained(context)]
    return claim_seeds.seeds_of_runs(context, scale.seeds, names, COMPARES)


def asked(context: Context, scale: Scale) -> Scale:
    """Return the scale, up to the user's number of iterations where there is one."""
    return shortened(scale, context.options.get("iterations"))


def is_judged(context: Context, scale: Scale) -> bool:
    """Return whether the claims are judged.

    They are judged at the scale's own looks, or at its first ones where these reach the end of
    EARLY.
    """
    looks = asked(context, scale).looks
    return looks == scale.looks or (looks == scale.looks[: len(looks)] and looks[-1] >= EARLY[1])


def looks_of_late(context: Context, scale: Scale) -> dict[str, Sequence[int]]:
    """Return the iterations at which the variants of LATE are measured.

    Where the user sets the number of iterations, LATE gets no further looks than the others.
    """
    further = LATE_LOOKS.get(context.profile, ()) if is_judged(context, scale) else ()
    return {name: (*asked(context, scale).looks, *further) for name in LATE}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return each variant's accuracy after its last iteration, over seeds.

    Columns: variant, iteration, mean, low, high, seeds.
    """
    last_of_each = table.groupby("variant").iteration.transform("max")
    return over_seeds(table[table.iteration == last_of_each], ["variant", "iteration"])


def report(summary: pd.DataFrame) -> list[str]:
    """Return lines for the end of the run: the final accuracy of each variant."""
    lines = ["accuracy on test characters (95 % interval over seeds)"]
    for row in summary.itertuples():
        interval = ""
        if row.seeds > 1:
            interval = f"  [{100 * max(row.low, 0):5.1f}, {100 * min(row.high, 1):5.1f}]"
        lines.append(
            f"  {row.variant:<18}{100 * row.mean:5.1f} %{interval}  after {row.iteration:,}"
        )
    return lines


def evidence(curves: Curves, looks: Sequence[int]) -> list[dict[str, Any]]:
    """Return rows for the judge.

    Every contrast compares the same seeds and, within a look, the same tasks.
    """
    return [*_g1(curves), *_g2_or_sum(curves), *_longer_or_shorter(curves, looks)]


def _g1(curves: Curves) -> list[dict[str, Any]]:
    end, found = curves.iterations(G1)[-1], []
    for role, name in ((CHECK, G1), (CONTROL, last(2).name)):
        gain = curves.contrast({(name, end): 1, (name, 0): -1}).loc[curves.seeds_of({G1, name})]
        found += rows("ablation-g1", f"after {end:,} iterations", role, gain)
    return found


def _g2_or_sum(curves: Curves) -> list[dict[str, Any]]:
    looks = curves.iterations(G1)[1:]
    cases = {"early": [n for n in looks if EARLY[0] <= n <= EARLY[1]] or looks}
    if looks[-1] == ITERATIONS:
        cases["over all of the run"] = looks
    found = []
    for case, iterations in cases.items():
        for role, name in ((CHECK, last(2).name), (CONTROL, G1)):
            values = curves.mean_contrast({name: 1, sum_of(2).name: -1}, iterations)
            found += rows("ablation-g2-beats-sum", case, role, values)
    return found


def _longer_or_shorter(curves: Curves, looks: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for suffix, family in FAMILIES.items():
        longer, shorter = family(LONG).name, family(SHORT).name
        for role, name in ((CHECK, longer), (CONTROL, G1)):
            values = curves.mean_contrast({name: 1, shorter: -1}, looks)
            found += rows(
                f"ablation-more-is-better{suffix}", f"{longer} less {shorter}", role, values
            )
    of_last = {last(LONG).name: -1.0, last(SHORT).name: 1.0}
    for role, name in ((CHECK, sum_of(LONG).name), (CONTROL, G1)):
        values = curves.mean_contrast({name: 1, sum_of(SHORT).name: -1} | of_last, looks)
        found += rows("ablation-sums-gain-more", "sums less last gradients", role, values)
    return found


def run(context: Context, scale: Scale, *, sampling: Sampling = EVALUATION) -> Result:
    """Train the variants over seeds, and adapt them to test tasks.

    Runs go up to the user's number of iterations where there is one.
    """
    by_name = {variant.name: variant for variant in trained(context)}
    each = claim_seeds.seed_by_seed(seeds_of_runs(context, scale))
    runs = [(name, configure(by_name[name], seed)) for seed, name in each]
    further = looks_of_late(context, scale)
    curves = measure(context, NAME, runs, asked(context, scale), looks=further, sampling=sampling)
    table = curves.table(NAME)
    final = summary(table)
    tables = {
        NAME: table,
        f"{NAME}_intervals": over_seeds(table, ["variant", "iteration"]),
        f"{NAME}_summary": final,
    }
    lines = report(final)
    if not is_judged(context, scale):
        lines.append("  not judged: the claims are of the profile's looks")
        return Result(tables, NO_EVIDENCE.copy(), lines)
    return Result(tables, tabulate(evidence(curves, asked(context, scale).looks)), lines)


def settings(context: Context, scale: Scale) -> dict[str, Any]:
    """Return the settings that decide the outcome."""
    chosen = {variant.name: variant.weights for variant in trained(context)}
    further = {name: list(iterations) for name, iterations in looks_of_late(context, scale).items()}
    more = claim_seeds.in_settings(seeds_of_runs(context, scale), scale.seeds)
    of_runs = {"variants": chosen, "looks_of": further}
    return asdict(asked(context, scale)) | SETTINGS | of_runs | more


EXPERIMENT = Experiment(
    name=NAME,
    shows="figure 3: learning curves of the sums of inner gradients g_1 … g_k, over seeds",
    takes=TAKES,
    claims=CLAIMS,
    settings=settings,
    run=run,
    scales=SCALES,
    options=("variants", "iterations", "seeds_for"),
    compares=COMPARES,
    most_iterations=ITERATIONS,
)
