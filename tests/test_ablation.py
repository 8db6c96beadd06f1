"""Figure 3's settings against the paper's numbers, and its table and words from made-up outcomes."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.claims import CANNOT_FAIL, REFUTED, SUPPORTED, ledger
from analysis.experiment import Context
from analysis.experiments import ablation
from analysis.runs import Outcome, Source
from analysis.workers import Workers
from reptile_core.meta_gradients import figure_3

CONTEXT = Context("smoke", Source("glyphs", None, "0" * 64), Workers(1, quiet=True), Path("runs"))


def test_settings_are_the_papers():
    scale = ablation.SCALES["paper"]
    assert (scale.iterations, scale.seeds >= 3) == (40_000, True)
    for variant in figure_3():
        run = ablation.configure(variant, scale, seed=0)
        assert (run.sampling.n_way, run.sampling.shots, run.sampling.batch) == (5, 5 * variant.k, 25)
        assert run.sampling.pool == variant.k * run.sampling.batch  # so that the k minibatches are disjoint
        assert (run.inner.optimizer, run.inner.learning_rate, run.inner.reduction) == ("sgd", 0.003, "sum")
        assert (run.outer.optimizer, run.outer.step, run.outer.final, run.meta_batch) == ("plain", 0.25, 0.0, 1)
        evaluation = run.evaluation.sampling
        assert (evaluation.shots, evaluation.batch, evaluation.steps) == (5, 25, 5)


def test_an_average_is_the_sum_at_the_outer_step_over_k():
    weights = {variant.name: variant.weights for variant in figure_3()}
    for k, name in ((2, "g1+g2"), (3, "g1+g2+g3"), (4, "g1+g2+g3+g4")):
        assert weights[f"({name})/{k}"] == pytest.approx([0.25 / k / 0.25] * k)


def test_jobs_are_variants_times_seeds():
    jobs = ablation.jobs(ablation.Scale(1, 1, 1, seeds=3), CONTEXT)
    assert len(jobs) == 30
    assert len({job.key for job in jobs}) == 30


def _outcomes(final):
    """Made-up outcomes: every variant at 0.5, then at final(variant, seed)."""
    jobs = ablation.jobs(ablation.Scale(10, 10, 1, seeds=2), CONTEXT)
    row = {"quantity": "accuracy", "standard_error": 0.1, "count": 1}
    return {
        job: Outcome(
            [
                row | {"iteration": 0, "value": 0.5},
                row | {"iteration": 10, "value": final(job.variant, job.run.seed)},
            ],
            "finished",
            1.0,
            10,
        )
        for job in jobs
    }


def test_table_and_summary():
    table = ablation.table(_outcomes(lambda variant, seed: 0.6 if variant == "g1" else 0.9 + 0.02 * seed))
    assert len(table) == 10 * 2 * 2
    summary = ablation.summary(table)
    assert list(summary.variant) == [variant.name for variant in figure_3()]
    assert summary.set_index("variant")["mean"]["g4"] == pytest.approx(0.91)
    assert len(ablation.report(summary)) == 11


def test_a_run_that_diverged_is_missing_from_the_final_row_not_from_the_table():
    outcomes = _outcomes(lambda variant, seed: 0.9)
    outcomes = {
        job: (Outcome(o.rows[:1], "diverged at iteration 10", 1.0, 10) if job.variant == "g2" else o)
        for job, o in outcomes.items()
    }
    table = ablation.table(outcomes)
    assert "g2" in set(table.variant)
    assert "g2" not in set(ablation.summary(table).variant)
    assert isinstance(table, pd.DataFrame)


def _verdicts(effect):
    """Verdicts on made-up curves: from 0.5 to effect(variant) and a little more for each seed."""
    table = ablation.table(_outcomes(lambda variant, seed: effect(variant) + 0.001 * seed))
    rows = pd.DataFrame(ablation.measurements(table, figure_3()))
    return dict(ledger(ablation.CLAIMS, rows)[["id", "verdict"]].to_numpy())


def _paper(variant):
    """As the paper's figure has it: g1 flat, the rest better the longer, sums gaining more than the last."""
    k = variant.count("g") if "+" in variant else int(variant[1])
    if k == 1:
        return 0.5
    return 0.7 + 0.06 * k if "+" in variant else 0.8 + 0.03 * k


def test_verdicts_on_made_up_curves():
    assert set(_verdicts(_paper).values()) == {SUPPORTED}
    assert _verdicts(lambda variant: 0.9 if variant == "g1" else _paper(variant))["ablation-g1"] == REFUTED
    assert _verdicts(lambda variant: 0.8 if variant == "g2" else _paper(variant))["ablation-g2-beats-sum"] == REFUTED
    assert _verdicts(lambda v: 1.7 - _paper(v) if v != "g1" else 0.5)["ablation-more-is-better"] == REFUTED
    assert _verdicts(lambda variant: 0.5)["ablation-g1"] == CANNOT_FAIL


def test_one_seed_is_inconclusive():
    table = ablation.table(_outcomes(lambda variant, seed: _paper(variant)))
    rows = pd.DataFrame(ablation.measurements(table[table.seed == 0], figure_3()))
    assert not {SUPPORTED, REFUTED} & set(ledger(ablation.CLAIMS, rows).verdict)
