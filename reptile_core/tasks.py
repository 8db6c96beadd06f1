"""The task stream: which images are in each minibatch of each task.

It is a pure function of (seed, iteration, task). A task is n_way classes with some shots of each,
cut into k minibatches as in the authors' code. The results are indices, drawn for many tasks at
once. The images that they point at may be on any device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from reptile_core import philox
from reptile_core.losses import Minibatch
from reptile_core.philox import Purpose, distinct, permutations

# Iterations whose indices are drawn together: the cost per task falls until about here. The keys of
# a block take 8 MB on Mini-ImageNet, the largest of the benchmarks.
BLOCK = 64


@dataclass(frozen=True)
class Sampling:
    """How a task is cut into minibatches.

    shots: examples per class that the inner loop learns from.
    batch, steps: size and number k of its minibatches.
    replacement: True draws each minibatch from all the shots, without repeats inside it.
        False cycles through reshuffled epochs, where a partial minibatch carries over into
        the next epoch.
    tail_shots: examples per class set aside for the last minibatch (FOMAML's separate tail);
        0 for none.
    """

    n_way: int
    shots: int
    batch: int
    steps: int
    replacement: bool = False
    tail_shots: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (
            ("n_way", 2),
            ("shots", 1),
            ("batch", 1),
            ("steps", 1),
            ("tail_shots", 0),
        ):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, found {getattr(self, name)}")
        if self.tail_shots >= self.shots:
            raise ValueError(
                f"tail_shots: expected fewer than the {self.shots} shots, found {self.tail_shots}"
            )
        if self.replacement and self.batch > self.pool:
            raise ValueError(
                f"batch: expected at most the {self.pool} examples of a task when drawn with "
                f"replacement, found {self.batch}"
            )

    @property
    def pool(self) -> int:
        """The number of examples that the minibatches before the tail are drawn from."""
        return self.n_way * (self.shots - self.tail_shots)


@dataclass(frozen=True)
class Examples:
    """Indices into a pool of images, and labels in [0, n_way): both (*tasks, count)."""

    index: Int[Tensor, "*tasks count"]
    label: Int[Tensor, "*tasks count"]

    def take(self, order: Int[Tensor, "*tasks m"]) -> "Examples":
        return Examples(self.index.gather(-1, order), self.label.gather(-1, order))

    def __getitem__(self, task: int | slice) -> "Examples":
        return Examples(self.index[task], self.label[task])


@dataclass(frozen=True)
class Tasks:
    """Tasks as indices.

    minibatches: the k minibatches to learn from.
    support: the examples that these are drawn from.
    test: the test examples.
    """

    minibatches: tuple[Examples, ...]
    support: Examples
    test: Examples

    def __getitem__(self, task: int | slice) -> "Tasks":
        return Tasks(
            tuple(batch[task] for batch in self.minibatches), self.support[task], self.test[task]
        )


@dataclass(frozen=True)
class ImagePool:
    """Images by class on the training device; the network gets byte / white.

    images: bytes, or numbers of any floating-point type; a NumPy array becomes a tensor.
    white: the byte that goes in as 1.0: 1 for drawings of ink and paper, 255 for photographs.
    """

    images: UInt8[Tensor, "classes drawings *shape"]
    dtype: torch.dtype = torch.float32
    white: int = 1

    def __post_init__(self) -> None:
        images = self.images
        if isinstance(images, np.ndarray):
            images = _as_tensor(images)
            object.__setattr__(self, "images", images)
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images: expected a tensor or a NumPy array, found {type(images).__name__}"
            )
        if images.dtype not in (torch.uint8, torch.bool) and not images.is_floating_point():
            raise TypeError(
                f"images: expected bytes (uint8) or floating-point numbers, found {images.dtype}"
            )
        if images.ndim < 3:
            raise ValueError(
                "images: expected (classes, examples, *shape of one), found shape "
                f"{tuple(images.shape)}"
            )
        if self.white <= 0:
            raise ValueError(f"white: expected a number above 0, found {self.white}")
        if images.dtype == torch.uint8 and self.white < 255 and not images.is_meta:
            brightest = int(images.max()) if images.numel() else 0
            if brightest > self.white:
                raise ValueError(
                    f"white: expected at least {brightest}, the largest byte of the images, found "
                    f"{self.white}"
                )

    @property
    def classes(self) -> int:
        return self.images.shape[0]

    @property
    def drawings(self) -> int:
        return self.images.shape[1]

    def minibatch(self, examples: Examples) -> Minibatch:
        """Return the images and labels of examples.

        The index (*tasks, batch) becomes x (*tasks, batch, *shape) in `dtype`, in [0, 1].
        """
        device = self.images.device
        x = self.images.flatten(0, 1)[examples.index.to(device)].to(self.dtype).div_(self.white)
        return Minibatch(x, examples.label.to(device))

    def sample(
        self,
        sampling: Sampling,
        *,
        seed: int | Int[Tensor, "*tasks"],
        purpose: Purpose,
        iteration: Int[Tensor, "*tasks"] | int,
        task: Int[Tensor, "*tasks"] | int,
        test_shots: int = 0,
    ) -> "Tasks":
        """Draw `sample_tasks` from these classes and drawings.

        Raises ValueError where they do not suffice.
        """
        self.check(sampling, test_shots)
        return sample_tasks(
            sampling,
            classes=self.classes,
            drawings=self.drawings,
            seed=seed,
            purpose=purpose,
            iteration=iteration,
            task=task,
            test_shots=test_shots,
        )

    def check(self, sampling: Sampling, test_shots: int = 0) -> None:
        """Raise ValueError where there are too few classes or drawings for such tasks."""
        if sampling.n_way > self.classes:
            raise ValueError(
                f"n_way: expected at most the {self.classes} classes there are, found "
                f"{sampling.n_way}"
            )
        if sampling.shots + test_shots > self.drawings:
            raise ValueError(
                (
                    f"shots: expected at most {self.drawings - test_shots} (a class has "
                    f"{self.drawings} drawings"
                )
                + (f", {test_shots} of them kept for testing" if test_shots else "")
                + f"), found {sampling.shots}"
            )


def _as_tensor(images: np.ndarray) -> Tensor:
    largest = 8 if images.dtype.kind == "f" else 1
    if images.dtype.kind not in "fbu" or images.dtype.itemsize > largest:
        raise TypeError(
            f"images: expected bytes (uint8) or floating-point numbers, found {images.dtype}"
        )
    return torch.from_numpy(np.require(images, requirements=["C", "W"]))


def sample_tasks(
    sampling: Sampling,
    *,
    classes: int,
    drawings: int,
    seed: int | Int[Tensor, "*tasks"],
    purpose: Purpose,
    iteration: Int[Tensor, "*tasks"] | int,
    task: Int[Tensor, "*tasks"] | int,
    test_shots: int = 0,
) -> Tasks:
    """Return the tasks at the addresses (iteration, task).

    A task is the same whatever else is asked for, in whatever order or place. Every number that it
    needs comes from one stretch of the counter-based stream: n_way keys for its classes, one per
    class and drawing for its examples, one per example and epoch (or minibatch) for their order.
    """
    n, pool = sampling.n_way, sampling.pool
    body_steps = sampling.steps - bool(sampling.tail_shots)
    orders = body_steps if sampling.replacement else -(-body_steps * sampling.batch // pool)
    count = n + n * drawings + orders * pool
    keys = philox.bits(seed, purpose, count, iteration=iteration, task=task)
    for_classes, for_drawings, for_orders = keys.split([n, n * drawings, orders * pool], -1)

    chosen = distinct(for_classes, classes)
    drawn = permutations(for_drawings.unflatten(-1, (n, drawings)))[
        ..., : sampling.shots + test_shots
    ]
    index = chosen.unsqueeze(-1) * drawings + drawn
    label = torch.arange(n, device=index.device).unsqueeze(-1).expand_as(index)

    def examples(part: slice) -> Examples:
        return Examples(index[..., part].flatten(-2), label[..., part].flatten(-2))

    tail_end = test_shots + sampling.tail_shots
    support, body = examples(slice(test_shots, None)), examples(slice(tail_end, None))
    order = permutations(for_orders.unflatten(-1, (orders, pool)))
    if sampling.replacement:
        order = order[..., : sampling.batch]
    ordered = body.take(order.flatten(-2)[..., : body_steps * sampling.batch])
    cuts = [slice(i * sampling.batch, (i + 1) * sampling.batch) for i in range(body_steps)]
    minibatches = tuple(Examples(ordered.index[..., cut], ordered.label[..., cut]) for cut in cuts)
    if sampling.tail_shots:
        minibatches += (examples(slice(test_shots, tail_end)),)
    return Tasks(minibatches, support, examples(slice(0, test_shots)))


def training_stream(
    sampling: Sampling,
    pool: ImagePool,
    *,
    seed: int | Int[Tensor, " lanes"],
    iterations: range,
    meta_batch: int,
    device: torch.device | str = "cpu",
) -> Iterator[Tasks]:
    """Yield the meta-batch of tasks of each iteration.

    Its shape is (meta_batch, …), or (meta_batch, lanes, …) for many seeds. Tasks are drawn in
    blocks, on the device where they are needed, which changes no bit.
    """
    lanes = [1] * seed.ndim if isinstance(seed, Tensor) else []
    task = torch.arange(meta_batch, device=device).view(-1, *lanes)
    for start in range(iterations.start, iterations.stop, BLOCK):
        stop = min(start + BLOCK, iterations.stop)
        iteration = torch.arange(start, stop, device=device).view(-1, 1, *lanes)
        block = pool.sample(
            sampling, seed=seed, purpose=Purpose.TRAINING, iteration=iteration, task=task
        )
        for row in range(stop - start):
            yield block[row]
