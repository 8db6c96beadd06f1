"""The inner loop on the page's drawings: k steps on three examples, then the query's probabilities.

There is one example of each class. Batch norm uses the batch at hand. The query is classified
together with the examples, in a batch of its own: evaluation without transduction, as in the
paper.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from reptile_core.inner_loop import Phi, State, inner_loop
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.networks import Network, omniglot
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Run, TrainingState, build_network

N_WAY = 3


def initialization(run: Run, state: TrainingState, sampling: Sampling) -> "Initialization":
    """Return where a run on Omniglot's network ended, for tasks of N_WAY classes.

    A batch of these tasks is one example of each class. A run on more classes serves with its first
    N_WAY outputs: labels are dealt at random in training, so that all outputs are alike.

    sampling: how the run is evaluated. A batch of `batch` examples there stands for batch / N_WAY
    copies of this one. Copies leave batch norm as it is and multiply the gradient of a summed loss.
    Under SGD that is the same as a learning rate that many times larger.
    """
    wide, network = build_network(run), omniglot(N_WAY, activation=run.activation)
    inner, moments = run.inner, state.inner if run.inner.moments == "kept" else None
    if inner.optimizer == "sgd" and inner.reduction == "sum":
        inner = replace(inner, learning_rate=inner.learning_rate * sampling.batch / N_WAY)
    if moments is not None:
        moments = tuple(
            _cut(wide, network, m) if m.shape == state.phi.shape else m for m in moments
        )
    return Initialization(network, _cut(wide, network, state.phi), inner, moments)


def _cut(wide: Network, narrow: Network, vector: Float[Tensor, " P"]) -> Float[Tensor, " Q"]:
    """Cut a vector to the parameters that a network with fewer outputs has too.

    vector: parameters, or moments shaped like them.
    """
    parts = wide.unflatten(vector)
    kept = []
    for name, shape in narrow.shapes.items():
        corner = tuple(map(slice, shape))
        kept.append(parts[name][corner].flatten())
    return torch.cat(kept)


def adapt(
    start: "Initialization",
    examples: Float[Tensor, "3 28 28"],
    query: Float[Tensor, "28 28"],
    *,
    steps: int,
) -> "Adaptation":
    """Take k = `steps` inner steps on the examples, then classify the query.

    examples: one of each class, 0, 1 and 2.
    """
    loss, mean = (CrossEntropy(start.network, kind) for kind in (start.inner.reduction, "mean"))
    batch = Minibatch(examples, torch.arange(N_WAY))
    phi, losses = start.phi, [mean(start.phi, batch).item()]
    for step in inner_loop(loss, phi, [batch] * steps, start.inner.build(), start.moments):
        phi = step.after
        losses.append(mean(phi, batch).item())
    logits = start.network(phi, torch.cat([query.unsqueeze(0), examples]))[0]
    return Adaptation(losses, logits.softmax(-1).tolist())


@dataclass(frozen=True)
class Initialization:
    """The start of the inner loop, and how it steps.

    The network has N_WAY outputs.
    """

    network: Network
    phi: Phi
    inner: Inner
    moments: State | None = None


@dataclass(frozen=True)
class Adaptation:
    """The losses along the inner loop, and what it makes of the query.

    losses: L(phi_1) … L(phi_{k+1}) on the examples, the mean in nats.
    probabilities: of the query, after k steps.
    """

    losses: list[float]
    probabilities: list[float]
