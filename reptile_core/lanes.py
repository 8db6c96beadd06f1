"""Many runs at once on one device, one lane each.

The inner loops of all lanes are batched products of one size. A lane computes what `training.train`
computes of its run, from the same tasks, up to round-off. On a GPU a whole meta-iteration is
captured once as a graph and then replayed. Data and tasks stay on the device, and nothing in the
graph waits for the host.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reptile_core.losses import CrossEntropy
from reptile_core.networks import Network
from reptile_core.own_network import OwnNetwork
from reptile_core.sizes import same_size
from reptile_core.tasks import Examples, ImagePool, training_stream
from reptile_core.training import (
    OuterStep,
    Run,
    TrainingState,
    build_network,
    meta_direction,
    network_for,
)

Function = Callable[..., tuple[Tensor, ...]]
STAGES, VECTORS = 8, 12  # outputs kept of a block, and vectors as long as phi
# Calls before a capture, as torch recommends: libraries set themselves up in the first ones.
WARM_UPS = 3


def shared(run: Run) -> Run:
    """Return what runs must share to be lanes: all but the seed and the values of the weights."""
    weights = run.weights
    if not isinstance(weights, str):
        weights = (0.0,) * len(weights)
    return replace(run, seed=0, weights=weights)


def lane_bytes(run: Run) -> int:
    """Return an upper estimate of the memory that a lane takes, in bytes.

    It counts what an inner step keeps for its gradient, phi, and vectors as long as phi. Per
    position of a block's output, a step keeps the patches, and the output itself as often as the
    block has stages. MAML holds as much again for the derivatives of one step's gradient. Of every
    step it also holds phi, its gradient and the moments.
    """
    network = build_network(run)
    if isinstance(network, OwnNetwork):
        of_one_image = STAGES * network.numbers
    else:
        of_one_image = _in_blocks(network)
    numbers = run.sampling.batch * of_one_image
    maml = run.weights == "maml"
    vectors = VECTORS + (3 * run.sampling.steps if maml else 0)
    number_bytes = torch.empty(0, dtype=run.torch_dtype).element_size()
    return (numbers * (2 if maml else 1) + vectors * network.n_parameters) * number_bytes


def _in_blocks(network: Network) -> int:
    """Return how many numbers the blocks of one of the paper's networks keep for one image."""
    assert network.takes is not None
    numbers, size = 0, network.takes[0]
    full = 4 if network.name != "omniglot" else 1  # pooled blocks are convolved at full size
    kernels = [shape for name, shape in network.shapes.items() if name.startswith("conv")]
    for rows, filters in kernels:
        size = same_size(size, 2)
        numbers += size * size * full * (rows + STAGES * filters)
    return numbers


def train_lanes(
    runs: Sequence[Run], pools: Sequence[ImagePool], states: Sequence[TrainingState]
) -> Iterator[TrainingState]:
    """Train all lanes from `states` to the end, yielding their state after every iteration.

    states: all at the same iteration.
    pools: training images of each run, equal in extent.

    A yielded state has a leading axis of lanes; see `lane`. It must not be written into, and on a
    GPU it is valid until the next iteration. Raises ValueError where runs, pools or states differ
    in what they must share.
    """
    run = _common(runs, pools, states)
    pool, offset = _joined(pools)
    device = pool.images.device
    weights = _weights(runs, states[0].phi)
    state = _stacked(states)
    outer = OuterStep(run, state)
    loss = CrossEntropy(network_for(run, pools[0]), reduction=run.inner.reduction)
    phi, inner = state.phi, state.inner
    if inner is None and run.inner.moments == "kept":
        inner = run.inner.build().start(phi)

    def direction(phi: Tensor, index: Tensor, label: Tensor, *inner: Tensor) -> tuple[Tensor, ...]:
        examples = map(Examples, index.split(sizes, -1), label.split(sizes, -1))
        found, after = meta_direction(run, loss, phi, pool, list(examples), inner or None, weights)
        return found, *(after or ())

    todo = range(state.iteration, run.iterations)
    seeds = torch.tensor([run.seed for run in runs], device=device)
    stream = training_stream(
        run.sampling,
        pools[0],
        seed=seeds,
        iterations=todo,
        meta_batch=run.meta_batch,
        device=device,
    )
    call: Function | None = None if device.type == "cuda" else direction
    for iteration, tasks in zip(todo, stream, strict=True):
        sizes = [batch.index.shape[-1] for batch in tasks.minibatches]
        index = torch.cat([batch.index for batch in tasks.minibatches], -1) + offset
        label = torch.cat([batch.label for batch in tasks.minibatches], -1)
        if call is None:
            call = Graph(direction, phi, index, label, *(inner or ()))
        found, *after = call(phi, index, label, *(inner or ()))
        inner = tuple(after) if run.inner.moments == "kept" else None
        phi = outer(phi, found, iteration)
        yield TrainingState(iteration + 1, phi, inner, outer.state())


def lane(state: TrainingState, index: int) -> TrainingState:
    """Return one run's part of a state of many lanes.

    Scalars, such as a number of steps, are shared.
    """

    def of(part: Tensor) -> Tensor:
        return part[index].clone() if part.ndim else part.clone()

    inner = None if state.inner is None else tuple(map(of, state.inner))
    outer = None if state.outer is None else {name: of(part) for name, part in state.outer.items()}
    return TrainingState(state.iteration, of(state.phi), inner, outer)


class Graph:
    """A function of tensors as a CUDA graph: queued once, then replayed on new numbers.

    It owns the tensors that it returns, and the next call overwrites them.
    """

    def __init__(self, function: Function, *inputs: Tensor) -> None:
        self.inputs = tuple(part.clone() for part in inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for held, new in zip(self.inputs, inputs, strict=True):
            held.copy_(new, non_blocking=True)
        self.graph.replay()
        return self.outputs


def _common(
    runs: Sequence[Run], pools: Sequence[ImagePool], states: Sequence[TrainingState]
) -> Run:
    if not len(runs) == len(pools) == len(states) > 0:
        raise ValueError(
            f"runs: expected as many pools and states, found {len(runs)}, {len(pools)} and "
            f"{len(states)}"
        )
    kinds = [shared(run) for run in runs]
    differing = [f.name for f in fields(Run) if len({getattr(kind, f.name) for kind in kinds}) > 1]
    if differing:
        raise ValueError(
            f"runs: expected one kind in all lanes, found different {', '.join(differing)}"
        )
    for name, values in (
        ("pools", {(pool.images.shape, pool.dtype, pool.white) for pool in pools}),
        ("states", {state.iteration for state in states}),
    ):
        if len(values) > 1:
            raise ValueError(f"{name}: expected one kind in all lanes, found {len(values)}")
    pools[0].check(runs[0].sampling)
    return runs[0]


def _joined(pools: Sequence[ImagePool]) -> tuple[ImagePool, Int[Tensor, "lanes 1"]]:
    """Return all images in one pool, each kept once, and an offset for the indices of each lane.

    Added to a lane's indices, the offset makes them point at the lane's own images.
    """
    distinct = {pool.images.data_ptr(): pool.images for pool in pools}
    images = torch.cat(list(distinct.values())) if len(distinct) > 1 else pools[0].images
    order = list(distinct)
    places = torch.tensor(
        [order.index(pool.images.data_ptr()) for pool in pools], device=images.device
    )
    offsets = places * pools[0].classes * pools[0].drawings
    return replace(pools[0], images=images), offsets.unsqueeze(-1)


def _weights(runs: Sequence[Run], phi: Tensor) -> list[Float[Tensor, "lanes 1"]] | Literal["maml"]:
    """Return one weight per lane, for each step."""
    if isinstance(runs[0].weights, str):
        return "maml"
    table = torch.tensor([run.weights for run in runs], dtype=phi.dtype, device=phi.device)
    return list(table.T.unsqueeze(-1).unbind())


def _stacked(states: Sequence[TrainingState]) -> TrainingState:
    def together(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts)) if parts[0].ndim else parts[0]

    inners = [state.inner for state in states if state.inner]
    outers = [state.outer for state in states if state.outer]
    inner = tuple(map(together, zip(*inners, strict=True))) or None
    outer: dict[str, Tensor] = {}
    for name in states[0].outer or ():
        outer[name] = together([part[name] for part in outers])
    phi = together([state.phi for state in states])
    return TrainingState(states[0].iteration, phi, inner, outer or None)
