"""An inner step and an evaluation, each on one thread.

They run in a worker of the script, so that both sides have its allocator's settings.
"""

from analysis import cost
from reptile_core import evaluation, training
from reptile_core.inner_loop import gradient
from reptile_core.losses import CrossEntropy
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Run
from tests.benchmarks import plain
from tests.benchmarks.measuring import EVALUATED, SETTINGS, images, of, row, take_turns


def rows(rounds: int, seconds: float) -> list[str]:
    options = {"rounds": rounds, "seconds": seconds}
    found = []
    for run in SETTINGS.values():
        sides, flops = inner_step(run)
        found.append(row(f"inner step ({of(run)})", take_turns(*sides, **options), flops))
    for run, sampling in EVALUATED:
        sides, flops = evaluate(run, sampling)
        name = f"evaluation of a task ({sampling.steps} steps of {of(run)})"
        found.append(row(name, take_turns(*sides, **options), flops))
    return found


def inner_step(run: Run) -> tuple[tuple, float]:
    """Return both sides of an inner step, and the flops of the products."""
    pool, sampling = images().float(), run.sampling
    model = plain.model_of(sampling.n_way)
    theirs = plain.optimizer_of(run, model)
    batch = next(plain.batches(pool, sampling))

    loss = CrossEntropy(training.build_network(run), run.inner.reduction)
    optimizer = run.inner.build()
    minibatch, phi = _minibatches(run)[0], training.start(run).phi
    state = optimizer.start(phi)
    flops = cost.iteration(run) / run.meta_batch / sampling.steps
    return (
        lambda: plain.step(model, theirs, batch),
        lambda: optimizer.step(phi, gradient(loss, phi, minibatch), state),
    ), flops


def evaluate(run: Run, sampling: Sampling) -> tuple[tuple, float]:
    pool, model = ImagePool(images()), plain.model_of(run.sampling.n_way)
    floats, start = pool.images.float(), training.start(run)
    tasks = evaluation.evaluation_tasks(sampling, pool, seed=0, tasks=range(1))
    network = training.build_network(run)
    loss = CrossEntropy(network, run.inner.reduction)
    return (
        lambda: plain.evaluate(run, model, floats, sampling),
        lambda: evaluation.accuracies(network, loss, start.phi, pool, tasks, run.inner.build()),
    ), cost.evaluation(run, sampling, 1)


def _minibatches(run: Run) -> list:
    pool = ImagePool(images())
    drawn = pool.sample(run.sampling, seed=0, purpose=Purpose.ANALYSIS, iteration=0, task=0)
    return [pool.minibatch(examples) for examples in drawn.minibatches]
