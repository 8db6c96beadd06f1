"""Points of figure 3's runs: which exist, which phi they have, and which losses are evaluated."""

import pytest
import torch
import torch.nn.functional as F

from analysis.experiments.shared.experiment import Context
from analysis.experiments.shared.trained_points import points
from analysis.paper import figure_3
from reptile_core.meta_gradients import sum_of
from reptile_core.philox import Purpose
from reptile_core.training import build_network
from tests.helpers.jobs import glyph_source
from tests.helpers.runs import FIRST_SEED
from tests.helpers.script import InProcess

SEEDS = [FIRST_SEED, FIRST_SEED + 1]


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Return points of two variants and two seeds, trained for four iterations."""
    source = glyph_source()
    context = Context("smoke", source, InProcess(1), tmp_path_factory.mktemp("runs"))
    return points(context, [sum_of(1), sum_of(4)], SEEDS, (0, 2, 4), schedule=figure_3.ITERATIONS)


def test_points_are_where_phi_was_kept(every):
    assert [(p.job.variant, p.job.run.seed, p.iteration) for p in every] == [
        (name, seed, iteration)
        for seed in SEEDS
        for name in ("g1", "g1+g2+g3+g4")
        for iteration in (0, 2, 4)
    ]
    assert [p.is_last for p in every[:3]] == [False, False, True]
    assert every[0].job.run.iterations == figure_3.ITERATIONS
    first = build_network(every[0].job.run).initialize(SEEDS[0])
    assert torch.equal(every[0].phi, first)
    assert not torch.equal(every[2].phi, first)


def test_losses_are_of_training_tasks_that_the_run_did_not_meet(every):
    point = every[-1]
    (loss, *others), phi = (
        point.losses(point.job.run.sampling, 0, dtype=torch.float64),
        point.phi.double(),
    )
    assert len(others) == 3
    pool, run = point.pool("train", torch.float64), point.job.run
    drawn = pool.sample(run.sampling, seed=run.seed, purpose=Purpose.ANALYSIS, iteration=4, task=0)
    batch = pool.minibatch(drawn.minibatches[0])
    logits = build_network(run)(phi, batch.x)
    assert float(loss(phi)) == pytest.approx(
        float(F.cross_entropy(logits, batch.y, reduction="sum")), rel=1e-12
    )
    smooth = point.losses(run.sampling, 0, dtype=torch.float64, activation="softplus")
    assert float(smooth[0](phi)) != pytest.approx(float(loss(phi)), rel=1e-3)
