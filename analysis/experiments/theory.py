"""Every theorem of the ledger, checked on smooth losses in float64.

Each check has a wrong formula that must fail. A check gives rows (claim, case, role, value, data)
for the ledger; rate tests also give the remainders behind their slopes. `checks` lists them as
small independent pieces, which go to worker processes. What a piece has found is kept as a file, so
that an interrupted run loses none of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import analysis.theory
import reptile_core
from analysis.experiments.shared.experiment import Context, Experiment, Result
from analysis.experiments.theory_claims import CLAIMS, K_MAX
from analysis.experiments.theory_equalities import (
    expected_maml_gradient,
    expected_sums,
    identities,
    joint_training,
    solution_manifolds,
)
from analysis.experiments.theory_rates import (
    Rate,
    any_order_rates,
    gradient_rates,
    rate_rows,
    sgd_rates,
    update_rates,
)
from analysis.results.claims import PROFILES
from analysis.results.tables import in_one_table
from analysis.runs.job import Source, record_digest, split_of
from analysis.runs.workers import Progress
from analysis.theory.losses import FLOAT, SMALL_POOLS, Pool, omniglot_softplus
from reptile_core.files import write_atomically
from reptile_core.tasks import ImagePool

NAME = "theory"
OMNIGLOT, MANIFOLDS = "omniglot", "solution manifolds"
# What the losses of each pool are made of, in words. For those on images, see `data_of`.
DATA = {
    "quadratic": "quadratic losses, float64",
    "cubic": "cubic losses, float64",
    "tanh network": "small tanh network, float64",
    "": "affine solution manifolds, float64",
}
# Called with the pool, the piece's k and the most steps of a sum.
IDENTITIES: dict[str, Callable[[Pool, int, int], Iterator[dict[str, Any]]]] = {
    "identities": lambda pool, *_: identities(pool),
    "expected sums": lambda pool, _, k_max: expected_sums(pool, k_max=k_max),
    "expected MAML": lambda pool, k, _: expected_maml_gradient(pool, k),
    "joint training": lambda pool, *_: joint_training(pool),
}
RATES: dict[str, Callable[[Pool, int], Iterator[Rate]]] = {
    "gradients": lambda pool, _: gradient_rates(pool),
    "updates": lambda pool, k: update_rates(pool, k),
    "any order": lambda pool, _: any_order_rates(pool),
    "sgd": lambda pool, _: sgd_rates(pool),
}
Rows = list[dict[str, Any]]
Found = tuple[Rows, Rows]  # for the ledger, and the remainders of rate tests


@dataclass(frozen=True)
class Check:
    """One piece of work: which check, on which pool, for which k (0 where there is none)."""

    name: str
    pool: str = ""
    k: int = 0


def checks() -> list[Check]:
    """Return all pieces, longest first.

    Those on the paper's own network come before those on small losses.
    """
    ks = range(K_MAX, 1, -1)
    pieces = [Check("expected MAML", OMNIGLOT, k) for k in ks]
    on_omniglot = "sgd", "any order", "expected sums", "gradients", "identities"
    pieces += [Check(name, OMNIGLOT) for name in on_omniglot]
    pieces += [*(Check("updates", OMNIGLOT, k) for k in ks), Check("joint training", OMNIGLOT)]
    for pool in ("tanh network", "cubic"):
        pieces += [Check("expected sums", pool), *(Check("expected MAML", pool, k) for k in ks)]
    pieces += [Check("sgd", "tanh network"), Check("any order", "tanh network")]
    for pool in SMALL_POOLS:
        pieces += [Check(name, pool) for name in ("gradients", "identities", "joint training")]
        pieces += [Check("updates", pool, k) for k in ks]
    return [*pieces, Check(MANIFOLDS)]


def run_check(check: Check, progress: Progress, *, source: Source, k_max: int = K_MAX) -> Found:
    """Return what one piece finds.

    The pool "omniglot" is drawn from the training classes of the source's split for seed 0.

    k_max: the most steps of the sums in "expected sums".
    """
    rows: Rows = []
    points: Rows = []
    if check.name == MANIFOLDS:
        rows = list(solution_manifolds())
    else:
        pool = pool_of(check, source)
        if check.name in IDENTITIES:
            rows = list(IDENTITIES[check.name](pool, check.k, k_max))
        else:
            for rate in RATES[check.name](pool, check.k):
                row, points_of_rate = rate_rows(rate, pool)
                rows.append(row)
                points += points_of_rate
    progress(1)
    data = data_of(check, source)
    return [row | {"data": data} for row in rows], points


def pool_of(check: Check, source: Source) -> Pool:
    if check.pool != OMNIGLOT:
        return SMALL_POOLS[check.pool]()
    return omniglot_softplus(ImagePool(split_of(source, seed=0).train, FLOAT))


def data_of(check: Check, source: Source) -> str:
    """Return the data of a piece in words: the script's images, or losses of its own."""
    if check.pool != OMNIGLOT:
        return DATA[check.pool]
    minibatches = "real minibatches" if source.real else f"minibatches of {source.name}"
    return f"Omniglot network with softplus, {minibatches}"


def run_or_read(
    check: Check, progress: Progress, *, source: Source, folder: Path, fresh: bool
) -> Found:
    """Return what one piece finds, read from its file in `folder` if it is there.

    fresh: True to compute it whatever is there.
    """
    path = folder / f"{key(check, source)}.json"
    found = None if fresh else _read(path)
    if found is None:
        found = run_check(check, progress, source=source)
        write_atomically(path, json.dumps(found).encode())
    else:
        progress(1, there=True)
    return found


def key(check: Check, source: Source) -> str:
    """Return the digest of all that decides what a piece finds.

    That is the piece itself, the code, PyTorch's version, and the images where it has some.
    """
    data = source.identity if check.pool == OMNIGLOT else ""
    return record_digest(
        {"check": asdict(check), "data": data, "code": code(), "torch": torch.__version__}
    )


@cache
def code() -> str:
    """Return the SHA-256 of all Python files of the checks, the theory and the core."""
    folders = [Path(path) for path in (*analysis.theory.__path__, *reptile_core.__path__)]
    patterns = [(Path(__file__).parent, "theory*.py"), *((folder, "**/*.py") for folder in folders)]
    found = hashlib.sha256()
    for folder, pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            found.update(f"\n{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _read(path: Path) -> Found | None:
    """Return what a file holds; None where there is none or it holds something else.

    The piece is then done again.
    """
    try:
        rows, points = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return rows, points


def run(context: Context) -> Result:
    """Check every theorem on smooth losses."""
    work = partial(
        run_or_read, source=context.source, folder=context.runs / "checks", fresh=context.fresh
    )
    results = context.workers.map(NAME, work, checks(), unit=" checks")
    rows = in_one_table(found for found, _ in results)
    points = in_one_table(remainders for _, remainders in results)
    data = ("small smooth losses in float64", context.source.name)
    return Result(
        {NAME: rows, "remainders": points},
        rows[["claim", "case", "role", "value", "data"]],
        data=data,
    )


EXPERIMENT = Experiment(
    name=NAME,
    shows=(
        "section 5: every theorem judged by rate tests and exact enumeration, each with a wrong "
        "formula"
    ),
    takes=dict.fromkeys(PROFILES, "about a minute and a half"),
    claims=CLAIMS,
    settings=lambda _: {"checks": len(checks()), "steps_up_to": K_MAX, "dtype": "float64"},
    run=run,
    # Its theorems hold on any images: the Omniglot network's minibatches may be of the stand-in.
    fetches=False,
)
