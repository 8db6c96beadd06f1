"""Meta-training: sample a task, run k steps of SGD on it, move phi towards the result, repeat.

A `Run` describes a run completely: the outcome is a pure function of it and of the data. The state
can be saved after any iteration and the run resumed from it. Every bit after that is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from math import isfinite
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, optim

from reptile_core import evaluation
from reptile_core.inner_loop import SGD, Adam, InnerOptimizer, Loss, Phi, State
from reptile_core.losses import CrossEntropy
from reptile_core.meta_gradients import maml, weighted_sum
from reptile_core.networks import Network, check_shape, mini_imagenet, omniglot
from reptile_core.own_network import OwnNetwork
from reptile_core.tasks import Examples, ImagePool, Sampling, training_stream

# By name in a Run. CIFAR-FS is not in the paper: it has Mini-ImageNet's network at its own size and
# with as many filters as Omniglot's.
NETWORKS: dict[str, Callable[..., Network]] = {
    "omniglot": omniglot,
    "mini_imagenet": mini_imagenet,
    "cifar_fs": partial(mini_imagenet, size=32, filters=64, name="cifar_fs"),
}
MAX_SEED = 2**63 - 1  # seeds of lanes are a tensor of integers

# torch's optimizers that need no more than the gradient of a vector. Adafactor is none of them, as
# it would couple lanes; nor are ASGD and Rprop, whose steps follow eps late or not at all.
OUTER_OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adadelta": optim.Adadelta,
    "adagrad": optim.Adagrad,
    "adam": optim.Adam,
    "adamax": optim.Adamax,
    "adamw": optim.AdamW,
    "nadam": optim.NAdam,
    "radam": optim.RAdam,
    "rmsprop": optim.RMSprop,
    "sgd": optim.SGD,
}


@dataclass(frozen=True)
class Inner:
    """The inner optimizer.

    moments: what happens to Adam's second moments from task to task. "kept" carries them from each
        task into the next, as the authors do. "reset" starts every task with fresh ones.
    """

    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    reduction: Literal["sum", "mean"] = "sum"
    moments: Literal["kept", "reset"] = "kept"

    def __post_init__(self) -> None:
        _choice("optimizer", self.optimizer, ("sgd", "adam"))
        _choice("reduction", self.reduction, ("sum", "mean"))
        _choice("moments", self.moments, ("kept", "reset"))
        self.build()

    def build(self) -> InnerOptimizer:
        return SGD(self.learning_rate) if self.optimizer == "sgd" else Adam(self.learning_rate)


@dataclass(frozen=True)
class Outer:
    """The outer step, with eps annealed linearly from `step` to `final`.

    optimizer: "plain" is phi <- phi - eps · direction. The name of a torch optimizer ("adam",
        "rmsprop", …) makes that optimizer take the step, with the direction as gradient and eps as
        learning rate.
    """

    step: float
    final: float = 0.0
    optimizer: str = "plain"

    def __post_init__(self) -> None:
        _choice("optimizer", self.optimizer, ("plain", *OUTER_OPTIMIZERS))
        _finite("step", self.step)
        _finite("final", self.final)

    def size(self, iteration: int, iterations: int) -> float:
        """Return eps at an iteration, counted from 0."""
        done = iteration / iterations
        return self.step * (1 - done) + self.final * done


@dataclass(frozen=True)
class Run:
    """Everything that decides the outcome of one meta-training run, except the data.

    How the run is evaluated does not decide it.

    network: name of one of NETWORKS, or your own module as `Network.of` makes it.
    activation: of one of NETWORKS; a module of yours has its own.
    weights: w_1 … w_k of the direction sum w_i (phi_i - phi_{i+1}), or "maml".
    """

    network: Literal["omniglot", "mini_imagenet", "cifar_fs"] | OwnNetwork
    sampling: Sampling
    weights: tuple[float, ...] | Literal["maml"]
    inner: Inner
    outer: Outer
    iterations: int
    seed: int
    meta_batch: int = 1
    activation: str = "relu"
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.network, OwnNetwork):
            self._check_own(self.network)
        elif not isinstance(self.network, str):
            raise TypeError(
                f"network: expected one of {', '.join(NETWORKS)}, or a module as Network.of makes "
                f"it, found {type(self.network).__name__}"
            )
        else:
            _choice("network", self.network, tuple(NETWORKS))
        _choice("dtype", self.dtype, ("float32", "float64"))
        for name, lowest in (("iterations", 1), ("meta_batch", 1), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, found {getattr(self, name)}")
        if self.seed > MAX_SEED:
            raise ValueError(f"seed: expected at most {MAX_SEED}, found {self.seed}")
        if isinstance(self.weights, str):
            _choice("weights", self.weights, ("maml",))
        elif len(self.weights) != self.sampling.steps:
            raise ValueError(
                f"weights: expected one per inner step ({self.sampling.steps}), found "
                f"{len(self.weights)}"
            )
        else:
            _finite("weights", *self.weights)
        build_network(self)  # raises ValueError for an unknown activation

    def _check_own(self, network: OwnNetwork) -> None:
        if network.outputs != self.sampling.n_way:
            raise ValueError(
                f"network: expected {self.sampling.n_way} outputs, as n_way is, found "
                f"{network.outputs}"
            )
        if self.activation != Run.activation:
            raise ValueError(
                f"activation: expected the default with your own network, which has its own, found "
                f"{self.activation!r}"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32

    def record(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them, with your own network given by its identity."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        if isinstance(self.network, OwnNetwork):
            parts["network"] = self.network.identity
        return {name: _as_json(part) for name, part in parts.items()}


@dataclass(frozen=True)
class TrainingState:
    """The state of a run: everything that the rest of the run depends on."""

    iteration: int
    phi: Tensor
    inner: State | None = None
    outer: dict[str, Tensor] | None = None


def build_network(run: Run) -> Network:
    if isinstance(run.network, OwnNetwork):
        return run.network
    return NETWORKS[run.network](run.sampling.n_way, activation=run.activation)


def network_for(run: Run, pool: ImagePool) -> Network:
    """Return the network of a run.

    Raises ValueError where it does not take the images of the pool.
    """
    if pool.dtype != run.torch_dtype:
        raise ValueError(
            f"pool: expected dtype {run.torch_dtype} as in the run, found {pool.dtype}"
        )
    network = build_network(run)
    if network.takes is not None:
        check_shape(network.takes, tuple(pool.images.shape[2:]), network.name)
    return network


def start(run: Run, device: torch.device | str = "cpu") -> TrainingState:
    """Return the state of a run before its first iteration."""
    return TrainingState(
        0, build_network(run).initialize(run.seed, dtype=run.torch_dtype).to(device)
    )


def train(run: Run, pool: ImagePool, state: TrainingState) -> Iterator[TrainingState]:
    """Train from `state` to the end of the run, yielding the state after every iteration."""
    pool.check(run.sampling)
    loss = CrossEntropy(network_for(run, pool), reduction=run.inner.reduction)
    outer = OuterStep(run, state)
    phi, inner = state.phi, state.inner
    todo = range(state.iteration, run.iterations)
    stream = training_stream(
        run.sampling, pool, seed=run.seed, iterations=todo, meta_batch=run.meta_batch
    )
    for iteration, tasks in zip(todo, stream, strict=True):
        direction, inner = meta_direction(
            run, loss, phi, pool, tasks.minibatches, inner, run.weights
        )
        phi = outer(phi, direction, iteration)
        yield TrainingState(iteration + 1, phi, inner, outer.state())


def meta_direction(
    run: Run,
    loss: Loss,
    phi: Phi,
    pool: ImagePool,
    minibatches: Sequence[Examples],
    inner: State | None,
    weights: Sequence[float | Tensor] | Literal["maml"],
) -> tuple[Phi, State | None]:
    """Return the direction averaged over a meta-batch, and Adam's moments for the next one.

    The tasks are run one after another.

    minibatches: for each step, those of all tasks, as indices (meta_batch, *lanes, batch).
    phi: may have lanes.
    weights: may have one number for each lane.
    """
    optimizer = run.inner.build()
    mean = torch.zeros_like(phi)
    for task in range(run.meta_batch):
        batches = [pool.minibatch(examples[task]) for examples in minibatches]
        if isinstance(weights, str):
            direction, after = maml(loss, phi, batches, optimizer, inner)
        else:
            direction, after = weighted_sum(loss, phi, batches, optimizer, weights, inner)
        mean += direction / run.meta_batch
        inner = after if run.inner.moments == "kept" else None
    return mean, inner


def evaluate(
    run: Run,
    pool: ImagePool,
    state: TrainingState,
    sampling: Sampling,
    tasks: range,
    *,
    queries: int = 1,
    look: int = 0,
    lanes: int = 1,
) -> dict[str, Float[Tensor, " tasks"]]:
    """Return the accuracy in [0, 1] of a state on each of these evaluation tasks of the run's seed.

    pool: images of the test classes.
    sampling: how a task is cut; n_way must be as in training.
    queries: test examples per class.
    look: which stream of tasks; tasks of different looks are independent.

    With one query per class, as in the authors' evaluation, the result also has the accuracy with
    transduction, as "accuracy_transductive". Raises ValueError where n_way differs from training,
    and where training has diverged.
    """
    if sampling.n_way != run.sampling.n_way:
        raise ValueError(
            f"sampling: expected tasks of {run.sampling.n_way} classes as in training, found "
            f"{sampling.n_way}"
        )
    network = network_for(run, pool)
    # Logits that are not finite would all fall into the first class: exactly chance.
    if not state.phi.is_meta and (others := int((~state.phi.isfinite()).sum())):
        raise ValueError(f"state: expected finite parameters, found {others} that are not")
    drawn = evaluation.evaluation_tasks(
        sampling,
        pool,
        seed=run.seed,
        tasks=tasks,
        queries=queries,
        look=look,
    )
    loss = CrossEntropy(network, reduction=run.inner.reduction)
    inner = state.inner if run.inner.moments == "kept" else None
    return evaluation.accuracies(
        network,
        loss,
        state.phi,
        pool,
        drawn,
        run.inner.build(),
        inner,
        transductive=queries == 1,
        lanes=lanes,
    )


class OuterStep:
    """A step phi - eps · direction, or one of torch's optimizers with the direction as gradient."""

    def __init__(self, run: Run, state: TrainingState) -> None:
        self.run = run
        self.optimizer: optim.Optimizer | None = None
        if run.outer.optimizer != "plain":
            self.parameter = state.phi.clone().requires_grad_()
            self.optimizer = OUTER_OPTIMIZERS[run.outer.optimizer](
                [self.parameter], lr=run.outer.step
            )
            # Copies, since the optimizer writes into them and `state` is the caller's.
            kept = {name: value.clone() for name, value in (state.outer or {}).items()}
            self.optimizer.state[self.parameter].update(kept)

    def __call__(self, phi: Tensor, direction: Tensor, iteration: int) -> Tensor:
        eps = self.run.outer.size(iteration, self.run.iterations)
        if self.optimizer is None:
            return torch.add(phi, direction, alpha=-eps)
        self.optimizer.param_groups[0]["lr"] = eps
        self.parameter.grad = direction
        self.optimizer.step()
        return self.parameter.detach().clone()

    def state(self) -> dict[str, Tensor] | None:
        """Return copies of the optimizer's tensors, as a state that was yielded must not change."""
        if self.optimizer is None:
            return None
        state = self.optimizer.state[self.parameter]
        return {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}


def _as_json(part: Any) -> Any:
    return asdict(part) if is_dataclass(part) and not isinstance(part, type) else part


def _finite(name: str, *found: float) -> None:
    for number in found:
        if not isfinite(number):
            raise ValueError(f"{name}: expected finite numbers only, found {number}")


def _choice(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {found!r}")
