"""Naive oracles: the paper's networks as nn.Modules, and its loops with torch.optim.

They are written without the core. A module's weights are copied out of a flat phi in the core's
order: conv weights (9 c_in, c_out) with rows over tap row, tap column, input channel; linear
weights (fan_in, fan_out); features flattened height, width, channel.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Batch = tuple[Tensor, Tensor]  # images (batch, height, width[, channels]) and labels (batch,)
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

ACTIVATIONS = {"relu": nn.ReLU, "softplus": nn.Softplus, "tanh": nn.Tanh}


def naive_patches(x: Tensor, stride: int) -> Tensor:
    """Return TensorFlow's "same" 3 x 3 patches of x (height, width, channels), pixel by pixel."""
    height, width, channels = x.shape
    (top, out_height), (left, out_width) = _same(height, stride), _same(width, stride)
    out = x.new_zeros(out_height, out_width, 3, 3, channels)
    for row, column, r, c in torch.cartesian_prod(
        *map(torch.arange, (out_height, out_width, 3, 3))
    ).tolist():
        i, j = row * stride + r - top, column * stride + c - left
        if 0 <= i < height and 0 <= j < width:
            out[row, column, r, c] = x[i, j]
    return out.flatten(2)


def _same(size: int, stride: int) -> tuple[int, int]:
    """Return the zeros before, and the length of the output, by TensorFlow's manual."""
    total = max(3 - (size % stride or stride), 0)
    return total // 2, (size + stride - 1) // stride


class Convolutional(nn.Module):
    """The paper's network of four convolutional blocks.

    Convolutions have a bias, as the authors' do. Batch norm makes it inert.
    """

    def __init__(
        self, n_way: int, *, size: int, channels: int, filters: int, activation: str, pool: bool
    ) -> None:
        super().__init__()
        blocks = []
        for block in range(4):
            before = 0 if size % 2 == 0 and not pool else 1
            act = ACTIVATIONS[activation]()
            blocks.append(
                nn.Sequential(
                    nn.ZeroPad2d((before, 1, before, 1)),
                    nn.Conv2d(
                        channels if block == 0 else filters, filters, 3, stride=1 if pool else 2
                    ),
                    nn.BatchNorm2d(filters, eps=1e-3, track_running_stats=False),
                    *((nn.MaxPool2d(2, ceil_mode=True), act) if pool else (act,)),
                )
            )
            size = (size + 1) // 2
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(size * size * filters, n_way)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        return self.linear(self.blocks(x).permute(0, 2, 3, 1).flatten(1))


def omniglot_module(
    n_way: int, *, activation: str = "relu", dtype: torch.dtype = torch.float64
) -> nn.Module:
    module = Convolutional(
        n_way, size=28, channels=1, filters=64, activation=activation, pool=False
    )
    return module.to(dtype)


def mini_imagenet_module(
    n_way: int, *, size: int, filters: int = 32, dtype: torch.dtype = torch.float64
) -> nn.Module:
    return Convolutional(
        n_way, size=size, channels=3, filters=filters, activation="relu", pool=True
    ).to(dtype)


def mlp_module(
    widths: Sequence[int], *, activation: str, dtype: torch.dtype = torch.float64
) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def learned(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that phi holds: all but the inert biases of the convolutions."""
    inert = {f"{name}.bias" for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}
    return {name: p for name, p in module.named_parameters() if name not in inert}


def to_named(module: nn.Module, phi: Tensor) -> dict[str, Tensor]:
    """Return phi as the module's tensors, differentiably."""
    parts = phi.split([p.numel() for p in learned(module).values()])
    return {
        n: _layout(part, p.shape)
        for (n, p), part in zip(learned(module).items(), parts, strict=True)
    }


def _layout(part: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:
        c_out, c_in, rows, columns = shape
        return part.reshape(rows, columns, c_in, c_out).permute(3, 2, 0, 1)
    return part.reshape(shape[1], shape[0]).T if len(shape) == 2 else part


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return the module's tensors (or their gradients) as phi is laid out."""
    return torch.cat(
        [
            t.permute(*(2, 3, 1, 0) if t.ndim == 4 else range(t.ndim)[::-1]).flatten()
            for t in tensors
        ]
    )


def load(module: nn.Module, phi: Tensor) -> nn.Module:
    with torch.no_grad():
        for name, value in to_named(module, phi).items():
            learned(module)[name].copy_(value)
    return module


def weights_of(module: nn.Module) -> Tensor:
    return flat(p.detach() for p in learned(module).values()).clone()


def loss_and_gradient(module: nn.Module, batch: Batch, *, reduction: str) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of a batch at the module's weights, and its gradient.

    The gradient is laid out as phi is.
    """
    module.zero_grad()
    loss = F.cross_entropy(module(batch[0]), batch[1], reduction=reduction)
    loss.backward()
    return loss.detach(), flat(p.grad for p in learned(module).values() if p.grad is not None)


@dataclass
class Trace:
    """The parameters phi_1 … phi_{k+1} and the gradients g_1 … g_k."""

    phis: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


def sgd(learning_rate: float) -> MakeOptimizer:
    return lambda parameters: torch.optim.SGD(parameters, lr=learning_rate)


def adam(learning_rate: float) -> MakeOptimizer:
    """Return Adam as the authors use it inside: beta1 = 0."""
    return lambda parameters: torch.optim.Adam(parameters, lr=learning_rate, betas=(0.0, 0.999))


def inner_loop(
    module: nn.Module,
    phi: Tensor,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    reduction: str = "sum",
) -> Trace:
    """Copy phi into the module and run the optimizer, whose state the caller keeps."""
    load(module, phi)
    trace = Trace([phi.clone()])
    for batch in batches:
        trace.gradients.append(loss_and_gradient(module, batch, reduction=reduction)[1])
        optimizer.step()
        trace.phis.append(weights_of(module))
    return trace


def maml_gradient(
    module: nn.Module,
    phi: Tensor,
    batches: Sequence[Batch],
    step: Callable[[Tensor, Tensor], Tensor],
    *,
    reduction: str = "sum",
) -> Tensor:
    """Return d/dphi_1 L_k(phi_k), differentiated through k - 1 steps.

    A step is phi_{i+1} = step(phi_i, g_i), whose graph is kept.
    """
    start = phi.detach().clone().requires_grad_()

    def loss(at: Tensor, batch: Batch) -> Tensor:
        logits = functional_call(module, to_named(module, at), (batch[0],))
        return F.cross_entropy(logits, batch[1], reduction=reduction)

    at = start
    for batch in batches[:-1]:
        (g,) = torch.autograd.grad(loss(at, batch), at, create_graph=True)
        at = step(at, g)
    return torch.autograd.grad(loss(at, batches[-1]), start)[0]


class WrittenAdam:
    """Adam with beta1 = 0 as a differentiable step, straight from Kingma and Ba's algorithm 1."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate, self.v, self.t = learning_rate, 0.0, 0

    def __call__(self, phi: Tensor, g: Tensor) -> Tensor:
        self.t += 1
        self.v = 0.999 * self.v + 0.001 * g**2
        return phi - self.learning_rate * g / ((self.v / (1 - 0.999**self.t)) ** 0.5 + 1e-8)


def plain_eps(step: float, iteration: int, iterations: int) -> float:
    """Return the outer step, annealed linearly to 0."""
    return step * (iterations - iteration) / iterations


def classify_one_by_one(module: nn.Module, test: Tensor, support: Tensor) -> list[int]:
    """Classify each test example in one batch with the whole support set (no transduction)."""
    with torch.no_grad():
        return [int(module(torch.cat([support, x.unsqueeze(0)]))[-1].argmax()) for x in test]


def classify_together(module: nn.Module, test: Tensor) -> list[int]:
    """Classify all test examples of a task in one batch (transduction)."""
    with torch.no_grad():
        return module(test).argmax(1).tolist()
