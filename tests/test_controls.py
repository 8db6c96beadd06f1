"""The controls of all experimental claims, on simulated tables: each must be informative.

A simulation gives every arm of an experiment (a method, a treatment, a cell of a table) a level.
Each seed and task misses that level by chance.
Arms are independent of each other, except for one deviation that a seed adds to all of them.
The experiment's own `evidence` makes rows of these numbers.
A control is void if it is constant, if it is a function of its check, of other seeds than its own
or of their number, or if it is deaf to the data.
In a world where treatment and control do the same thing, as the claim asks, hardly any claim may
be supported: only the control stands in its way.

Void controls are planted as well, for every claim, to see that each is found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import log
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jaxtyping import Float
from scipy.stats import rankdata

from analysis.experiments import (
    ablation,
    few_shot,
    inner_products,
    outer,
    overlap,
    rho,
    sgd,
    sine,
    sine_waves,
    splits,
    validity,
    variance,
)  # fmt: skip
from analysis.experiments.few_shot_cells import UNTRAINED
from analysis.experiments.inner_products_claims import RISES, RISES_LAST, STEP
from analysis.experiments.registry import EXPERIMENTS
from analysis.experiments.shared.curves import Curves
from analysis.experiments.shared.experiment import EPOCH
from analysis.paper.benchmarks import BENCHMARKS, PUBLISHED
from analysis.results.claims import SEEDS_OF_AN_EPOCH, Claim, seeds
from analysis.results.error_rates import CONTROL_ERROR, LEAST_SEEDS
from analysis.results.evidence import CHECK, CONTROL, tabulate
from analysis.results.judge import decide
from analysis.results.samples import Sample, paired
from analysis.results.verdict import SUPPORTED
from reptile_core.meta_gradients import average, last, sum_of

Arm = tuple[Any, ...]
Levels = Mapping[Arm, float]

ROUND_OFF = 1e-9  # float64, a few hundred operations on numbers below 10
TASKS = 4
POPULATIONS, FEW, MANY, DRAWS = 60, LEAST_SEEDS, 20, 6
# A table holds IN_A_TABLE simulations, as an epoch has a thousand seeds.
SIMULATIONS, IN_A_TABLE = 300, 150
# The judge lets 2.5 % of sham foils through; four standard errors of a rate of 3 % are added.
MAX_SUPPORTED = 0.03 + 4 * (0.03 * 0.97 / SIMULATIONS) ** 0.5
# The limit for the F ratio, the variance between populations over that within them. With 59 and 60
# degrees of freedom, chance exceeds it in 0.001 % of cases.
LEAST_ANSWER = 3.1
FIRST_SEEDS = seeds(EPOCH, FEW)
ALL_RUNS = seeds(EPOCH, SEEDS_OF_AN_EPOCH)[-1]  # the seed of a value that all runs share
EXPERIMENTAL = {
    claim.id: (name, claim)
    for name, experiment in EXPERIMENTS.items()
    for claim in experiment.claims
    if claim.kind == "experiment"
}


# ---- worlds


@dataclass(frozen=True)
class World:
    """The value of every arm in each seed and task; seeds are the first ones of an epoch."""

    arms: tuple[Arm, ...]
    values: Float[np.ndarray, "arms seeds tasks"]

    @property
    def seeds(self) -> list[int]:
        return seeds(EPOCH, self.values.shape[1])

    def first(self, count: int) -> "World":
        """Return the world cut to its first `count` seeds."""
        return World(self.arms, self.values[:, :count])

    def part(self, kind: str) -> "World":
        """Return the arms whose names begin with `kind`, under the rest of their names."""
        chosen = [index for index, arm in enumerate(self.arms) if arm[0] == kind]
        return World(tuple(self.arms[index][1:] for index in chosen), self.values[chosen])

    def by_task(self, *names: str) -> pd.DataFrame:
        """Return a row for each arm, seed and task.

        Columns: `names` (parts of the arm's name), seed, task, value.
        """
        arms, count, tasks = self.values.shape
        found = {
            name: np.repeat([arm[i] for arm in self.arms], count * tasks)
            for i, name in enumerate(names)
        }
        found["seed"] = np.tile(np.repeat(self.seeds, tasks), arms)
        found["task"] = np.tile(np.arange(tasks), arms * count)
        return pd.DataFrame(found | {"value": self.values.ravel()})

    def table(self, *names: str) -> pd.DataFrame:
        """Return a row for each arm and seed, with the mean over tasks.

        Columns: `names`, seed, value, standard_error, count.
        """
        arms, count, tasks = self.values.shape
        found = {
            name: np.repeat([arm[i] for arm in self.arms], count) for i, name in enumerate(names)
        }
        found["seed"] = np.tile(self.seeds, arms)
        found["value"] = self.values.mean(-1).ravel()
        found["standard_error"] = self.values.std(-1, ddof=1).ravel() / tasks**0.5
        return pd.DataFrame(found).assign(count=tasks)

    def curves(self) -> Curves:
        """Return accuracies as curves, for arms named (variant, iteration)."""
        accuracy = {
            (variant, seed, iteration): values
            for (variant, iteration), of_arm in zip(self.arms, self.values, strict=True)
            for seed, values in zip(self.seeds, of_arm, strict=True)
        }
        return Curves(accuracy, {}, 1, {})


@dataclass(frozen=True)
class Simulation:
    """An experiment's evidence of a world, and worlds that test its claims.

    alike: for groups of claims, the levels of a world in which check and control measure the same
        thing, well inside the band.
    noise: standard deviation of a seed and of a task.
    spread: standard deviation of the levels over populations.
    """

    evidence: Callable[[World], pd.DataFrame]
    alike: Mapping[tuple[str, ...], Levels]
    noise: float = 0.005
    spread: float = 0.1

    @property
    def levels(self) -> Levels:
        """The levels of the first of the worlds, as one population."""
        return next(iter(self.alike.values()))

    def world(self, rng: np.random.Generator, levels: Levels, count: int) -> World:
        """Draw a world of `count` seeds from one population."""
        return self._around(rng, tuple(levels), np.array(list(levels.values()))[:, None], count)

    def populations(self, rng: np.random.Generator, count: int, seeds_of_each: int) -> World:
        """Draw a world of `count` populations, each of `seeds_of_each` seeds in a row.

        The levels of the populations are independent of each other.
        """
        centre = np.array(list(self.levels.values()))[:, None]
        centre = centre + self.spread * rng.normal(size=(len(centre), count))
        return self._around(
            rng, tuple(self.levels), centre.repeat(seeds_of_each, axis=1), count * seeds_of_each
        )

    def _around(
        self, rng: np.random.Generator, arms: tuple[Arm, ...], centre: np.ndarray, count: int
    ) -> World:
        common, own = rng.normal(size=(1, count, 1)), rng.normal(size=(len(arms), count, 1))
        tasks = rng.normal(size=(len(arms), count, TASKS))
        return World(arms, centre[..., None] + self.noise * (common + own + tasks))


# ---- simulations


def _levels(arms: Sequence[Arm], level: float, others: Mapping[Any, float] | None = None) -> Levels:
    """Return the level of every arm; `others` holds exceptions by the first part of its name."""
    return {arm: (others or {}).get(arm[0], level) for arm in arms}


def _ablation() -> Simulation:
    looks = (5_000, 40_000)
    names = [variant.name for variant in ablation.variants("quick")]
    g1, g2, g4, sum_2, sum_4 = (v.name for v in (last(1), last(2), last(4), sum_of(2), sum_of(4)))
    arms = [*((name, n) for name in names for n in looks), (g1, 0), (g2, 0)]
    return Simulation(
        lambda world: tabulate(ablation.evidence(world.curves(), looks)),
        {
            (
                "ablation-g1", "ablation-g2-beats-sum", "ablation-more-is-better",
                "ablation-more-is-better-averages", "ablation-sums-gain-more",
            ): _levels(arms, 0.8, {sum_2: 0.7, average(2).name: 0.7}),
            ("ablation-more-is-better-last",): _levels(arms, 0.7, {g1: 0.8, g4: 0.8, sum_4: 0.8}),
        },
    )  # fmt: skip


def _outer() -> Simulation:
    look = 300
    levels = {(method, look): 0.7 if method == outer.MAML else 0.8 for method in outer.METHODS}
    return Simulation(
        lambda world: tabulate(outer.evidence(world.curves(), [look])),
        {tuple(claim.id for claim in outer.CLAIMS): levels},
        noise=0.003,
    )


def _overlap() -> Simulation:
    """Return accuracies in which overlap gains five points.

    A shared tail costs five points everywhere.
    """
    grid, look = overlap.Grid(steps=(4, 8), batch=(25, 50)), 100
    levels = {
        (point.run_name(method), look): 0.75 + 0.05 * point.overlaps - 0.05 * _shared(method)
        for method, point in overlap.cases(grid)
    }
    return Simulation(
        lambda world: tabulate(overlap.evidence(grid, world.curves(), look)),
        {("overlap-tail", "overlap-others"): levels},
    )


def _shared(method: overlap.Method) -> bool:
    return not method.reptile and not method.separate_tail


def _rho() -> Simulation:
    """Return accuracies whose every contrast is 0.04.

    The contrasts of sums that theory cannot tell apart are 0.04 too.
    """
    look = 50
    levels = {
        "average": 0.78, "small rho": 0.70, "large rho": 0.74, "as far, +": 0.78, "as far, -": 0.74,
        "first axis, +": 0.77, "first axis, -": 0.75, "second axis, +": 0.72,
        "second axis, -": 0.72,
    }  # fmt: skip
    return Simulation(
        lambda world: tabulate(rho.evidence(world.curves(), [look])),
        {
            ("ablation-noise", "ablation-rho"): {
                (arm.name, look): levels[arm.name] for arm in rho.ARMS
            }
        },
    )


def _inner_products() -> Simulation:
    scale = inner_products.SCALES["smoke"]
    arms = [
        *(("rise", variant.name, "train") for variant in inner_products.VARIANTS),
        *(
            ("change", way, iteration)
            for way in ("beyond", "AvgGrad")
            for iteration in scale.iterations
        ),
    ]
    along = pd.MultiIndex.from_product(  # values that are shown, not judged
        [[v.name for v in inner_products.VARIANTS], seeds(EPOCH, 1), scale.iterations],
        names=["variant", "seed", "iteration"],
    ).to_frame(index=False)
    along = along.assign(
        quantity="inner product", pairs="within", characters="train", when="before", value=0.2
    )

    def evidence(world: World) -> pd.DataFrame:
        error = {"standard_error": "task_error"}
        rises = world.part("rise").table("variant", "characters").rename(columns=error)
        changes = world.part("change").table("direction", "iteration").rename(columns=error)
        changes = changes.assign(quantity="inner product")
        return inner_products.evidence(along, rises, changes, scale, world.seeds)

    claims = (RISES, RISES_LAST, STEP)
    return Simulation(evidence, {claims: _levels(arms, 0.3)})


def _variance() -> Simulation:
    arms = [(update,) for update in variance.UPDATES]
    noisy = [*(last(k).name for k in variance.STEPS), *variance.MAML_NAMES]

    def evidence(world: World) -> pd.DataFrame:
        table = world.table("update").assign(iteration=100, noise=lambda found: np.exp(found.value))
        return variance.evidence(table, variance.SCALES["quick"], world.seeds)

    return Simulation(
        evidence, {(variance.LAST, variance.MAML): _levels(arms, 0.0, dict.fromkeys(noisy, 0.5))}
    )


def _validity() -> Simulation:
    scale = validity.SCALES["quick"]
    names = ("term", "iteration", "i", "quantity")
    arms = [
        (term, iteration, i, quantity)
        for term in ("own", "another task's")
        for iteration in scale.iterations
        for i in validity.STEPS
        for quantity in ("q", "cosine")
    ]

    def evidence(world: World) -> pd.DataFrame:
        table = (
            world.by_task(*names)
            .set_index([*names[:-1], "seed", "task", "quantity"])
            .value.unstack()
        )
        return validity.evidence(table.reset_index(), scale, world.seeds)

    return Simulation(evidence, {(validity.EXPLAINED, validity.DIRECTION): _levels(arms, 0.8)})


def _sgd() -> Simulation:
    small, full, other = (sgd.SMALL, sgd.PLAIN), (sgd.FULL, sgd.PLAIN), (sgd.SMALL, sgd.REORDERED)
    variants = (small, full, other, (sgd.SMALL, sgd.SETTLED), (sgd.HALF, sgd.HALVED))
    quantities = ("cosine", "inner product", "generalization gap", "test accuracy")
    levels = _levels([(quantity, *variant) for quantity in quantities for variant in variants], 0.5)
    # Another order changes as much as small minibatches do.
    cosines = {("cosine", *full): 0.4, ("cosine", *other): 0.6}
    return Simulation(
        lambda world: tabulate(sgd.evidence(world.table("quantity", "batch", "variant"))),
        {("sgd-alignment", "sgd-generalization"): {**levels, **cosines}},
        noise=0.0005,
        spread=0.01,
    )


def _sine() -> Simulation:
    arms = [(network, name) for network in sine.JUDGED for name in sine_waves.INITIALIZATIONS]
    return Simulation(
        lambda world: tabulate(
            sine.evidence(
                world.table("network", "initialization").assign(step=sine_waves.TEST_STEPS)
            )
        ),
        {
            ("sine", "sine-relu"): _levels(arms, 0.05),
            ("sine-joint", "sine-joint-relu"): _levels(arms, 0.5),
        },
    )


def _few_shot() -> Simulation:
    """Return logs of error rates: all methods have Reptile's published rate."""
    names = ("benchmark", "shots", "method", "transductive")
    levels = {
        (benchmark.name, shots, method, transductive): _published_log(
            transductive, benchmark.name, shots
        )
        for benchmark in BENCHMARKS
        for shots in benchmark.shots
        for method in ("reptile", "maml", UNTRAINED)
        for transductive in (False, True)
    }

    def evidence(world: World) -> pd.DataFrame:
        table = World(world.arms, 1 - np.exp(world.values)).table(*names).assign(count=10_000)
        return tabulate(
            few_shot.evidence(table, {benchmark.name: None for benchmark in BENCHMARKS})
        )

    return Simulation(evidence, {tuple(claim.id for claim in few_shot.CLAIMS): levels}, noise=0.02)


def _published_log(transductive: bool, benchmark: str, shots: int) -> float:
    paper = PUBLISHED.get(("reptile", transductive, benchmark, shots))
    return log(0.4 if paper is None else 1 - paper[0] / 100)


def _splits() -> Simulation:
    """Return logs of shares over the paper's, for runs on both kinds of split."""
    names = ("name", "split", "shots", "transductive")
    arms = [
        (name, kind, shots, transductive)
        for name in ("share", "shuffled")
        for kind in splits.SPLIT_KINDS
        for shots in splits.BENCHMARK.shots
        for transductive in (False, True)
    ]

    def evidence(world: World) -> pd.DataFrame:
        published = 0.02
        ratios = world.table(*names).set_index([*names[1:], "seed", "name"]).value.unstack()
        shares = (published * np.exp(ratios)).reset_index().assign(published=published)
        return tabulate(splits.evidence(shares, real=True))

    return Simulation(evidence, {(splits.CLAIM,): _levels(arms, 1.0)}, noise=0.05)


SIMULATIONS_OF: dict[str, Callable[[], Simulation]] = {
    "ablation": _ablation,
    "few_shot": _few_shot,
    "inner_products": _inner_products,
    "outer": _outer,
    "overlap": _overlap,
    "rho": _rho,
    "sgd": _sgd,
    "sine": _sine,
    "splits": _splits,
    "validity": _validity,
    "variance": _variance,
}


def simulated(experiment: str, claim: Claim) -> tuple[Simulation, tuple[str, ...]]:
    """Return an experiment's simulation, and the claims that share a world with `claim`."""
    if experiment in SIMULATIONS_OF:
        simulation = SIMULATIONS_OF[experiment]()
        for group in simulation.alike:
            if claim.id in group:
                return simulation, group
    pytest.fail(f"{claim.id}: expected a simulation of its control, found none")


# ---- draws


@dataclass(frozen=True)
class Draw:
    """The samples of one evidence for a claim."""

    checks: tuple[Sample, ...]
    controls: tuple[Sample, ...]

    @classmethod
    def of(cls, evidence: pd.DataFrame, claim: str) -> "Draw":
        """Return the evidence for a claim, which must have checks and controls."""
        found: dict[str, list[Sample]] = {CHECK: [], CONTROL: []}
        for (case, role), part in evidence[evidence.claim == claim].groupby(
            ["case", "role"], sort=False
        ):
            if role in found:
                part = part.sort_values("seed")
                columns = (
                    part.seed.to_numpy(int),
                    part.value.to_numpy(float),
                    part.task_error.to_numpy(float),
                )
                found[role].append(Sample(case, role, *columns, looks=np.ones(len(part), int)))
        assert found[CHECK] and found[CONTROL], (
            f"{claim}: expected checks and controls, found {found}"
        )
        return cls(tuple(found[CHECK]), tuple(found[CONTROL]))

    def cut(self, size: int, count: int) -> list["Draw"]:
        """Return `count` draws of `size` seeds each, cut one after the other."""
        return [
            Draw(_cut(self.checks, start, start + size), _cut(self.controls, start, start + size))
            for start in range(0, size * count, size)
        ]


def _cut(samples: Sequence[Sample], start: int, stop: int) -> tuple[Sample, ...]:
    part = slice(start, stop)
    return tuple(
        replace(
            s,
            seeds=s.seeds[part],
            values=s.values[part],
            task_errors=s.task_errors[part],
            looks=s.looks[part],
        )
        for s in samples
    )


@dataclass(frozen=True)
class Material:
    """The draws that the detectors look at.

    few: draws of one population, cut to the first seeds.
    many: the same draws with more seeds.
    populations: two draws of each of many populations, one after the other.
    """

    few: Sequence[Draw]
    many: Sequence[Draw]
    populations: Sequence[Draw]

    def planted(self, void: "Void") -> "Material":
        """Return the material with a void control in place of every control."""
        return Material(
            *([_plant(void, d) for d in draws] for draws in (self.few, self.many, self.populations))
        )


@cache
def tables(experiment: str) -> tuple[list[pd.DataFrame], list[pd.DataFrame], pd.DataFrame]:
    """Return the evidence of `Material`, for all of an experiment's claims."""
    simulation, rng = SIMULATIONS_OF[experiment](), np.random.default_rng(1)
    worlds = [simulation.world(rng, simulation.levels, MANY) for _ in range(DRAWS)]
    few = [simulation.evidence(world.first(FEW)) for world in worlds]
    many = [simulation.evidence(world) for world in worlds]
    return few, many, simulation.evidence(simulation.populations(rng, POPULATIONS, 2 * FEW))


@cache
def material(claim: str) -> Material:
    """Return what the detectors look at for a claim."""
    simulated(*EXPERIMENTAL[claim])
    few, many, populations = tables(EXPERIMENTAL[claim][0])
    return Material(
        [Draw.of(one, claim) for one in few],
        [Draw.of(one, claim) for one in many],
        Draw.of(populations, claim).cut(FEW, 2 * POPULATIONS),
    )


@cache
def alike_tables(experiment: str, claims: tuple[str, ...]) -> list[pd.DataFrame]:
    """Return the evidence of worlds in which check and control measure the same thing."""
    simulation, rng = SIMULATIONS_OF[experiment](), np.random.default_rng(2)
    levels, count = simulation.alike[claims], IN_A_TABLE * FEW
    return [
        simulation.evidence(simulation.world(rng, levels, count))
        for _ in range(SIMULATIONS // IN_A_TABLE)
    ]


@cache
def alike(claim: str) -> list[Draw]:
    """Return draws in which a claim's check and control measure the same thing."""
    _, group = simulated(*EXPERIMENTAL[claim])
    found: list[Draw] = []
    for evidence in alike_tables(EXPERIMENTAL[claim][0], group):
        found += Draw.of(evidence, claim).cut(FEW, IN_A_TABLE)
    return found


# ---- detectors


def is_constant(draws: Sequence[Draw]) -> bool:
    """Tell whether some control has the same mean in all draws."""
    return any(bool(np.ptp(_means(draws, i)) <= ROUND_OFF) for i in range(len(draws[0].controls)))


def is_function_of_checks(draws: Sequence[Draw]) -> bool:
    """Tell whether some control is a function of its checks, seed by seed.

    The function is a linear combination of the checks' values, squares and sizes.
    """
    checks = np.array(
        [np.concatenate([d.checks[i].values for d in draws]) for i in range(len(draws[0].checks))]
    )
    columns = np.vstack([np.ones_like(checks[:1]), checks, checks**2, np.abs(checks)]).T
    return any(
        _explained(columns, np.concatenate([d.controls[i].values for d in draws])) >= 0.99
        for i in range(len(draws[0].controls))
    )


def _explained(columns: Float[np.ndarray, "rows columns"], y: Float[np.ndarray, " rows"]) -> float:
    """Return R² of a least-squares fit, or 0 for a constant y."""
    rest = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    varies = np.square(y - y.mean()).sum()
    return float(1 - np.square(rest).sum() / varies) if varies > 1e-12 else 0.0


def is_of_other_seeds(few: Sequence[Draw], many: Sequence[Draw]) -> bool:
    """Tell whether some control changes where seeds are added."""
    return any(
        _change([draw.controls[i] for draw in few], [draw.controls[i] for draw in many])
        for i in range(len(few[0].controls))
    )


def _change(few: Sequence[Sample], many: Sequence[Sample]) -> bool:
    """Tell whether values change where seeds are added.

    A seed's own value must stay as it is, so that its expectation does.
    A value of all runs together must stay within four standard errors, in the mean.
    """
    of_a_seed, of_all = [], []
    for less, more in zip(few, many, strict=True):
        changes = paired(more, less)
        is_own = np.isin(np.intersect1d(more.seeds, less.seeds), FIRST_SEEDS)
        of_a_seed.append(changes[is_own])
        of_all.append(changes[~is_own])
    own, common = np.concatenate(of_a_seed), np.concatenate(of_all)
    if np.abs(own).max(initial=0.0) > ROUND_OFF:
        return True
    return (
        bool(common.size)
        and abs(common.mean()) > 4 * common.std(ddof=1) / common.size**0.5 + ROUND_OFF
    )


def is_deaf(draws: Sequence[Draw]) -> bool:
    """Tell whether some control's mean has the same distribution in all populations.

    That holds for a quantity that depends on the seeds and their number alone.
    Ranks are compared, so that any distribution will do.
    """
    for i in range(len(draws[0].controls)):
        pairs = rankdata(_means(draws, i)).reshape(-1, 2)
        between, within = 2 * pairs.mean(1).var(ddof=1), pairs.var(1, ddof=1).mean()
        if not between > LEAST_ANSWER * within:
            return True
    return False


def _means(draws: Sequence[Draw], control: int) -> Float[np.ndarray, " draws"]:
    return np.array([draw.controls[control].values.mean() for draw in draws])


CONSTANT, FUNCTION = "constant", "a function of the check"
OTHERS, DEAF = "a function of other seeds", "deaf to the data"
DETECTORS: dict[str, Callable[[Material], bool]] = {
    CONSTANT: lambda found: is_constant(found.few),
    FUNCTION: lambda found: is_function_of_checks(found.populations),
    OTHERS: lambda found: is_of_other_seeds(found.few, found.many),
    DEAF: lambda found: is_deaf(found.populations),
}


def share_supported(claim: Claim, draws: Sequence[Draw]) -> float:
    return sum(decide(claim, draw.checks, draw.controls)[0] == SUPPORTED for draw in draws) / len(
        draws
    )


# ---- void controls, from the first of the checks

Void = Callable[[Sample], Sample]


def _everywhere(check: Sample, value: float) -> Sample:
    return replace(check, role=CONTROL, values=np.full(len(check.values), value))


def _mean_over_sd(check: Sample) -> Sample:
    return _everywhere(check, check.values.mean() / check.values.std(ddof=1))


def _number_of_seeds(check: Sample) -> Sample:
    """Return one value of all runs together, which no single seed's value shows."""
    value = np.array([len(check.values) ** -0.5])
    return Sample(
        check.name, CONTROL, np.array([ALL_RUNS]), value, np.array([np.nan]), np.ones(1, int)
    )


def _of_the_seed(check: Sample) -> Sample:
    return replace(check, role=CONTROL, values=np.sin(7.0 * check.seeds.astype(float) ** 2))


def _plant(void: Void, draw: Draw) -> Draw:
    return Draw(draw.checks, (void(draw.checks[0]),))


VOIDS: dict[str, tuple[Void, str]] = {
    "a sixth of the check, the other way": (
        lambda check: replace(check, values=-check.values / 6),
        FUNCTION,
    ),
    "the check's square": (lambda check: replace(check, values=check.values**2), FUNCTION),
    "a constant": (lambda check: _everywhere(check, 0.3), CONSTANT),
    "mean over sd": (_mean_over_sd, OTHERS),
    "the number of seeds": (_number_of_seeds, OTHERS),
    "the seed's number alone": (_of_the_seed, DEAF),
}


def _always_failing(claim: Claim) -> Void:
    """Return a foil that any treatment beats, or that is outside a two-sided band."""
    return lambda check: _everywhere(check, -10.0 if claim.direction > 0 else 10.0)


# ---- tests


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_no_control_is_void(name: str) -> None:
    assert {fault for fault, detects in DETECTORS.items() if detects(material(name))} == set()


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_hardly_ever_supported_where_the_treatment_is_the_controls(name: str) -> None:
    _, claim = EXPERIMENTAL[name]
    draws = alike(name)
    assert len(draws) == SIMULATIONS
    assert share_supported(claim, draws) <= MAX_SUPPORTED


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_void_controls_are_found(name: str) -> None:
    found = material(name)
    for words, (void, fault) in VOIDS.items():
        assert DETECTORS[fault](found.planted(void)), words


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_a_control_that_always_fails_is_found(name: str) -> None:
    """In the same worlds, a claim is supported once its control always fails."""
    _, claim = EXPERIMENTAL[name]
    draws = [_plant(_always_failing(claim), draw) for draw in alike(name)[: SIMULATIONS // 3]]
    assert share_supported(claim, draws) > 0.9


def test_the_judge_lets_a_sham_foil_through_as_rarely_as_is_tested() -> None:
    assert CONTROL_ERROR <= 0.03 < MAX_SUPPORTED < 0.07


def test_a_claim_without_a_simulation_is_named() -> None:
    _, claim = EXPERIMENTAL["sine"]
    with pytest.raises(pytest.fail.Exception, match="brand-new: expected a simulation"):
        simulated("sine", replace(claim, id="brand-new"))
    with pytest.raises(pytest.fail.Exception, match="sine: expected a simulation"):
        simulated("another experiment", claim)
