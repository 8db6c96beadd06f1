"""Figure 4 (section 6.3): FOMAML's last minibatch must not overlap the ones before it.

Omniglot 5-way 5-shot with 100 samples a task. Reptile and FOMAML with a shared tail draw all minibatches from the 100,
by cycling through them or each afresh; FOMAML with a separate tail keeps samples for its last minibatch alone. Final
accuracy against (a) inner steps, (b) the size of minibatches, (c) the outer step.

The paper gives neither learning rates nor grids. Here they are figure 3's, with the learning rate held on the mean loss
(0.003 on the sum of 25 is 0.075 on the mean), so that a larger minibatch overlaps more and does not step further.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from analysis.claims import Claim, measurement
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import ablation, sweeps
from analysis.experiments.ablation import BATCH, CHANCE, LEARNING_RATE, N_WAY, OUTER_STEP
from analysis.experiments.sweeps import Scale
from analysis.tables import over_seeds
from reptile_core.meta_gradients import last, total
from reptile_core.training import Inner, Outer, Run

NAME = "overlap"
TRAIN_SHOTS = 20  # all drawings of a character: 100 samples a task
SAMPLES = N_WAY * TRAIN_SHOTS
STEPS = 4  # the last that need no sample twice: 4 minibatches of 25
INNER = Inner("sgd", LEARNING_RATE * BATCH, reduction="mean")
BOUND = ". Bound to the paper's scale after a first look at 160 iterations, where the controls' intervals were too wide"
CLAIMS = (
    Claim(
        "overlap-tail",
        "P6.3",
        "experiment",
        "FOMAML whose last minibatch overlaps earlier ones falls off",
        "final accuracy, separate tail less shared tail (cycling), mean over the points of a sweep that overlap",
        0.02,
        1.0,
        "a fall that is seen in a figure, and some standard errors of 500 tasks (0.4 points at 95 %)" + BOUND,
        "the points that do not overlap, where both draw disjoint minibatches and are the same algorithm",
        least="paper",
        paper="Section 6.3, figure 4: FOMAML with a shared tail falls off once its last minibatch overlaps the earlier "
        "ones, from 5 steps of 25 on the 100 samples of a task",
    ),
    Claim(
        "overlap-others",
        "P6.3",
        "experiment",
        "FOMAML with a separate tail and Reptile do not fall off",
        "final accuracy, mean over the points of a sweep that overlap, less that at the last point that does not",
        -0.02,
        1.0,
        "less than the least fall that counts for the shared tail" + BOUND,
        "shared tail, cycling",
        least="paper",
        paper="Section 6.3, figure 4: FOMAML with a separate tail and Reptile do not fall off",
    ),
)


@dataclass(frozen=True)
class Method:
    """How a method chooses its minibatches, and whether it sums all gradients or takes the last."""

    name: str
    reptile: bool = False
    separate_tail: bool = False
    replacement: bool = False


REPTILE = Method("Reptile, cycling", reptile=True)
SEPARATE = Method("FOMAML, separate tail", separate_tail=True)
SHARED = Method("FOMAML, shared tail, cycling")
REPLACEMENT = Method("FOMAML, shared tail, replacement", replacement=True)
METHODS = (REPTILE, SEPARATE, SHARED, REPLACEMENT)


@dataclass(frozen=True)
class Point:
    """A place in a sweep: k inner steps, minibatches of `batch` (at most what there is to draw from), outer step."""

    sweep: str
    steps: int = STEPS
    batch: int = BATCH
    outer_step: float = OUTER_STEP

    @property
    def value(self) -> float:
        """What the sweep varies."""
        return getattr(self, self.sweep)

    @property
    def overlaps(self) -> bool:
        """Must a shared tail, cycling, hold samples that were met before?"""
        return self.steps * self.batch > SAMPLES

    def run_name(self, method: Method) -> str:
        """Points of two sweeps may be the same runs."""
        return f"{method.name}: {self.steps} steps of {self.batch}, outer step {self.outer_step:g}"


@dataclass(frozen=True)
class Grid:
    """What each sweep goes through."""

    steps: tuple[int, ...]
    batch: tuple[int, ...] = ()
    outer_step: tuple[float, ...] = ()

    def points(self) -> list[Point]:
        return [
            *(Point("steps", steps=k) for k in self.steps),
            *(Point("batch", batch=batch) for batch in self.batch),
            *(Point("outer_step", batch=SAMPLES, outer_step=eps) for eps in self.outer_step),
        ]


GRIDS = {
    "smoke": Grid(steps=(4, 5)),
    "quick": Grid(steps=(4, 8)),
    "paper": Grid(
        steps=(2, 3, 4, 5, 6, 8, 10, 14),
        batch=(10, 15, 25, 35, 50, 75, 100),
        outer_step=(0.0625, 0.125, 0.25, 0.5, 1.0),
    ),
}
SCALES = {
    "smoke": Scale(iterations=5, every=5, tasks=2, seeds=2),
    "quick": Scale(iterations=100, every=100, tasks=20, seeds=3),
    "paper": Scale(iterations=40_000, every=40_000, tasks=500, seeds=3),
}


def configure(method: Method, point: Point, scale: Scale, seed: int) -> Run:
    """Figure 3's run with 100 samples a task. A separate tail is as large as a minibatch, at most a quarter of them."""
    tail = min(point.batch, BATCH) if method.separate_tail else 0
    base = ablation.configure((total if method.reptile else last)(point.steps), scale, seed)
    sampling = replace(
        base.sampling,
        shots=TRAIN_SHOTS,
        batch=min(point.batch, SAMPLES - tail),
        replacement=method.replacement,
        tail_shots=tail // N_WAY,
    )
    return replace(base, sampling=sampling, inner=INNER, outer=Outer(point.outer_step))


def cases(grid: Grid) -> list[tuple[Method, Point]]:
    """Every method at every point; drawing all samples afresh is what cycling does as well, and is left out."""
    return [(m, p) for p in grid.points() for m in METHODS if not (m.replacement and p.batch == SAMPLES)]


def finals(grid: Grid, curves: pd.DataFrame) -> pd.DataFrame:
    """Final accuracy: columns sweep, value, overlaps, method, variant (the run's name), seed, accuracy in [0, 1]; a run
    that diverged ends at chance."""
    design = pd.DataFrame(
        [
            {"sweep": p.sweep, "value": p.value, "overlaps": p.overlaps, "method": m.name, "variant": p.run_name(m)}
            for m, p in cases(grid)
        ]
    )
    ends = sweeps.by_seed(curves, diverged=CHANCE).xs(curves.iteration.max(), axis="columns", level="iteration")
    return design.merge(ends.melt(ignore_index=False, value_name="accuracy").reset_index(), on="variant")


def measurements(finals: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger from the sweeps of steps and of minibatch size, where overlap sets in along the way."""
    rows = []
    for sweep, words in (("steps", "inner steps"), ("batch", "minibatch")):
        here = finals[finals.sweep == sweep]
        if here.empty:
            continue
        by = here.pivot_table(index=["seed", "overlaps", "value"], columns="method", values="accuracy")
        lost = (by[SEPARATE.name] - by[SHARED.name]).groupby(["overlaps", "seed"]).mean()
        rows.append(measurement("overlap-tail", f"{words}: overlap", "check", lost[True]))
        rows.append(measurement("overlap-tail", f"{words}: no overlap", "control", lost[False]))
        edge = here[~here.overlaps].value.max()
        beyond = by.xs(True, level="overlaps").groupby("seed").mean() - by.xs(
            (False, edge), level=("overlaps", "value")
        )
        for method, role in ((REPTILE, "check"), (SEPARATE, "check"), (SHARED, "control")):
            rows.append(measurement("overlap-others", f"{words}: {method.name}", role, beyond[method.name]))
    return rows


def runs(grid: Grid, scale: Scale) -> list[tuple[str, Run]]:
    """Every run with its name, seed by seed."""
    return [(p.run_name(m), configure(m, p, scale, seed)) for seed in range(scale.seeds) for m, p in cases(grid)]


def run(context: Context) -> Result:
    """Train every method at every point over seeds."""
    grid, scale = GRIDS[context.profile], sweeps.scale_of(SCALES, context)
    outcomes = sweeps.train(context, NAME, runs(grid, scale))
    curves = sweeps.curves(NAME, outcomes)
    final = finals(grid, curves)
    intervals = over_seeds(
        final.drop(columns="value").assign(point=final.value, value=final.accuracy), ["sweep", "method", "point"]
    )
    tables = {NAME: curves, f"{NAME}_intervals": intervals}
    return Result(tables, pd.DataFrame(measurements(final)))


def settings(context: Context) -> dict[str, Any]:
    scale, grid = sweeps.scale_of(SCALES, context), GRIDS[context.profile]
    return asdict(scale) | {
        "n_way": N_WAY,
        "train_shots": TRAIN_SHOTS,
        "shots": ablation.SHOTS,
        "evaluation_steps": ablation.EVALUATION_STEPS,
        "inner": asdict(INNER),
        "fixed": {"steps": STEPS, "batch": BATCH, "outer_step": OUTER_STEP},
        "tail": f"as large as a minibatch, at most {BATCH} samples",
        "grid": asdict(grid),
        "methods": [method.name for method in METHODS],
    }


EXPERIMENT = Experiment(
    name=NAME,
    shows="figure 4: FOMAML falls off where its last minibatch overlaps earlier ones, Reptile does not",
    takes={"smoke": "seconds", "quick": "about 1.5 minutes", "paper": "about 30 hours a seed (an estimate)"},
    claims=CLAIMS,
    settings=settings,
    run=run,
)
