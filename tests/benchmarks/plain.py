"""What one would write first, to compare our code with.

It uses torch.nn modules, torch.optim, weights copied out and back, random.sample and eager mode.
"""

import copy
import random
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from reptile_core.tasks import Sampling
from reptile_core.training import Run
from tests.benchmarks.measuring import CLASSES, DRAWINGS, images

Batch = tuple[Tensor, Tensor]
Parameters = dict[str, Tensor]
Loss = Callable[[Parameters], Tensor]


def model_of(n_way: int) -> nn.Module:
    layers: list[nn.Module] = []
    for block, size in enumerate((28, 14, 7, 4)):
        before = size % 2
        layers += [
            nn.ZeroPad2d((before, 1, before, 1)),
            nn.Conv2d(64 if block else 1, 64, 3, stride=2),
            nn.BatchNorm2d(64, eps=1e-3, track_running_stats=False),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, n_way))


def optimizer_of(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    if run.inner.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=run.inner.learning_rate)
    return torch.optim.Adam(model.parameters(), lr=run.inner.learning_rate, betas=(0.0, 0.999))


def batches(pool: Tensor, sampling: Sampling, *, spare: int = 0) -> Iterator[Batch]:
    """Yield disjoint minibatches of a task; then, of `spare` drawings of each class, one more."""
    chosen, body, rest = random.sample(range(CLASSES), sampling.n_way), [], []
    for label, c in enumerate(chosen):
        drawings = random.sample(range(DRAWINGS), sampling.shots + spare)
        body += [(c, d, label) for d in drawings[spare:]]
        rest += [(c, d, label) for d in drawings[:spare]]
    random.shuffle(body)
    cuts = [body[i * sampling.batch : (i + 1) * sampling.batch] for i in range(sampling.steps)]
    for batch in [*cuts, rest] if spare else cuts:
        x = torch.stack([pool[c, d] for c, d, _ in batch]).unsqueeze(1)
        yield x, torch.tensor([label for _, _, label in batch], device=pool.device)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    x, y = batch
    optimizer.zero_grad()
    F.cross_entropy(model(x), y, reduction="sum").backward()
    optimizer.step()


def iterate(run: Run, iterations: int, threads: int, *, device: str = "cpu") -> float:
    """Return the seconds that so many meta-iterations take.

    They run on `threads` threads, or on another device than the CPU.
    """
    torch.set_num_threads(threads)
    pool, model = images().float().to(device), model_of(run.sampling.n_way).to(device)
    optimizer = optimizer_of(run, model)
    began = time.perf_counter()
    for _ in range(iterations):
        old = copy.deepcopy(model.state_dict())
        new = {name: torch.zeros_like(value) for name, value in old.items()}
        for _ in range(run.meta_batch):
            model.load_state_dict(old)
            for batch in batches(pool, run.sampling):
                step(model, optimizer, batch)
            for name, value in model.state_dict().items():
                new[name] += value / run.meta_batch
        model.load_state_dict(
            {name: old[name] + run.outer.step * (new[name] - old[name]) for name in old}
        )
    return time.perf_counter() - began


def evaluate(run: Run, model: nn.Module, pool: Tensor, sampling: Sampling) -> float:
    """Adapt to a task's support set, then classify each test example alone with it."""
    adapted = copy.deepcopy(model)
    optimizer = optimizer_of(run, adapted)
    whole = Sampling(sampling.n_way, sampling.shots, sampling.n_way * sampling.shots, 1)
    (x, y), (test, wanted) = batches(pool, whole, spare=1)
    for _ in range(sampling.steps):
        chosen = torch.randperm(len(y))[: sampling.batch]
        step(adapted, optimizer, (x[chosen], y[chosen]))
    with torch.no_grad():
        together = adapted(test).argmax(-1)
        alone = torch.stack([adapted(torch.cat([one.unsqueeze(0), x]))[0].argmax() for one in test])
    return (together == wanted).float().mean().item() + (alone == wanted).float().mean().item()


def loss_at(model: nn.Module, batch: Batch) -> Loss:
    return lambda parameters: F.cross_entropy(
        functional_call(model, parameters, (batch[0],)), batch[1]
    )


def gradient(loss: Loss, at: Parameters, *, graph: bool = False) -> list[Tensor]:
    return list(torch.autograd.grad(loss(at), list(at.values()), create_graph=graph))


def hessian_product(loss: Loss, at: Parameters, v: list[Tensor]) -> list[Tensor]:
    """Return the Hessian times v, by reverse over reverse mode."""
    return _along(gradient(loss, at, graph=True), at, v)


def taylor_terms(losses: list[Loss], at: Parameters, order: int) -> list[list[list[Tensor]]]:
    """Return the series of g_1, g_2, … to the first or second order.

    Each term is differentiated from nothing.
    """
    # Sums of the terms over j < i, of orders 0 and 1.
    sums = [[torch.zeros_like(p) for p in at.values()] for _ in range(order)]
    series = []
    for loss in losses:
        terms = [gradient(loss, at), [-h for h in hessian_product(loss, at, sums[0])]]
        if order == 2:
            slope = _along(gradient(loss, at, graph=True), at, sums[0], graph=True)
            bend = _along(slope, at, sums[0])
            product = hessian_product(loss, at, sums[1])
            terms.append([b / 2 - h for b, h in zip(bend, product, strict=True)])
        series.append(terms)
        sums = [
            [s + part for s, part in zip(whole, term, strict=True)]
            for whole, term in zip(sums, terms, strict=False)
        ]
    return series


def maml(losses: list[Loss], at: Parameters, alpha: float) -> list[Tensor]:
    """Return d/dphi_1 L_k(phi_k) through one graph of all inner steps."""
    now = at
    for loss in losses[:-1]:
        steps = torch.autograd.grad(loss(now), list(now.values()), create_graph=True)
        now = {name: p - alpha * g for (name, p), g in zip(now.items(), steps, strict=True)}
    return list(torch.autograd.grad(losses[-1](now), list(at.values())))


def _along(
    f: list[Tensor], at: Parameters, v: list[Tensor], *, graph: bool = False
) -> list[Tensor]:
    return list(torch.autograd.grad(f, list(at.values()), v, create_graph=graph))
