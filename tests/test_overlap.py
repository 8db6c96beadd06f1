"""Figure 4's runs against the paper's setting.

Also which minibatches really overlap, and verdicts on made-up accuracies.
"""

import json
from dataclasses import replace

import matplotlib
import pytest
import torch

from analysis.experiments import overlap
from analysis.experiments.overlap import (
    METHODS,
    REPLACEMENT,
    REPTILE,
    SEPARATE,
    SHARED,
    Grid,
    SweepPoint,
)
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from figures.overlap import STYLES, draw
from figures.style import style
from reptile_core.philox import Purpose
from reptile_core.tasks import ImagePool
from tests.helpers.runs import context, judged, verdicts

matplotlib.use("Agg")

SCALE = overlap.SCALES["paper"]
GRID = SCALE.grid
POINTS = GRID.points()


def test_settings_are_figure_3s_with_100_samples_a_task():
    assert (SCALE.iterations, SCALE.looks, SCALE.seeds >= 5) == (40_000, (40_000,), True)
    for method, point in overlap.cases(GRID):
        run = overlap.configure(method, point, SCALE, seed=0)
        assert (run.sampling.n_way * run.sampling.shots, run.sampling.steps) == (100, point.steps)
        assert (run.outer.step, run.outer.final, run.outer.optimizer) == (
            point.outer_step,
            0.0,
            "plain",
        )
        assert run.weights == (
            (1.0,) * point.steps if method is REPTILE else (0.0,) * (point.steps - 1) + (1.0,)
        )
        assert (run.inner.optimizer, run.inner.reduction) == ("sgd", "mean")
        assert run.inner.learning_rate == pytest.approx(25 * 0.003)


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_tails_overlap_where_it_is_said(point):
    pool = ImagePool(torch.zeros(10, 20, 1, 1, dtype=torch.uint8))

    def drawn(method):
        sampling = overlap.configure(method, point, SCALE, seed=0).sampling
        tasks = pool.sample(sampling, seed=0, purpose=Purpose.TRAINING, iteration=0, task=0)
        *earlier, tail = (batch.index.tolist() for batch in tasks.minibatches)
        return earlier, tail

    earlier, tail = drawn(SEPARATE)
    assert not set(tail) & {i for batch in earlier for i in batch}
    assert len(tail) == min(point.batch, 25)
    assert all(len(batch) == min(point.batch, 100 - len(tail)) for batch in earlier)
    earlier, tail = drawn(SHARED)
    assert bool(set(tail) & {i for batch in earlier for i in batch}) == point.overlaps
    assert len(tail) == point.batch


def test_drawing_afresh_is_left_out_where_it_is_cycling():
    cases = overlap.cases(Grid(steps=(4,), batch=(25, 100), outer_step=(0.25,)))
    assert [p.sweep for m, p in cases if m is REPLACEMENT] == ["steps", "batch"]
    assert len(cases) == 4 * 4 - 2


def test_points_of_two_sweeps_may_be_one_run():
    assert SweepPoint("steps", steps=4).run_name(SHARED) == SweepPoint("batch", batch=25).run_name(
        SHARED
    )
    assert len({p.run_name(m) for p in POINTS for m in METHODS}) == len(METHODS) * len(
        {replace(p, sweep="") for p in POINTS}
    )


def test_every_scale_anneals_within_its_own_run():
    assert all(scale.looks == (scale.iterations,) for scale in overlap.SCALES.values())


def _run(final, *, seeds=5):
    """Return the results of made-up final accuracies by (method's name, steps, batch).

    Accuracy grows a little from seed to seed.
    """
    grid = Grid(steps=(2, 4, 6, 8), batch=(25, 100), outer_step=(0.25,))
    scale = replace(overlap.SCALES["smoke"], grid=grid, seeds=seeds)

    def accuracy(job, iteration):
        method, point = job.variant.split(": ")
        steps, batch = (int(word.strip(",")) for word in point.split()[0:4:3])
        return final(method, steps, batch) + 0.0005 * (job.run.seed * len(method) % 5)

    made = context(accuracy, seeds=seeds)
    return overlap.run(made, scale), overlap.settings(made, scale)


def _paper(method, steps, batch):
    shared = method in (SHARED.name, REPLACEMENT.name)
    return 0.9 if shared and steps * batch > 100 else 0.96


def test_verdicts():
    def found(final, **options):
        return verdicts(overlap.EXPERIMENT, _run(final, **options)[0])

    assert set(found(_paper).values()) == {SUPPORTED}
    assert found(lambda method, steps, batch: 0.96)["overlap-tail"] == REFUTED
    everything_falls = found(lambda method, steps, batch: 0.9 if steps * batch > 100 else 0.96)
    assert everything_falls["overlap-others"] == REFUTED
    assert set(found(_paper, seeds=4).values()) == {UNDECIDED}


def test_controls_can_pass():
    def why(final):
        found = judged(overlap.EXPERIMENT, _run(final)[0])
        return {claim: verdict.why for claim, verdict in found.items()}

    def always_behind(method, steps, batch):  # whether or not there is overlap
        return 0.9 if method in (SHARED.name, REPLACEMENT.name) else 0.96

    assert why(always_behind)["overlap-tail"] == "the control does not fail"
    assert why(lambda method, steps, batch: 0.96)["overlap-others"] == "the control does not fail"


def test_drawing_with_replacement_is_a_case_of_its_own():
    def final(method, steps, batch):
        return 0.96 if method == REPLACEMENT.name else _paper(method, steps, batch)

    verdict = judged(overlap.EXPERIMENT, _run(final)[0])["overlap-tail"]
    by_case = {case.name: case.decision for case in verdict.cases}
    assert verdict.decision == REFUTED
    # In the sweep of minibatches, drawing with replacement has no point at which it overlaps and
    # differs from cycling.
    assert by_case == {
        f"inner steps: {SHARED.name}": SUPPORTED,
        f"inner steps: {REPLACEMENT.name}": REFUTED,
        f"minibatch: {SHARED.name}": SUPPORTED,
    }


def test_evidence_is_of_the_means_of_the_points():
    def final(method, steps, batch):
        return 0.9 - (0.01 * steps if method == SHARED.name and steps > 4 else 0.0)

    evidence = _run(final, seeds=1)[0].evidence.set_index(["claim", "case", "role"])["value"]
    shared, reptile = f"inner steps: {SHARED.name}", f"inner steps: {REPTILE.name}"
    assert evidence["overlap-tail", shared, "check"] == pytest.approx((0.06 + 0.08) / 2)
    assert evidence["overlap-tail", shared, "control"] == pytest.approx(0.0)
    assert evidence["overlap-others", reptile, "check"] == pytest.approx(0.0)
    assert evidence["overlap-others", reptile, "control"] == pytest.approx(-0.07)
    assert evidence["overlap-others", f"minibatch: {SEPARATE.name}", "check"] == pytest.approx(0.0)


def test_figure_draws_the_numbers():
    result, settings = _run(_paper, seeds=1)
    assert json.loads(json.dumps(settings))["grid"]["steps"] == [2, 4, 6, 8]
    assert set(STYLES) == {method.name for method in METHODS}
    with style():
        figure = draw(result.tables, settings)["overlap"]
    steps, _, outer = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in steps.get_lines()}
    assert lines[SHARED.name] == pytest.approx([96, 96, 90, 90])
    assert lines[SEPARATE.name] == pytest.approx([96, 96, 96, 96])
    assert REPLACEMENT.name not in [line.get_label() for line in outer.get_lines()]
    assert (
        figure.get_suptitle()
        == "After 8 inner steps FOMAML ends at 96 % with a tail of its own, 90 % without"
    )


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_every_profiles_grid_gives_a_figure_and_rows_for_both_claims(profile):
    made = context(lambda job, iteration: 0.9, seeds=2, profile=profile)
    result = overlap.EXPERIMENT.result(made)
    assert set(result.evidence.claim) == {"overlap-tail", "overlap-others"}
    with style():
        figure = draw(result.tables, overlap.EXPERIMENT.settings_in(made))["overlap"]
    assert "FOMAML ends at 90 % with a tail of its own, 90 % without" in figure.get_suptitle()
