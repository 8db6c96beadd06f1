"""More seeds for one claim alone: `--seeds-for faster-than-maml=31`.

Only the runs that the claim compares are trained from these seeds. All others keep the number of
seeds of the experiment.
"""

from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from analysis.experiments.shared.experiment import Context


def parse(text: str) -> tuple[str, int]:
    """Return the claim and the number of seeds that "CLAIM=N" names.

    Raises ArgumentTypeError where the text names none.
    """
    claim, _, number = text.partition("=")
    if not claim or not number.isdecimal():
        raise ArgumentTypeError(f"expected CLAIM=N, such as faster-than-maml=31, found {text!r}")
    return claim, int(number)


def as_text(claim: str, seeds: int) -> str:
    """Return the text from which `parse` makes the two."""
    return f"{claim}={seeds}"


def seeds_of_runs(
    context: Context, count: int, names: Iterable[str], compares: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    """Return the seeds of each run, by its name.

    count: seeds of the profile, as in `Context.seeds_of`.
    compares: names of the runs that a claim compares, by the claim's id.
    """
    found = dict.fromkeys(names, context.seeds_of(count))
    for claim, more in context.options.get("seeds_for", {}).items():
        seeds = replace(context, seeds=more).seeds_of(more)
        for name in compares.get(claim, ()):
            found[name] = max(found[name], seeds, key=len)
    return found


def seed_by_seed(seeds: Mapping[str, Sequence[int]]) -> list[tuple[int, str]]:
    """Return each seed with the name of each run that has it, seed by seed."""
    found = []
    for seed in max(seeds.values(), key=len):
        found += [(seed, name) for name, mine in seeds.items() if seed in mine]
    return found


def in_settings(seeds: Mapping[str, Sequence[int]], count: int) -> dict[str, dict[str, int]]:
    """Return the settings entry "seeds_of": how many seeds runs have, where it is not `count`.

    It is left out where all runs have as many.
    """
    more = {name: len(mine) for name, mine in seeds.items() if len(mine) != count}
    return {"seeds_of": more} if more else {}
