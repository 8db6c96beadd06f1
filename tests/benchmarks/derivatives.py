"""What derivatives cost, in gradients of our Omniglot network, next to torch.nn and autograd.

    python -m tests.benchmarks.derivatives [--rounds N]

The gradients are in float32, of a batch of 25. There is one thread, with the allocator set as in
the script's workers. Everything takes its turn in every round, and ratios are taken round by round,
as machines are noisy. The plain side differentiates again and again in reverse mode. Its third
derivatives are timed only: torch gets those of batch norm wrong. curvlinops is measured where it is
installed.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from analysis.runs.workers import local_executor
from analysis.theory.derivatives import gradient, hessian_at
from analysis.theory.losses import on_minibatch
from analysis.theory.taylor import inner_gradient_terms, maml_terms
from reptile_core.inner_loop import SGD
from reptile_core.inner_loop import gradient as as_in_training
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.meta_gradients import maml
from reptile_core.networks import Network, omniglot
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool
from tests.benchmarks import plain
from tests.benchmarks.measuring import ABLATION, images, timed
from tests.helpers.data import normal

try:
    from curvlinops import HessianLinearOperator
except ImportError:
    HessianLinearOperator = None

N_WAY, K, ALPHA = 5, 4, 0.003
TURN = 0.05  # seconds of a call, or of its repetitions
FLOAT, DOUBLE = torch.float32, torch.float64
GRADIENT = "gradient, float32"
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A call that is timed, and the plain way to the same result.

    goal: how many gradients of the kind `unit` it may cost.
    """

    ours: Call
    plain: Call | None = None
    goal: float | None = None
    unit: str = GRADIENT


def cases() -> dict[str, Case]:
    """Return all cases by name; each unit is one of them too."""
    found: dict[str, Case] = {}
    for dtype, name in ((FLOAT, "float32"), (DOUBLE, "float64")):
        sides = Sides("relu", dtype)
        unit = f"gradient, {name}"
        found[unit] = Case(
            sides.gradient, sides.plain_gradient, goal=2.5 if dtype == DOUBLE else None
        )
        if dtype == DOUBLE:
            smooth = Sides("softplus", dtype)
            found["gradient, float64, softplus"] = Case(smooth.gradient, goal=2.5)
            found["Hessian-vector product, float64, softplus"] = Case(smooth.product, goal=8)
        else:
            found["gradient of the same network as a module, Network.of"] = Case(
                sides.of_module(), sides.plain_gradient, goal=3
            )
        found[f"Hessian-vector product, {name}"] = Case(
            sides.product, sides.plain_product, goal=8 if dtype == DOUBLE else None
        )
        found[f"each further product, {name}"] = Case(sides.further())
        for order, goal in ((1, 13), (2, 60)):
            ours = partial(sides.table, order)
            name_of = f"Taylor table, order {order}, k = {K}, {name}"
            # The plain side takes seconds a call, so it is left out in float64.
            other = partial(sides.plain_table, order) if dtype == FLOAT else None
            found[name_of] = Case(ours, other, goal, unit)
        found[f"the same of MAML, order 2, {name}"] = Case(sides.maml_table, unit=unit)
        found[f"MAML, k = {K}, {name}"] = Case(sides.maml, sides.plain_maml, goal=11, unit=unit)
        if HessianLinearOperator is not None and dtype == FLOAT:
            found["Hessian-vector product, against curvlinops"] = Case(
                sides.product, sides.curvlinops()
            )
    return found


class Sides:
    """What is timed of a network on K minibatches of a task, ours and with torch.nn."""

    def __init__(self, activation: str, dtype: torch.dtype) -> None:
        network = omniglot(N_WAY, activation=activation)
        self.mean_loss, self.phi = CrossEntropy(network, "mean"), network.initialize(0, dtype=dtype)
        self.batches = minibatches(dtype)
        self.losses = [on_minibatch(self.mean_loss, batch) for batch in self.batches]
        self.v = normal(network.n_parameters, dtype=dtype)
        self.model = plain.model_of(N_WAY).to(dtype)
        self.at: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        pairs = [(batch.x.unsqueeze(1), batch.y) for batch in self.batches]
        self.plain_losses = [plain.loss_at(self.model, pair) for pair in pairs]
        self.directions = [torch.randn_like(p) for p in self.at.values()]
        self.pair = pairs[0]

    def gradient(self) -> object:
        return gradient(self.losses[0], self.phi)

    def of_module(self) -> Call:
        own = Network.of(self.model, (1, 28, 28))
        loss, phi = CrossEntropy(own, "mean"), own.initialize(0)
        batch = Minibatch(self.batches[0].x.unsqueeze(1), self.batches[0].y)
        return lambda: as_in_training(loss, phi, batch)

    def product(self) -> object:
        return hessian_at(self.losses[0], self.phi)(self.v)

    def further(self) -> Call:
        product = hessian_at(self.losses[0], self.phi)
        return lambda: product(self.v)

    def table(self, order: int) -> object:
        return inner_gradient_terms(self.losses, self.phi, order)

    def maml_table(self) -> object:
        return maml_terms(self.losses, self.phi, 2)

    def maml(self) -> object:
        return maml(self.mean_loss, self.phi, self.batches, SGD(ALPHA))

    def plain_gradient(self) -> object:
        return plain.gradient(self.plain_losses[0], self.at)

    def plain_product(self) -> object:
        return plain.hessian_product(self.plain_losses[0], self.at, self.directions)

    def plain_table(self, order: int) -> object:
        return plain.taylor_terms(self.plain_losses, self.at, order)

    def plain_maml(self) -> object:
        return plain.maml(self.plain_losses, self.at, ALPHA)

    def curvlinops(self) -> Call:
        loss, parameters = torch.nn.CrossEntropyLoss(), list(self.at.values())
        operator = HessianLinearOperator(self.model, loss, parameters, [self.pair])
        return lambda: operator @ self.directions


def minibatches(dtype: torch.dtype) -> list[Minibatch]:
    pool = ImagePool(images(), dtype)
    drawn = pool.sample(ABLATION.sampling, seed=0, purpose=Purpose.ANALYSIS, iteration=0, task=0)
    return [pool.minibatch(examples) for examples in drawn.minibatches]


def measure(calls: dict[tuple[str, str], Call], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the seconds that a call takes, by round.

    Each call finds its own data in the caches, and short ones are repeated.
    """
    counts = {name: max(1, round(TURN / timed(call, 1))) for name, call in calls.items()}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            seconds[name].append(timed(call, counts[name]))
    return seconds


HEADER = [
    "| | plain (ms) | ours (ms) | plain / ours | ours, in gradients | at most |",
    "|---|---|---|---|---|---|",
]


def rows(rounds: int) -> list[str]:
    torch.set_num_threads(1)
    named = cases()
    calls = {(name, "ours"): case.ours for name, case in named.items()}
    calls |= {(name, "plain"): case.plain for name, case in named.items() if case.plain is not None}
    seconds = measure(calls, rounds)
    return [row(name, case, seconds) for name, case in named.items()]


def row(name: str, case: Case, seconds: dict[tuple[str, str], list[float]]) -> str:
    """Return a row of the table: medians over the rounds, and the range of ratios to the unit."""
    ours, unit = seconds[name, "ours"], seconds[case.unit, "ours"]
    theirs = seconds.get((name, "plain"))
    costs = [mine / one for mine, one in zip(ours, unit, strict=True)]
    plainly = ("", "")
    if theirs is not None:
        ratio = median(other / mine for other, mine in zip(theirs, ours, strict=True))
        plainly = f"{1e3 * median(theirs):.2f}", f"{ratio:.2f}"
    kind = "" if case.unit == GRADIENT else " of float64"
    return (
        f"| {name} | {plainly[0]} | {1e3 * median(ours):.2f} | {plainly[1]} "
        f"| {median(costs):.2f}{kind} ({min(costs):.2f} … {max(costs):.2f}) | {case.goal or ''} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    with local_executor(1) as worker:
        print("\n".join([*HEADER, *worker.submit(rows, parser.parse_args().rounds).result()]))


if __name__ == "__main__":
    main()
