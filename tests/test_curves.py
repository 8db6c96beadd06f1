"""The shared parts of experiments on training runs.

These are scales, where runs are kept, contrasts against naive ones, and diverged runs.
"""

from dataclasses import dataclass, field, replace
from math import isnan

import numpy as np
import pytest

from analysis.experiments.shared.curves import Curves, Scale, kept, measure
from analysis.experiments.shared.experiment import Experiment, Measured, Result
from analysis.paper.figure_3 import CHANCE, configure
from reptile_core.meta_gradients import last, sum_of
from reptile_core.tasks import Sampling
from tests.helpers.runs import FIRST_SEED, SECONDS, MadeUp, context

SCALE = Scale(looks=(2, 4), tasks=3, seeds=2)
RUNS = [
    (v.name, configure(v, seed))
    for v in (sum_of(2), last(2))
    for seed in (FIRST_SEED, FIRST_SEED + 1)
]


def _curves():
    """Return curves in which g2 of seed FIRST_SEED + 1 diverges before its end."""
    made = context(
        lambda job, i: (
            None if (job.variant, job.run.seed, i) == ("g2", FIRST_SEED + 1, 4) else 0.5 + 0.1 * i
        )
    )
    return measure(made, "made up", [*RUNS, *RUNS], SCALE)


def test_the_users_seeds_come_before_the_profiles():
    given = []
    experiment = Experiment(
        "test",
        "",
        {},
        (),
        lambda *_: {},
        lambda _, scale: given.append(scale) or Result({}),
        scales={"smoke": SCALE},
    )
    for seeds in (None, 7):
        experiment.result(context(lambda job, i: 0.5, seeds=seeds))
    assert given == [SCALE, replace(SCALE, seeds=7)]


def test_phi_is_kept_at_the_looks_and_where_others_look():
    assert kept((50, 250)) == (50, 100, 200, 250)
    assert kept((4,)) == (4,)


def test_tables_name_their_experiment_and_hold_every_look():
    table = _curves().table("made up")
    assert set(table.experiment) == {"made up"}
    assert list(table.iteration[:3]) == [0, 2, 4]
    assert len(table) == 4 * 3
    assert set(table["count"]) == {3}


def test_a_run_that_diverged_classifies_at_chance():
    curves = _curves()
    assert curves.accuracy["g2", FIRST_SEED + 1, 4] == pytest.approx([CHANCE] * 3)
    assert curves.accuracy["g2", FIRST_SEED + 1, 0] == pytest.approx([0.5] * 3)
    assert curves.accuracy["g2", FIRST_SEED, 4] == pytest.approx([0.9] * 3)


def test_looks_of_some_variants_and_no_start():
    made = context(lambda job, i: 0.5)
    curves = measure(made, "made up", RUNS, SCALE, looks={"g2": (2, 4, 8)}, at_start=False)
    assert curves.iterations("g2") == [2, 4, 8]
    assert curves.iterations("g1+g2") == [2, 4]


def test_every_look_is_of_its_own_tasks_and_no_run_goes_further_than_its_last():
    asked = []
    made = AsksFor(**vars(context(lambda job, i: 0.5)), looked_at=asked)
    measure(made, "made up", RUNS, SCALE, looks={"g2": (2, 8)})
    assert {job.variant: job.end for job, _, _ in asked} == {"g2": 8, "g1+g2": 4}
    assert {(i, what.look, what.tasks, what.queries) for _, i, what in asked} == {
        (i, i, 3, 5) for i in (0, 2, 4, 8)
    }
    # As the paper evaluates figure 3: 5-way 5-shot, after 5 steps of batch 25.
    assert {what.sampling for _, _, what in asked} == {Sampling(5, 5, 25, 5)}


@dataclass(frozen=True)
class AsksFor(MadeUp):
    """A made-up context that writes down what is measured."""

    looked_at: list[Measured] = field(default_factory=list)

    def evaluate(self, name, wanted):
        self.looked_at.extend(wanted)
        return super().evaluate(name, wanted)


def test_seconds_of_an_iteration_are_of_training_alone():
    curves = _curves()
    assert set(curves.seconds_an_iteration.values()) == {SECONDS}
    assert curves.seconds["g1+g2", FIRST_SEED] > 4 * SECONDS


def _random_curves():
    generator = np.random.default_rng(0)
    names, seeds, looks = ("a", "b"), (0, 1, 2), (0, 10, 20)
    accuracy = {
        (n, s, i): generator.random(7 if i else 5) for n in names for s in seeds for i in looks
    }
    return Curves(accuracy, {(n, s): 10.0 + s for n in names for s in seeds}, queries=5)


def test_contrasts_against_naive_ones():
    curves = _random_curves()
    weights = {("a", 10): 1.0, ("b", 10): -0.5, ("a", 20): 2.0, ("b", 0): -1.0}
    found = curves.contrast(weights)
    assert list(found.index) == [0, 1, 2]
    for seed, row in found.iterrows():
        values = {key: curves.accuracy[key[0], seed, key[1]] for key in weights}
        assert row["value"] == pytest.approx(
            sum(w * values[key].mean() for key, w in weights.items())
        )
        paired = [
            values["a", 10] - 0.5 * values["b", 10],  # both at iteration 10, on the same tasks
            2 * values["a", 20],
            values["b", 0],
        ]
        error = sum(np.var(part, ddof=1) / len(part) for part in paired) ** 0.5
        assert row["task_error"] == pytest.approx(error)
        assert (row["tasks"], row["queries"], row["seconds"]) == (7 + 7 + 5, 5, 2 * (10 + seed))


def test_a_mean_contrast_is_the_mean_of_the_contrasts():
    curves = _random_curves()
    found = curves.mean_contrast({"a": 1, "b": -1}, [10, 20])["value"]
    parts = [curves.contrast({("a", i): 1, ("b", i): -1})["value"] for i in (10, 20)]
    assert list(found) == pytest.approx(list((parts[0] + parts[1]) / 2))


def test_one_task_has_no_error():
    curves = Curves({("a", 0, 1): np.array([0.5])}, {}, queries=1)
    row = curves.contrast({("a", 1): 1.0}).loc[0]
    assert row["value"] == 0.5
    assert isnan(row["task_error"])
    assert isnan(row["seconds"])
