"""Inner products between minibatch gradients, which AvgGradInner is said to raise.

AvgGradInner is the gradient of E[g_1 . g_2], up to a factor 1/2. This module has

- the Gram matrix of the gradients of n losses at one phi, and of single examples' gradients;
- cosines, in which the gradients' norms do not count;
- means within a task against means between tasks.

Where n gradients do not fit into memory, they are held in blocks, at most two at a time, and
computed again when they are needed again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from analysis.theory.derivatives import Loss, Vector, gradient
from analysis.theory.expectations import SampleMean
from reptile_core.losses import Minibatch
from reptile_core.networks import Network

Gram = Float[Tensor, "n n"]
Terms = Callable[[Vector], Float[Tensor, " n"]]
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Summary:
    """Means over pairs of different gradients: of one task, of two tasks, and their difference.

    The difference is the first less the second. Every task counts the same, and so does every pair
    of tasks. Standard errors are over tasks, by leaving out one at a time (jackknife). Pairs that
    share a gradient or a task are dependent: counting them as a sample would make the errors far
    too small.
    """

    within: SampleMean
    between: SampleMean
    difference: SampleMean


def gradient_gram(losses: Sequence[Loss], phi: Vector, *, max_bytes: int = GIBIBYTE) -> Gram:
    """Return L_i'(phi) . L_j'(phi) for all pairs of losses.

    max_bytes: memory for the gradients that are held. With b of them in half of it, about n (1 + n
        / b) / 2 are computed in all: one each where all fit, more where they are computed again.
    """
    return _gram(lambda index: gradient(losses[index], phi), len(losses), phi, max_bytes)


def example_gram(terms: Terms, phi: Vector, *, max_bytes: int = GIBIBYTE) -> Gram:
    """Return the inner products of the gradients of single examples.

    terms: gives the terms (n,) that the examples add to the batch's loss.

    With batch norm an example's gradient depends on its batch. Here it is the derivative of the
    example's own term with the whole batch present, all of which moves along with phi. So the
    gradients add up to the gradient of the summed loss. The terms' graph is held on top of
    max_bytes; each gradient runs back through it.
    """
    point = phi.detach().requires_grad_()
    with torch.enable_grad():
        each = terms(point).unbind()

    def gradient_of(index: int) -> Vector:
        return torch.autograd.grad(each[index], point, retain_graph=True)[0]

    return _gram(gradient_of, len(each), phi, max_bytes)


def example_terms(network: Network, batch: Minibatch) -> Terms:
    """Return the cross entropy of each example of a batch, as a function of phi.

    Their sum is the batch's loss with reduction="sum".
    """
    return lambda phi: F.cross_entropy(network(phi, batch.x), batch.y, reduction="none")


def cosines(gram: Gram) -> Gram:
    """Return g_i . g_j / (|g_i| |g_j|) for all pairs.

    A gradient that is 0 has no direction: its row and column are nan.
    """
    norms = gram.diagonal().sqrt()
    return gram / torch.outer(norms, norms)


def summarize(matrix: Gram, tasks: Int[Tensor, " n"]) -> Summary:
    """Return the means of inner products or cosines within and between tasks.

    tasks: tasks[i] is the task of gradient i; at least 3 tasks with at least 2 gradients each.

    The diagonal, a gradient with itself, never counts. A nan anywhere in what is averaged makes the
    mean nan.
    """
    if tasks.shape != matrix.shape[:1]:
        raise ValueError(
            f"tasks: expected one label for each of {len(matrix)} gradients, found "
            f"{tuple(tasks.shape)}"
        )
    _, label, sizes = tasks.unique(return_inverse=True, return_counts=True)
    if len(sizes) < 3 or sizes.min() < 2:
        raise ValueError(
            f"tasks: expected at least 3 tasks with at least 2 gradients each, found {len(sizes)} "
            f"tasks with {sizes.min()} and more"
        )
    means = _block_means(matrix.double(), label, sizes)
    whole = _statistics(means)
    kept = ~torch.eye(len(sizes), dtype=torch.bool)
    without = torch.stack([_statistics(means[rows][:, rows]) for rows in kept])
    errors = (without - without.mean(0)).square().sum(0).mul((len(sizes) - 1) / len(sizes)).sqrt()
    estimates = [SampleMean(*pair) for pair in zip(whole.tolist(), errors.tolist(), strict=True)]
    return Summary(*estimates)


def _block_means(
    matrix: Gram, label: Int[Tensor, " n"], sizes: Int[Tensor, " tasks"]
) -> Float[Tensor, "tasks tasks"]:
    """Return the mean over the pairs of gradients of each pair of tasks.

    On the diagonal the pairs are of different gradients of one task.
    """
    indicator = F.one_hot(label).to(matrix)
    sums = indicator.T @ (matrix - matrix.diagonal().diag()) @ indicator
    return sums / (torch.outer(sizes, sizes) - sizes.diag())


def _statistics(means: Float[Tensor, "tasks tasks"]) -> Float[Tensor, " 3"]:
    """Return the means within and between tasks, and their difference."""
    tasks = len(means)
    within = means.diagonal().mean()
    between = (means.sum() - means.diagonal().sum()) / (tasks * (tasks - 1))
    return torch.stack([within, between, within - between])


def _gram(row: Callable[[int], Vector], n: int, like: Vector, max_bytes: int) -> Gram:
    """Return the Gram matrix of n rows, in blocks of as many rows as fit twice into max_bytes."""
    size = max_bytes // (2 * like.numel() * like.element_size())
    if size < 1:
        raise ValueError(
            "max_bytes: expected room for two gradients, "
            f"{2 * like.numel() * like.element_size()}, found {max_bytes}"
        )
    blocks = [range(n)[start : start + size] for start in range(0, n, size)]

    def rows(block: range) -> Float[Tensor, "b P"]:
        out = like.new_empty(len(block), like.numel())
        for target, index in zip(out, block, strict=True):
            target.copy_(row(index))
        return out

    gram = like.new_empty(n, n)
    for position, block in enumerate(blocks):
        own = rows(block)
        _place(gram, block, block, own @ own.T)
        for later in blocks[position + 1 :]:
            product = own @ rows(later).T
            _place(gram, block, later, product)
            _place(gram, later, block, product.T)
    return gram


def _place(gram: Gram, rows: range, columns: range, product: Tensor) -> None:
    gram[rows.start : rows.stop, columns.start : columns.stop] = product
