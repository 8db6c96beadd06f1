"""What experiments on training runs share: scales, runs asked for twice, and curves by seed where some ended early."""

from math import isnan

import pytest

from analysis.experiments import ablation, sweeps
from analysis.experiments.sweeps import Scale
from analysis.runs import ended_early
from reptile_core.meta_gradients import last, total
from tests.made_up import context

SCALE = Scale(iterations=4, every=2, tasks=1, seeds=2)
RUNS = [(v.name, ablation.configure(v, SCALE, seed)) for v in (total(2), last(2)) for seed in range(SCALE.seeds)]


def _outcomes():
    """g2 of seed 1 diverges before its end."""
    made = context(lambda job, i: None if (job.variant, job.run.seed, i) == ("g2", 1, 4) else 0.5 + 0.1 * i)
    return sweeps.train(made, "made up", [*RUNS, *RUNS])


def test_the_users_seeds_come_before_the_profiles():
    made = context(lambda job, i: 0.5)
    assert sweeps.scale_of({"smoke": SCALE}, made) == SCALE
    assert sweeps.scale_of({"smoke": SCALE}, context(lambda job, i: 0.5, seeds=7)).seeds == 7


def test_a_run_asked_for_twice_is_one():
    assert len(_outcomes()) == len(RUNS)


def test_curves_name_their_experiment():
    curves = sweeps.curves("made up", _outcomes())
    assert set(curves.experiment) == {"made up"}
    assert list(curves.iteration[:3]) == [0, 2, 4]
    assert len(curves) == 4 * 3 - 1


def test_by_seed_has_every_point_of_every_variant():
    curves = sweeps.curves("made up", _outcomes())
    accuracy = sweeps.by_seed(curves)
    assert accuracy.shape == (2, 2 * 3)
    assert accuracy["g1+g2"].loc[1, 4] == pytest.approx(0.9)
    assert isnan(accuracy["g2"].loc[1, 4])
    assert sweeps.by_seed(curves, diverged=0.2)["g2"].loc[1, 4] == 0.2


def test_runs_that_diverged_are_named():
    line = "g2, seed 1: diverged at iteration 4 (inner sgd at 0.003, outer plain at 0.25)"
    assert ended_early(_outcomes()) == [line]
