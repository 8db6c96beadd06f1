"""Training and evaluation of the cells of section 6.1's tables.

Cells of one benchmark differ in evaluation alone, so that one training run serves them all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.experiments.shared.experiment import Context, Measured
from analysis.paper.benchmarks import (
    BENCHMARKS,
    METHODS,
    SCALES,
    SEEDS,
    Benchmark,
    Method,
    Scale,
    configure,
    evaluated,
)
from analysis.runs.evaluation_chunks import CHUNK, Accuracies, Evaluation, chunks
from analysis.runs.job import Job, Source
from analysis.runs.store import Outcome
from reptile_core.datasets import DataError
from reptile_core.evaluation import TEST_SHOTS
from reptile_core.tasks import ImagePool

UNTRAINED = "untrained"
# The status of a cell, in the order in which a reader wants to know.
HINDERED, NOT_IN_PROFILE, NOT_ASKED, MEASURED = (
    "hindered",
    "not in the profile",
    "not asked for",
    "measured",
)
STATUSES = (HINDERED, NOT_IN_PROFILE, NOT_ASKED, MEASURED)


@dataclass(frozen=True)
class Training:
    """A benchmark trained by one method from every seed, on data that were found."""

    benchmark: Benchmark
    method: Method
    scale: Scale
    source: Source

    @property
    def name(self) -> str:
        return f"{self.benchmark.name}-{self.method.name}"

    def job(self, seed: int, context: Context) -> Job:
        tail_shots = context.options.get("tail_shots")
        run = configure(self.benchmark, self.method, self.scale, seed, tail_shots=tail_shots)
        return context.job(run, self.name, self.source)

    def unjudged(self, context: Context) -> str | None:
        """Return why its numbers say nothing about the paper's; None if they do."""
        if not self.source.real or self.source.name != self.benchmark.data:
            return "other data"
        other_scale = self.scale != SCALES[context.profile][self.benchmark.name]
        if other_scale or "tail_shots" in context.options:
            return "other settings"
        return None if context.profile == "paper" else f"the {context.profile} profile"


@dataclass(frozen=True)
class Unmeasured:
    """Reason why a cell has no numbers.

    status: one of STATUSES.
    reason: what hindered it, in words; empty where nothing did.
    """

    status: str
    reason: str = ""

    @property
    def words(self) -> str:
        return f"not measured: {self.reason or self.status}"


@dataclass(frozen=True)
class Cell:
    """One entry of the tables, of one seed.

    method: a method's name, or UNTRAINED where nothing was trained.
    """

    benchmark: str
    method: str
    shots: int
    job: Job
    evaluation: Evaluation

    @property
    def trained(self) -> bool:
        return self.method != UNTRAINED

    @property
    def measured(self) -> Measured:
        """The job, the iteration at which it is evaluated, and the evaluation."""
        return self.job, self.job.end if self.trained else 0, self.evaluation


def plan(context: Context) -> tuple[list[Training], dict[str, Unmeasured]]:
    """Return what is to be trained, and why each of the other cells is not.

    The latter are by "benchmark-method".
    """
    trainings: list[Training] = []
    others: dict[str, Unmeasured] = {}
    for benchmark in BENCHMARKS:
        names = {method: f"{benchmark.name}-{method.name}" for method in METHODS}
        chosen = []
        for method in METHODS:
            if status := _refused(benchmark, method, context):
                others[names[method]] = Unmeasured(status)
            else:
                chosen.append(method)
        for method, found in _possible(benchmark, chosen, context).items():
            if isinstance(found, Training):
                trainings.append(found)
            else:
                others[names[method]] = Unmeasured(HINDERED, found)
    return trainings, others


def asked_cells(context: Context) -> tuple[str, ...]:
    """Return the prefixes of the cells to measure, such as "cifar-fs-reptile"; empty for all."""
    return tuple(context.options.get("cells", ()))


def _refused(benchmark: Benchmark, method: Method, context: Context) -> str | None:
    """Return the status of a cell that is not to be measured; None for others."""
    scale = scale_of(benchmark, context)
    if scale is None or method.name not in scale.methods:
        return NOT_IN_PROFILE
    asked = f"{benchmark.name}-{method.name}".startswith(asked_cells(context) or "")
    return None if asked else NOT_ASKED


def _possible(
    benchmark: Benchmark, methods: Sequence[Method], context: Context
) -> dict[Method, Training | str]:
    """Return a benchmark's training by each method, or in words what hinders it.

    The data may be missing, or too few for the benchmark's tasks.
    """
    scale = scale_of(benchmark, context)
    if scale is None or not methods:
        return {}
    seed = seeds_of(context)[0]
    try:
        source = context.source if benchmark.data == "omniglot" else context.find(benchmark.data)
        wanted = {method: Training(benchmark, method, scale, source) for method in methods}
        pool = _pool(benchmark, wanted[methods[0]].job(seed, context))
    except (DataError, ValueError) as error:
        return dict.fromkeys(methods, str(error))
    found: dict[Method, Training | str] = {}
    for method, training in wanted.items():
        try:
            pool.check(training.job(seed, context).run.sampling)
            found[method] = training
        except ValueError as error:
            found[method] = str(error)
    return found


def scale_of(benchmark: Benchmark, context: Context) -> Scale | None:
    """Return the profile's scale, with the user's number of iterations where there is one.

    Return None where the profile leaves the benchmark out.
    """
    scale = SCALES[context.profile].get(benchmark.name)
    iterations = context.options.get("iterations")
    if scale is None or iterations is None:
        return scale
    return replace(scale, iterations=iterations)


def seeds_of(context: Context) -> list[int]:
    """Return the profile's seeds, or as many as the user wants."""
    return context.seeds_of(SEEDS[context.profile])


def _pool(benchmark: Benchmark, job: Job) -> ImagePool:
    """Return the images on which a benchmark's methods train.

    Raises ValueError where classes or images are too few for its evaluation.
    """
    test = job.pool("test")
    for shots in benchmark.shots:
        test.check(evaluated(benchmark, shots), TEST_SHOTS)
    return job.pool("train")


def cells(trainings: Sequence[Training], context: Context) -> list[Cell]:
    """Return all cells of these trainings, and of each benchmark's untrained initialization."""
    found: list[Cell] = []
    for seed in seeds_of(context):
        for t in trainings:
            found += cells_of(t, t.method.name, seed, t.scale.tasks, context)
        for t in {t.benchmark.name: t for t in trainings}.values():
            # The same run whatever is trained, for only its start is needed.
            start = replace(t, method=METHODS[0])
            found += cells_of(start, UNTRAINED, seed, min(CHUNK, t.scale.tasks), context)
    return found


def cells_of(t: Training, method: str, seed: int, tasks: int, context: Context) -> Iterable[Cell]:
    """Yield a training's cells, one for each number of shots.

    method: as in Cell.
    """
    job = t.job(seed, context)
    for shots in t.benchmark.shots:
        evaluation = Evaluation(evaluated(t.benchmark, shots), tasks, TEST_SHOTS)
        yield Cell(t.benchmark.name, method, shots, job, evaluation)


def measure(
    name: str, wanted: Sequence[Cell], outcomes: Mapping[Job, Outcome], context: Context
) -> dict[Cell, Accuracies]:
    """Return the accuracies of every task of these cells.

    A run that diverged classifies at chance.
    """
    there = [cell.measured for cell in wanted if not cell.trained or outcomes[cell.job].finished]
    found = context.evaluate(name, there)
    return {cell: found.get(cell.measured) or _at_chance(cell) for cell in wanted}


def _at_chance(cell: Cell) -> Accuracies:
    values = np.full(cell.evaluation.tasks, 1 / cell.evaluation.sampling.n_way)
    return {"accuracy": values, "accuracy_transductive": values}


def seconds_of(measured: Iterable[Cell], outcomes: Mapping[Job, Outcome]) -> dict[str, float]:
    """Return the seconds that one more seed of each training takes, by "benchmark-method".

    They are those of one core, evaluations included. An evaluation is taken to last as long as
    training on as many images.
    """
    images = {job: 0 for job in outcomes}
    for cell in measured:
        if cell.trained:
            images[cell.job] += sum(chunk.images for chunk in chunks(*cell.measured))
    found: dict[str, float] = {}
    for job, outcome in outcomes.items():
        seconds = outcome.seconds * (1 + images[job] / job.images)
        found[job.variant] = max(seconds, found.get(job.variant, 0.0))
    return found
