"""Counter-based random numbers: Philox-4x32-10.

The reference is Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A number is a
pure function of its address (seed, purpose, iteration, task, index). Nothing is carried from one
draw to the next. So any device, any number of workers and any resumed run get the same tasks, in
whatever order they ask. Only integer tensor operations are used, which are exact on every device.
"""

from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # the published constants of Philox-4x32
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


class Purpose(IntEnum):
    """The purpose of a stream of numbers; streams of different purposes never share a number."""

    TRAINING = 0
    EVALUATION = 1
    SPLIT = 2
    INITIALIZATION = 3
    ANALYSIS = 4


def _multiply(a: int, b: Int[Tensor, "*n"]) -> tuple[Int[Tensor, "*n"], Int[Tensor, "*n"]]:
    """Return the high and low 32 bits of a·b.

    It multiplies 16-bit halves, as the full product could overflow a signed 64-bit integer.
    """
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & MASK


def philox(
    key: tuple[int | Tensor, int | Tensor], counter: Int[Tensor, "*n 4"]
) -> Int[Tensor, "*n 4"]:
    """Encrypt 128-bit counters into random bits.

    key: 64 bits in two words, one key for all counters or one for each.
    counter: four words in [0, 2^32) each.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return torch.stack([c0, c1, c2, c3], -1)


def bits(
    seed: int | Int[Tensor, "*n"],
    purpose: Purpose,
    count: int,
    *,
    iteration: Int[Tensor, "*n"] | int = 0,
    task: Int[Tensor, "*n"] | int = 0,
) -> Int[Tensor, "*n count"]:
    """Return `count` random integers in [0, 2^32) at each address (iteration, task).

    seed: one for all addresses, or one for each.
    iteration, task: in [0, 2^32).
    """
    address = torch.as_tensor(iteration), torch.as_tensor(task)
    if isinstance(seed, Tensor):
        iterations, tasks, seeds = torch.broadcast_tensors(*address, seed)
        seed = seeds.unsqueeze(-1)
    else:
        iterations, tasks = torch.broadcast_tensors(*address)
    block = torch.arange(-(-count // 4), device=iterations.device)
    constant = torch.tensor(int(purpose), device=iterations.device)
    words = torch.broadcast_tensors(block, tasks.unsqueeze(-1), iterations.unsqueeze(-1), constant)
    counter = torch.stack(words, -1)
    return philox((seed & MASK, (seed >> 32) & MASK), counter).flatten(-2)[..., :count]


def uniform(
    seed: int,
    purpose: Purpose,
    count: int,
    *,
    iteration: Int[Tensor, "*n"] | int = 0,
    task: Int[Tensor, "*n"] | int = 0,
) -> Float[Tensor, "*n count"]:
    """Return `count` float64 numbers in the open interval (0, 1) at each address.

    They are the centres of bins of width 2^-32.
    """
    return (bits(seed, purpose, count, iteration=iteration, task=task).double() + 0.5) * 2.0**-32


def permutations(keys: Int[Tensor, "*n m"]) -> Int[Tensor, "*n m"]:
    """Return a uniformly random order of 0 … m-1 for each row of random bits.

    A tie, one in 2^32, keeps the order of the indices.
    """
    return torch.sort(keys, dim=-1, stable=True).indices


def distinct(keys: Int[Tensor, "*n m"], population: int) -> Int[Tensor, "*n m"]:
    """Return m distinct integers of [0, population) for each row of random bits.

    Every ordered choice is equally likely. It draws r_i from [0, population - i), then steps over
    the earlier picks. With these in rising order, each pick at or below the value moves it up by
    one. The cost is O(m²), independent of the population.
    """
    if not 0 <= keys.shape[-1] <= population:
        raise ValueError(
            f"population: expected at least {keys.shape[-1]} to choose from, found {population}"
        )
    taken: list[Tensor] = []  # rising, per row
    picks: list[Tensor] = []
    for i, key in enumerate(keys.unbind(-1)):
        value = (key * (population - i)) >> 32
        for earlier in taken:
            value = value + (earlier <= value)
        picks.append(value)
        taken = list(torch.stack([*taken, value]).sort(0).values.unbind(0))
    return torch.stack(picks, -1) if picks else keys
