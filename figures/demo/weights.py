"""The two initializations that the page sets side by side: Reptile's, and joint training's (k = 1) on the same data.

They come from the user's own runs of figure 3 at the paper's scale where there are any; else they are trained once, in
about a minute, as runs like all others: kept, resumed and never done twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.courses import execute
from analysis.experiment import Context
from analysis.experiments import ablation
from analysis.runs import Job, Outcome, final_state
from figures.demo.adaptation import N_WAY, Initialization, initialization
from reptile_core.checkpoints import CheckpointError
from reptile_core.meta_gradients import Variant, last, total
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Evaluation, Inner, Outer, Run

NAMES = REPTILE, JOINT = "Reptile", "Joint training"
STEPS = 6  # k of the Reptile that is trained here
ITERATIONS = 5_000  # about a minute on one core of an AMD EPYC
BATCH = 6  # two of a class: batch norm then meets about what it meets on the page, a batch of four
TASKS = 100  # test tasks, measured before and after training: a few seconds


@dataclass(frozen=True)
class Weights:
    """Initializations by name and what is to be said of each; where both come from; a warning where the data are not
    Omniglot; images of the test characters."""

    initializations: dict[str, Initialization]
    remarks: dict[str, str]
    origin: str
    warning: str
    pool: ImagePool


def own(context: Context) -> dict[str, Job]:
    """The runs for this page alone. Joint training is given as many minibatches as Reptile."""
    return {
        REPTILE: context.job(configure(total(STEPS), ITERATIONS), "demo Reptile"),
        JOINT: context.job(configure(last(1), STEPS * ITERATIONS), "demo joint training"),
    }


def configure(variant: Variant, iterations: int) -> Run:
    """Figure 3's algorithm on tasks of three classes, its rates the best of a few that were tried briefly."""
    return Run(
        network="omniglot",
        sampling=Sampling(n_way=N_WAY, shots=10, batch=BATCH, steps=variant.k),
        weights=variant.weights,
        inner=Inner("sgd", 0.01),
        outer=Outer(0.5),
        evaluation=Evaluation(Sampling(n_way=N_WAY, shots=1, batch=N_WAY, steps=8), TASKS, iterations),
        iterations=iterations,
        seed=0,
    )


def of_figure_3(context: Context, folder: Path) -> dict[str, Job] | None:
    """The first finished runs in a folder, of one seed, of the longest sum and of g_1 alone at the paper's scale."""
    there, scale = replace(context, runs=folder), ablation.SCALES["paper"]
    for seed in range(scale.seeds):
        variants = {REPTILE: total(4), JOINT: last(1)}
        jobs = {name: there.job(ablation.configure(v, scale, seed), v.name) for name, v in variants.items()}
        if all(map(_finished, jobs.values())):
            return jobs
    return None


def train(context: Context, jobs: Mapping[str, Job]) -> None:
    """Bring the runs to their ends, if they are not there."""
    if not all(map(_finished, jobs.values())):
        print(f"Training two initializations for about a minute, once; they are kept in {context.runs}.", flush=True)
        context.train("demo", list(jobs.values()))


def load(jobs: Mapping[str, Job]) -> Weights:
    """What finished runs have come to; CheckpointError where one came to no end."""
    reptile = jobs[REPTILE]
    data = "Omniglot" if reptile.source.real else f"{reptile.source.name}, made-up characters"
    return Weights(
        {name: initialization(job.run, final_state(job)) for name, job in jobs.items()},
        {name: remark(job.run, execute(job)) for name, job in jobs.items()},
        f"Trained on {data}, weights from {reptile.folder}.",
        "" if reptile.source.real else f"NOT OMNIGLOT: these networks learned from {data}.",
        reptile.pool("test"),
    )


def remark(run: Run, outcome: Outcome) -> str:
    """How long a finished run was and how accurate it ended, on classes that it was not trained on."""
    accuracy = next(row["value"] for row in reversed(outcome.rows) if row["quantity"] == "accuracy")
    sampling, k = run.evaluation.sampling, run.sampling.steps
    trained = f"{run.iterations:,} meta-iterations of {k} step{'s' if k > 1 else ''}"
    share = f"{100 * accuracy:.0f}\N{NO-BREAK SPACE}%"
    return f"{trained}; {share} right on {sampling.n_way}-way {sampling.shots}-shot test tasks"


def _finished(job: Job) -> bool:
    try:
        final_state(job)
    except (FileNotFoundError, CheckpointError):
        return False
    return True
