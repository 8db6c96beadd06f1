"""Job: a training run to be done, with its configuration, data, file and how far it goes.

A run's `key` is made of all that decides its bits. How far it goes, what is kept on the way and how
it is evaluated are not part of the key. So a run that is asked for more goes on from where its file
stands.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from reptile_core import datasets, native
from reptile_core.datasets.split import Split, SplitKind, split_characters, split_images
from reptile_core.tasks import ImagePool
from reptile_core.training import Run

DEVICES = "cpu", "cuda", "cuda-tf32"  # as users call them: the last multiplies matrices in TF32

# Increased whenever the same configuration would give other bits than before, so that old files
# are not taken for new ones.
NUMERICS_VERSION = 5

# What error messages call a difference in each part of a key.
KEY_PARTS_IN_WORDS = {
    "run": "another configuration",
    "data": "other data",
    "device": "another device",
    "numerics": "another version",
    "native": "other arithmetic (compiled or not)",
}


@dataclass(frozen=True)
class Source:
    """Where a worker finds the data, and how they are split.

    name, directory: as `datasets.load` takes them.
    content: the digest of the data that it must then find.
    real: False for data that only stand in for the real ones of that name.
    split: how characters are split.
    """

    name: str
    directory: Path | None
    content: str
    real: bool = True
    split: SplitKind = "seed"

    @property
    def identity(self) -> str:
        """Digest of what is trained and tested on."""
        return self.content + f", split: {self.split}" * (self.split != "seed")


@dataclass(frozen=True)
class Job:
    """One run, its data, the folder of its file, and its name in tables.

    until: the iteration at which it ends, a prefix of its schedule; None for all of it.
    keep: further iterations at which phi is kept.
    trained_on: one of DEVICES where the run was trained on another device than this one, and is
        only read here; None for this device.
    """

    run: Run
    source: Source
    folder: Path
    variant: str
    device: str = "cpu"
    tf32: bool = False
    fresh: bool = False
    until: int | None = None
    keep: tuple[int, ...] = ()
    trained_on: str | None = None

    def __post_init__(self) -> None:
        for name, iterations in (("until", (self.end,)), ("keep", self.keep)):
            for iteration in iterations:
                if not 0 <= iteration <= self.run.iterations:
                    raise ValueError(
                        f"{name}: expected 0 to {self.run.iterations} iterations, found {iteration}"
                    )

    @property
    def end(self) -> int:
        """The iteration at which the job ends."""
        return self.run.iterations if self.until is None else self.until

    @property
    def wanted(self) -> tuple[int, ...]:
        """The iterations at which phi must be kept, in order; the last is the end."""
        before_the_end = {iteration for iteration in self.keep if 0 < iteration < self.end}
        return tuple(sorted(before_the_end | {self.end}))

    @property
    def decisive(self) -> dict[str, Any]:
        """Everything that decides the bits: configuration, data, device type, rounding of sums."""
        return {
            "run": self.run.record(),
            "data": self.source.identity,
            "device": self.trained_on or torch.device(self.device).type + "-tf32" * self.tf32,
            "numerics": NUMERICS_VERSION,
            "native": native.library() is not None,
        }

    @property
    def key(self) -> str:
        """Digest of all that is decisive."""
        return record_digest(self.decisive)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.key}.safetensors"

    @property
    def images(self) -> int:
        """Images in all gradients of training, up to the end: the unit of progress and of cost."""
        return self.end * self.images_an_iteration

    @property
    def images_an_iteration(self) -> int:
        """Images in the gradients of one iteration.

        MAML also takes k - 1 Hessian-vector products for a task. An image in one counts as two.
        """
        sampling = self.run.sampling
        products = sampling.steps - 1 if self.run.weights == "maml" else 0
        return self.run.meta_batch * sampling.batch * (sampling.steps + 2 * products)

    def pool(self, part: Literal["train", "test"], dtype: torch.dtype | None = None) -> ImagePool:
        """Return the images of the classes that the run trains on or is tested on.

        dtype: None for the run's own.
        """
        split = split_of(self.source, self.run.seed)
        return ImagePool(
            getattr(split, part).to(self.device), dtype or self.run.torch_dtype, split.white
        )


def record_digest(record: Any) -> str:
    """Return a short digest (20 hex digits) of a record that JSON can hold."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:20]


def find(name: str, directory: Path | None, *, quiet: bool) -> Source:
    """Return the source of the data with this name.

    They are found in `directory` or where `datasets.load` looks. Raises DataError, with the reason,
    where they cannot be had.
    """
    try:
        images = datasets.load(name, data=directory, quiet=quiet)  # type: ignore[call-overload]
    except datasets.DataError:
        if directory is None:
            raise
        return find(name, None, quiet=quiet)  # the directory may have been named for other data
    return Source(name, directory, images.content, images.real)


@lru_cache(maxsize=1)
def _images(source: Source) -> datasets.Characters | datasets.ColourImages:
    images = datasets.load(source.name, data=source.directory, quiet=True)  # type: ignore[call-overload]
    if images.content != source.content:
        raise datasets.DataError(
            f"data: expected the content {source.content[:12]} that this run began with, found "
            "another"
        )
    return images


@lru_cache(maxsize=1)
def split_of(source: Source, seed: int) -> Split:
    """Return the split of a source's characters by seed, or of its photographs as published.

    It is cached for the next run of this process that asks for it.
    """
    images = _images(source)
    if isinstance(images, datasets.ColourImages):
        return split_images(images)
    return split_characters(images.images, seed=seed, kind=source.split)
