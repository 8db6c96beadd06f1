"""Section 4: from Reptile's start, 32 steps of gradient descent on 10 points find a sine wave.

Tasks are a sin(x + b). The average over the phase b is 0 everywhere, so joint training can learn no
more than f = 0, and nothing in it prepares the steps from there.

Reptile's k = 5 minibatches of 10 are one pass over the 50 points. Joint training sees the same
points of the same waves, in one gradient at phi_1 weighted by k, and so takes the same AvgGrad
step. The two differ in where g_2 … g_k are taken, and in nothing else.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import inf
from typing import Any

import pandas as pd

from analysis.experiments.shared.experiment import EPOCH, Context, Experiment, Result
from analysis.experiments.sine_waves import (
    AMPLITUDE,
    BATCH,
    INITIALIZATIONS,
    INTERVAL,
    LEARNING_RATE,
    NETWORKS,
    OUTER_STEP,
    POINTS,
    TEST_STEPS,
    WIDTHS,
    Adapted,
    Item,
    draw_waves,
    grid,
    items,
    train_and_adapt,
)
from analysis.results.claims import Claim, Control
from analysis.results.evidence import CHECK, CONTROL, rows
from analysis.results.tables import over_seeds
from reptile_core.philox import Purpose

NAME = "sine"
SHOWN = (0, 8, 16, 24, 32)
JUDGED = {"tanh": "", "relu": "-relu"}  # with the ending of their claims' ids


@dataclass(frozen=True)
class Scale:
    """Size of the experiment in one profile.

    tasks: test tasks per seed.
    """

    iterations: int
    seeds: int
    tasks: int
    networks: tuple[str, ...]


SCALES = {
    "smoke": Scale(iterations=300, seeds=2, tasks=10, networks=("tanh",)),
    "quick": Scale(iterations=12_000, seeds=8, tasks=200, networks=("tanh",)),
    "paper": Scale(iterations=30_000, seeds=8, tasks=400, networks=tuple(NETWORKS)),
}
SETTINGS: dict[str, Any] = {
    "widths": WIDTHS,
    "interval": INTERVAL,
    "amplitude": AMPLITUDE,
    "activation_and_first_weights": NETWORKS,
    "points": POINTS,
    "batch": BATCH,
    "inner": {"optimizer": "sgd", "learning_rate": LEARNING_RATE, "reduction": "mean"},
    "outer_step": {"from": OUTER_STEP, "to": 0.0},
    "test_steps": TEST_STEPS,
    "shown": SHOWN,
    "weights": INITIALIZATIONS,
}
REASON = "nine tenths of a wave explained is what the eye takes for a fit in the paper's picture"
AMENDED = (
    "The band stands as first written. The network was changed after a first run, which from "
    "Glorot's weights and zero biases left 31 % after 10,000 iterations: judged are PyTorch's "
    "first weights, those of the authors' script. The quick profile was cut to 6,000 iterations, "
    "which left 14 %, and put back to 10,000. On epoch 2 these left 8.8 % (7.4 to 10.2, "
    "undecided); 12,000 of the paper's 30,000 are trained since. "
)
PAIRED = (
    "The control has to be beaten seed by seed, where it had to lie outside the band. Judged on "
    "fresh seeds"
)


def _claims(network: str) -> tuple[Claim, Claim]:
    """Return the claims of section 4 for one network.

    The authors' script has tanh, the paper's text has ReLU.
    """
    quantity = (
        f"squared error on all {POINTS} points after {TEST_STEPS} steps, over that of f = 0 "
        f"({network})"
    )
    joint, suffix = "joint training's initialization", JUDGED[network]
    how = f"from {BATCH} points in {TEST_STEPS} steps"
    low, high = AMPLITUDE
    return (
        Claim(
            id=f"sine{suffix}",
            kind="experiment",
            sources=("P4",),
            statement=f"Reptile's initialization fits a sine {how}",
            quotation=f"Section 4: Reptile's initialization fits $f(x) = a \\sin(x + b)$ {how}; "
            f"$a \\sim U[{low:g}, {high:g}]$, $b \\sim U[0, 2\\pi]$",
            quantity=quantity,
            band=(0.0, 0.1),
            limits=(0.0, inf),
            reason=REASON,
            control=Control(kind="foil", words=f"{joint} and an untrained one in its place"),
            epoch=EPOCH,
            amended=AMENDED + PAIRED,
        ),
        Claim(
            id=f"sine-joint{suffix}",
            kind="experiment",
            sources=("P4",),
            statement=f"{joint} does not fit a sine {how}",
            quotation=(
                "Section 4: joint training learns $f = 0$, since the average over the phase $b$ is "
                "0"
            ),
            quantity=quantity,
            band=(0.1, inf),
            limits=(0.0, inf),
            reason="the complement of what counts as a fit",
            control=Control(kind="foil", words="Reptile's initialization in its place"),
            epoch=EPOCH,
            amended=AMENDED + PAIRED + "; the band's upper end, 10 before, is open",
        ),
    )


CLAIMS = tuple(chain.from_iterable(map(_claims, JUDGED)))


def table(adapted: dict[Item, Adapted]) -> pd.DataFrame:
    """Return the mean squared error over test tasks, relative to that of f = 0.

    There is one row per network, initialization, seed and step, with the standard error over tasks.
    """
    found = []
    for item, one in adapted.items():
        means, errors = one.relative.mean(-1), one.relative_standard_error
        where = {"network": item.network, "initialization": item.initialization}
        for lane, seed in enumerate(item.seeds):
            for step in range(TEST_STEPS + 1):
                mean, error = means[step, lane].item(), errors[step, lane].item()
                row = where | {"seed": seed, "step": step, "quantity": "relative squared error"}
                found.append(row | {"value": mean, "standard_error": error, "count": item.tasks})
    return pd.DataFrame(found)


def picture(adapted: dict[Item, Adapted]) -> pd.DataFrame:
    """Return predictions for the first test task of the first seed.

    There is one row per network, initialization, step shown and x, with the wave's y and whether
    the point was among the 10.
    """
    found = []
    first_seed = next(iter(adapted)).seeds[0]
    for item, one in adapted.items():
        if item.seeds[0] != first_seed:
            continue
        wave = draw_waves(item.seeds[:1], Purpose.EVALUATION)
        seen = set(wave.order[0, :BATCH].tolist())
        where = {"network": item.network, "initialization": item.initialization}
        place = where | {"seed": item.seeds[0]}
        for step in SHOWN:
            for point, (x, y) in enumerate(zip(grid().tolist(), wave.y[0].tolist(), strict=True)):
                here = {"step": step, "x": x, "y": y, "seen": point in seen}
                found.append(place | here | {"prediction": one.picture[step, point].item()})
    return pd.DataFrame(found)


def evidence(losses: pd.DataFrame) -> pd.DataFrame:
    """Return rows for the ledger: the error after the last step, by network and initialization."""
    roles = {
        "sine": {"reptile": CHECK, "joint": CONTROL, "untrained": CONTROL},
        "sine-joint": {"joint": CHECK, "reptile": CONTROL},
    }
    final = losses[losses.step == losses.step.max()].set_index("seed")
    final = final.rename(columns={"standard_error": "task_error", "count": "tasks"})
    found = []
    for (network, name), part in final.groupby(["network", "initialization"], sort=False):
        if network not in JUDGED:
            continue
        for claim, role_of in roles.items():
            if name in role_of:
                values = part[["value", "task_error", "tasks"]]
                found += rows(
                    f"{claim}{JUDGED[network]}", f"{network}: {name}", role_of[name], values
                )
    return pd.DataFrame(found)


def report(losses: pd.DataFrame) -> Sequence[str]:
    """Return lines for the end of the run."""
    final = over_seeds(losses[losses.step == losses.step.max()], ["network", "initialization"])
    words = [
        f"  {r.network}, {r.initialization:<10}{100 * r.mean:6.1f} %" for r in final.itertuples()
    ]
    return [f"squared error after {TEST_STEPS} steps on {BATCH} points, relative to f = 0", *words]


def settings(context: Context, scale: Scale) -> dict[str, Any]:
    """Return the settings that decide the outcome."""
    return asdict(scale) | SETTINGS


def run(context: Context, scale: Scale) -> Result:
    """Train all initializations, and adapt them to the test tasks."""
    seeds = context.seeds_of(scale.seeds)
    work = items(scale.networks, seeds, iterations=scale.iterations, tasks=scale.tasks)
    sizes = [item.size for item in work]
    found = context.workers.map(NAME, train_and_adapt, work, sizes=sizes, unit=" gradients")
    adapted = dict(zip(work, found, strict=True))
    losses = table(adapted)
    intervals = over_seeds(losses, ["network", "initialization", "step"])
    tables = {NAME: losses, f"{NAME}_intervals": intervals, f"{NAME}_picture": picture(adapted)}
    return Result(tables, evidence(losses), report(losses))


EXPERIMENT = Experiment(
    name=NAME,
    shows="section 4: sine waves from 10 points, after Reptile, joint training and no training",
    takes={"smoke": "seconds", "quick": "a minute", "paper": "about 5 minutes"},
    claims=CLAIMS,
    settings=settings,
    run=run,
    scales=SCALES,
    data=f"sine waves a sin(x + b), a ~ U[{AMPLITUDE[0]:g}, {AMPLITUDE[1]:g}], b ~ U[0, 2π]",
)
