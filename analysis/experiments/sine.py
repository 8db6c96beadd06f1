"""Section 4: from Reptile's start, 32 steps of gradient descent on 10 points find a sine wave.

Tasks are a sin(x + b). The average over the phase b is 0 everywhere, so joint training can learn no
more than f = 0, and nothing in it prepares the steps from there.

Reptile's k = 5 minibatches of 10 are one pass over the 50 points. Joint training sees the same
points of the same waves, in one gradient at phi_1 weighted by k, and so takes the same AvgGrad
step. The two differ in where g_2 … g_k are taken, and in nothing else.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise, product
from math import inf, pi
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.experiments.shared.experiment import EPOCH, Context, Experiment, Result
from analysis.results.claims import Claim, Control
from analysis.results.evidence import CHECK, CONTROL, rows
from analysis.results.tables import over_seeds
from analysis.runs.workers import Progress
from reptile_core import philox
from reptile_core.inner_loop import SGD, Loss, Phi, inner_loop
from reptile_core.losses import Minibatch
from reptile_core.meta_gradients import weighted_sum
from reptile_core.networks import Network, mlp
from reptile_core.philox import Purpose
from reptile_core.training import Outer

NAME = "sine"
WIDTHS = (1, 64, 64, 1)
INTERVAL = (-5.0, 5.0)
AMPLITUDE = (0.1, 5.0)
POINTS = 50
BATCH = 10  # points of a minibatch, and points that a test task shows
K = POINTS // BATCH
LEARNING_RATE = 0.02  # on the mean squared error, as in the authors' script
OUTER_STEP = 0.1
TEST_STEPS = 32
SHOWN = (0, 8, 16, 24, 32)
BLOCK = 250  # iterations whose waves are drawn together
# Activation and first weights. The authors' published script has tanh and PyTorch's weights; the
# paper has ReLU. Glorot's weights with zero biases, the start of the other networks here, are shown
# next to them.
NETWORKS = {
    "tanh": ("tanh", "pytorch"),
    "relu": ("relu", "pytorch"),
    "tanh, Glorot": ("tanh", "glorot"),
}
JUDGED = {"tanh": "", "relu": "-relu"}  # with the ending of their claims' ids
# w_1 … w_k of the minibatches that the 50 points are cut into; empty for no training.
INITIALIZATIONS: dict[str, tuple[float, ...]] = {
    "untrained": (),
    "joint": (float(K),),
    "reptile": (1.0,) * K,
}


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


@dataclass(frozen=True)
class Waves:
    """Waves on the grid, with a random order of the points for each."""

    y: Float[Tensor, "*tasks points"]
    order: Int[Tensor, "*tasks points"]

    def minibatches(self, count: int, *, size: int) -> list[Minibatch]:
        """Return the first `count` disjoint parts of the points in their random order.

        x, y: shape (*tasks, size, 1).
        """
        x, y = grid()[self.order], self.y.gather(-1, self.order)
        cuts = [slice(i * size, (i + 1) * size) for i in range(count)]
        return [Minibatch(x[..., cut].unsqueeze(-1), y[..., cut].unsqueeze(-1)) for cut in cuts]


@dataclass(frozen=True)
class Item:
    """One piece of work: an initialization from several seeds, which are lanes of one phi."""

    initialization: str
    network: str
    iterations: int
    seeds: tuple[int, ...]
    tasks: int

    @property
    def size(self) -> int:
        """Gradients that training takes, in each lane."""
        return self.iterations * len(INITIALIZATIONS[self.initialization])


@dataclass(frozen=True)
class Adapted:
    """Test tasks after each of 0 … 32 steps.

    squared_error: mean over the points of each task.
    energy: mean square of each task's wave, which is the squared error of f = 0.
    picture: the predictions for the first seed's first task.
    """

    squared_error: Float[Tensor, "steps seeds tasks"]
    energy: Float[Tensor, "seeds tasks"]
    picture: Float[Tensor, "steps points"]

    @property
    def relative(self) -> Float[Tensor, "steps seeds tasks"]:
        """Squared errors, as multiples of the mean squared error of f = 0 on a seed's tasks."""
        return (self.squared_error / self.energy.mean(-1, keepdim=True)).double()


def grid() -> Float[Tensor, " points"]:
    return torch.linspace(*INTERVAL, POINTS)


def draw_waves(
    seeds: Sequence[int],
    purpose: Purpose,
    *,
    iteration: Int[Tensor, "*tasks"] | int = 0,
    task: Int[Tensor, "*tasks"] | int = 0,
) -> Waves:
    """Draw waves a sin(x + b), a ~ U[0.1, 5], b ~ U[0, 2 pi], at these addresses of each seed.

    Their shape is (seeds, *tasks, points).
    """
    uniform = partial(
        philox.uniform, purpose=purpose, count=2 + POINTS, iteration=iteration, task=task
    )
    u = torch.stack([uniform(seed) for seed in seeds])
    low, high = AMPLITUDE
    a, b = low + (high - low) * u[..., :1], 2 * pi * u[..., 1:2]
    return Waves((a * torch.sin(grid() + b)).float(), philox.permutations(u[..., 2:]))


def initialize(network: Network, seed: int, scheme: str) -> Float[Tensor, " P"]:
    """Return the first weights by a scheme, "glorot" or "pytorch".

    The latter draws weights and biases as torch.nn.Linear does, within ±1/sqrt(fan-in). With one
    input it matters: without biases all units of the first layer bend at x = 0.
    """
    if scheme == "glorot":
        return network.initialize(seed)
    bounds = []
    for fan_in, fan_out in pairwise(WIDTHS):
        count = (fan_in + 1) * fan_out
        bounds.append(torch.full((count,), fan_in**-0.5))
    u = philox.uniform(seed, Purpose.INITIALIZATION, network.n_parameters)
    return ((2 * u - 1) * torch.cat(bounds)).float()


def squared_error(network: Network) -> Loss:
    """Return the loss: the mean over a minibatch of (f(x) - y)^2, one number per lane."""
    return lambda phi, batch: (network(phi, batch.x) - batch.y).square().mean((-2, -1))


def train(item: Item, progress: Progress) -> Float[Tensor, "seeds P"]:
    """Return phi after training, one lane per seed.

    A seed's waves are the same for every initialization.
    """
    activation, scheme = NETWORKS[item.network]
    network = mlp(WIDTHS, activation=activation)
    phi = torch.stack([initialize(network, seed, scheme) for seed in item.seeds])
    weights = INITIALIZATIONS[item.initialization]
    if not weights:
        return phi
    loss, inner, outer = squared_error(network), SGD(LEARNING_RATE), Outer(OUTER_STEP)
    for start in range(0, item.iterations, BLOCK):
        block = torch.arange(start, min(start + BLOCK, item.iterations))
        waves = draw_waves(item.seeds, Purpose.TRAINING, iteration=block)
        minibatches = waves.minibatches(len(weights), size=POINTS // len(weights))
        for column, iteration in enumerate(block.tolist()):
            here = [Minibatch(batch.x[:, column], batch.y[:, column]) for batch in minibatches]
            direction, _ = weighted_sum(loss, phi, here, inner, weights)
            phi = torch.add(phi, direction, alpha=-outer.size(iteration, item.iterations))
        progress(len(block) * len(weights))
    return phi


def adapt(
    network: Network, phi: Float[Tensor, "seeds P"], seeds: Sequence[int], tasks: int
) -> Adapted:
    """Take 32 steps of gradient descent on 10 points of each test task, the same at every step.

    phi: one lane per seed, which meets the test tasks of that seed.
    """
    waves = draw_waves(seeds, Purpose.EVALUATION, task=torch.arange(tasks))
    x, loss = grid().unsqueeze(-1), squared_error(network)

    def predict(phi: Phi) -> Float[Tensor, "seeds tasks points"]:
        return network(phi, x).squeeze(-1)

    adapted = phi.unsqueeze(1).expand(-1, tasks, -1)
    predictions = [predict(adapted)]
    minibatches = waves.minibatches(1, size=BATCH) * TEST_STEPS
    for step in inner_loop(loss, adapted, minibatches, SGD(LEARNING_RATE)):
        predictions.append(predict(step.after))
    f = torch.stack(predictions)
    return Adapted((f - waves.y).square().mean(-1), waves.y.square().mean(-1), f[:, 0, 0])


def train_and_adapt(item: Item, progress: Progress) -> Adapted:
    activation, _ = NETWORKS[item.network]
    return adapt(mlp(WIDTHS, activation=activation), train(item, progress), item.seeds, item.tasks)


def table(adapted: dict[Item, Adapted]) -> pd.DataFrame:
    """Return the mean squared error over test tasks, relative to that of f = 0.

    There is one row per network, initialization, seed and step, with the standard error over tasks.
    """
    found = []
    for item, one in adapted.items():
        means, errors = one.relative.mean(-1), one.relative.std(-1) / item.tasks**0.5
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
    for item, one in adapted.items():
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


def items(scale: Scale, seeds: Sequence[int]) -> list[Item]:
    """Return one item for every initialization of every network."""
    found = []
    for network, name in product(scale.networks, INITIALIZATIONS):
        found.append(Item(name, network, scale.iterations, tuple(seeds), scale.tasks))
    return found


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
    work = items(scale, context.seeds_of(scale.seeds))
    found = context.workers.map(NAME, train_and_adapt, work, sizes=[item.size for item in work])
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
