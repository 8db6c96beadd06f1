"""The two initializations that the page compares: Reptile's and joint training's (k = 1).

Both come from the same data. They are taken from the user's own runs of figure 3 at the paper's
scale where there are any. Else they are trained once, in about a minute, as runs like all others:
kept, resumed and never done twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from analysis.experiments import ablation
from analysis.experiments.shared.curves import Scale
from analysis.experiments.shared.experiment import EPOCH, Context, Measured
from analysis.paper import figure_3
from analysis.results import claims
from analysis.runs.evaluation_chunks import Evaluation
from analysis.runs.job import Job
from analysis.runs.store import state_at
from figures.demo.adaptation import N_WAY, Initialization, initialization
from reptile_core.checkpoints import CheckpointError
from reptile_core.meta_gradients import Variant, last, sum_of
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Inner, Outer, Run

NAMES = REPTILE, JOINT = "Reptile", "Joint training"
STEPS = 6  # k of the Reptile that is trained here
BATCH = 6  # two of a class: batch norm then meets about what it meets on the page, a batch of four
EVALUATION = Sampling(n_way=N_WAY, shots=1, batch=N_WAY, steps=8)


@dataclass(frozen=True)
class OwnScale:
    """Size of the runs for this page alone.

    iterations: Reptile's meta-iterations; joint training has STEPS times as many.
    tasks: the test tasks on which each is evaluated.
    """

    iterations: int
    tasks: int


# About a minute of training on one core of an AMD EPYC, and a few seconds of evaluation.
OWN_SCALE = OwnScale(iterations=5_000, tasks=100)


@dataclass(frozen=True)
class Weights:
    """The initializations that the page compares, by name, and words on them.

    remarks: what the page says of each initialization, by name. origin: where both come from.
    warning: words where the data are not Omniglot, else empty. pool: images of the test characters.
    """

    initializations: dict[str, Initialization]
    remarks: dict[str, str]
    origin: str
    warning: str
    pool: ImagePool


def own(context: Context, scale: OwnScale = OWN_SCALE) -> dict[str, Measured]:
    """Return the runs for this page alone, each with its end and how it is evaluated there.

    They are of the scale's size. Joint training is given as many minibatches as Reptile.
    """
    iterations = scale.iterations
    jobs = {
        REPTILE: context.job(configure(sum_of(STEPS), iterations), "demo Reptile"),
        JOINT: context.job(configure(last(1), STEPS * iterations), "demo joint training"),
    }
    return {name: (job, job.end, Evaluation(EVALUATION, scale.tasks)) for name, job in jobs.items()}


def configure(variant: Variant, iterations: int) -> Run:
    """Return figure 3's algorithm on tasks of three classes, on a schedule of its own length.

    Its rates are the best of a few that were tried briefly.
    """
    return replace(
        figure_3.configure(variant, seed=0, iterations=iterations),
        sampling=Sampling(n_way=N_WAY, shots=10, batch=BATCH, steps=variant.k),
        inner=Inner("sgd", 0.01),
        outer=Outer(0.5),
    )


def of_figure_3(
    context: Context, folder: Path, scale: Scale = ablation.SCALES["paper"]
) -> dict[str, Measured] | None:
    """Return the first finished runs in a folder, of the longest sum and of g_1 alone.

    Both are of one seed and at this scale. None where there are none.
    """
    there = replace(context, runs=folder)
    evaluation = Evaluation(figure_3.EVALUATION, scale.tasks, scale.queries, look=scale.until)
    latest_first = [claims.seeds(epoch, scale.seeds) for epoch in range(EPOCH, -1, -1)]
    for seed in chain.from_iterable(latest_first):
        runs = {
            name: figure_3.configure(variant, seed, iterations=scale.iterations)
            for name, variant in ((REPTILE, sum_of(4)), (JOINT, last(1)))
        }
        found = {name: there.job(run, name, until=scale.until) for name, run in runs.items()}
        if all(map(_finished, found.values())):
            return {name: (job, job.end, evaluation) for name, job in found.items()}
    return None


def train(context: Context, measured: Mapping[str, Measured]) -> None:
    """Train the runs to their ends, if they are not there."""
    jobs = [job for job, *_ in measured.values()]
    if not all(map(_finished, jobs)):
        print(
            (
                "Training two initializations for about a minute, once; they are kept in "
                f"{context.runs}."
            ),
            flush=True,
        )
        context.train("demo", jobs)


def load(context: Context, measured: Mapping[str, Measured]) -> Weights:
    """Return the initializations that finished runs have come to, with their accuracy.

    The accuracy is measured if it is not known. Raises CheckpointError where a run is not finished.
    """
    accuracies = context.evaluate("demo", list(measured.values()))
    found, remarks = {}, {}
    for name, item in measured.items():
        job, end, evaluation = item
        found[name] = initialization(job.run, state_at(job, end), evaluation.sampling)
        remarks[name] = remark(job, evaluation.sampling, float(accuracies[item]["accuracy"].mean()))
    reptile, *_ = measured[REPTILE]
    data = "Omniglot" if reptile.source.real else f"{reptile.source.name}, made-up characters"
    return Weights(
        found,
        remarks,
        f"Trained on {data}, weights from {reptile.folder}.",
        "" if reptile.source.real else f"NOT OMNIGLOT: these networks learned from {data}.",
        reptile.pool("test"),
    )


def remark(job: Job, sampling: Sampling, accuracy: float) -> str:
    """Return how long a run was trained, and how accurate it then is.

    The accuracy is on classes that it was not trained on.
    """
    k = job.run.sampling.steps
    trained = f"{job.end:,} meta-iterations of {k} step{'s' if k > 1 else ''}"
    share = f"{100 * accuracy:.0f}\N{NO-BREAK SPACE}%"
    return f"{trained}; {share} right on {sampling.n_way}-way {sampling.shots}-shot test tasks"


def _finished(job: Job) -> bool:
    try:
        state_at(job, job.end)
    except CheckpointError:
        return False
    return True
