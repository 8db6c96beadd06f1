"""Which characters train, and which test: how far the choice moves the few-shot tables, whose ± leave it out.

The paper trains on 1,200 of Omniglot's 1,623 characters and gives ± of a hundredth to a tenth of the error rate. Here
Reptile's 5-way cells are trained from several seeds, on characters drawn by the seed, which at the paper's scale are
`few_shot`'s own runs, and on those of the authors' code. Each run tells by itself what other test characters would
change (`class_choice`); runs on both kinds of split show it, and whether the authors' characters are harder.
"""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.claims import Claim, measurement
from analysis.evaluations import Accuracies
from analysis.experiment import Context, Experiment, Result
from analysis.experiments import few_shot, post
from analysis.experiments.few_shot import NORMAL_95, Cell, Training
from analysis.experiments.few_shot_benchmarks import BENCHMARKS, EVALUATION_STEPS, METHODS, PUBLISHED, Scale
from analysis.tables import student_t
from reptile_core.datasets.split import SPLITS, Kind

NAME = "splits"
BENCHMARK, REPTILE = BENCHMARKS[0], METHODS[0]
IN_WORDS = {"seed": "characters drawn by seed", "authors": "the authors' characters"}
CLAIMS = (
    Claim(
        "split-choice",
        "N",
        "experiment",
        "Which characters train and test moves Reptile's Omniglot 5-way cells by more than the paper's ± says",
        "half of a 95 % interval over splits as a share of the error rate, less the paper's ± as a share of its own",
        0.0,
        10.0,
        "above the paper's ±, a difference from the paper within both ± of its tables is not to be expected of another "
        "split. Judged at the table's own scale after a first look at 2,000 iterations and 600 tasks, where the "
        "control's intervals were too wide to fail",
        "the same, of tasks whose characters are exchanged among them, so that no character is harder than another",
        least="paper",
        paper=post.beyond(
            "its tables give intervals for one choice of 1,200 characters, which the authors' code draws from a seed"
        ),
    ),
)


SCALES = {
    "smoke": Scale(2, 20),
    "quick": Scale(40, 40),
    "paper": few_shot.SCALES["paper"][BENCHMARK.name],
}
SEEDS = {"smoke": 1, "quick": 1, "paper": few_shot.SEEDS["paper"]}


def seeds_of(context: Context) -> int:
    """The profile's number of seeds, or the user's."""
    return SEEDS[context.profile] if context.seeds is None else context.seeds


def kinds(context: Context) -> tuple[Kind, ...]:
    """The authors' split is of Omniglot alone."""
    return SPLITS if context.source.real else SPLITS[:1]


def trainings(context: Context) -> list[Training]:
    """Reptile's training on each kind of split."""
    scale = SCALES[context.profile]
    return [Training(BENCHMARK, REPTILE, scale, replace(context.source, split=kind)) for kind in kinds(context)]


def shuffled_errors(measured: dict[Cell, list[Accuracies]]) -> list[float]:
    """The control: `split_error` of every row of the table, with the classes of its tasks exchanged among them."""
    found = []
    for cell, parts in measured.items():
        classes = few_shot.classes_of_all(cell)
        np.random.default_rng(cell.pieces[0].job.run.seed).shuffle(classes)
        for quantity in parts[0]:
            found.append(few_shot.error_over_splits(few_shot.of_all_tasks(parts, quantity), classes, cell))
    return found


def with_bars(table: pd.DataFrame) -> pd.DataFrame:
    """With half of a 95 % interval over tasks, and over tasks and splits: columns over_tasks, over_both."""
    return table.assign(
        over_tasks=NORMAL_95 * table.standard_error,
        over_both=NORMAL_95 * np.hypot(table.standard_error, table.split_error),
    )


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Half of a 95 % interval over splits as a share of the error rate, of each run and cell: columns split, seed,
    shots, transductive, share, shuffled (the control) and published (the paper's ± as a share of its error rate)."""
    error = 1 - table.value
    published = [
        PUBLISHED["reptile", transductive, BENCHMARK.name, shots]
        for shots, transductive in zip(table.shots, table.transductive, strict=True)
    ]
    return table[["split", "seed", "shots", "transductive"]].assign(
        share=NORMAL_95 * table.split_error / error,
        shuffled=NORMAL_95 * table.shuffled_error / error,
        published=[half / (100 - mean) for mean, half, _ in published],
    )


def measurements(shares: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for the ledger: a case for each cell, over all runs of both kinds of split."""
    rows = []
    for (shots, transductive), part in shares.groupby(["shots", "transductive"]):
        case = f"{shots}-shot, {few_shot.in_words('reptile', transductive)}"
        rows.append(measurement("split-choice", case, "check", part.share - part.published))
        rows.append(measurement("split-choice", case, "control", part.shuffled - part.published))
    return rows


def report(table: pd.DataFrame) -> list[str]:
    """Each cell's accuracy by kind of split, and what another split would change of it."""
    lines = ["accuracy in % by kind of split: mean over seeds, 95 % interval; standard error over splits in points"]
    for (shots, transductive, kind), part in table.groupby(["shots", "transductive", "split"], sort=False):
        mean, low, _ = student_t(100 * part.value)
        half = "" if np.isnan(low) else f" ± {mean - low:.2f}"
        lines.append(
            f"  {shots}-shot, {few_shot.in_words('reptile', transductive)}, {IN_WORDS[kind]}: {mean:.2f}{half}; "
            f"{100 * part.split_error.mean():.2f}"
        )
    return lines


def run(context: Context) -> Result:
    """Train on both kinds of split over seeds, and evaluate every cell."""
    wanted, seeds = trainings(context), range(seeds_of(context))
    outcomes = context.train(NAME, [t.job(seed, context) for seed in seeds for t in wanted])
    cells = [
        cell
        for seed in seeds
        for t in wanted
        for cell in few_shot.cells_of(t, REPTILE.name, seed, t.scale.tasks, context)
        if outcomes[cell.job].status == "finished"
    ]
    measured = few_shot.measure(NAME, cells, context)
    table = with_bars(few_shot.table(measured).assign(experiment=NAME, shuffled_error=shuffled_errors(measured)))
    every = shares(table)
    return Result({NAME: table, f"{NAME}_shares": every}, pd.DataFrame(measurements(every)), report(table))


def settings(context: Context) -> dict[str, Any]:
    scale = SCALES[context.profile]
    return {
        "iterations": scale.iterations,
        "tasks": scale.tasks,
        "looks": scale.looks,
        "seeds": seeds_of(context),
        "benchmark": asdict(BENCHMARK),
        "method": REPTILE.name,
        "kinds": list(kinds(context)),
        "evaluation_steps": EVALUATION_STEPS,
    }


EXPERIMENT = Experiment(
    name=NAME,
    shows="how far the choice of training and test characters moves Reptile's Omniglot 5-way cells",
    takes={
        "smoke": "seconds",
        "quick": "a quarter of a minute",
        "paper": "1 to 2 hours a seed on one core after few_shot's omniglot-5way-reptile (an estimate)",
    },
    claims=CLAIMS,
    settings=settings,
    run=run,
)
