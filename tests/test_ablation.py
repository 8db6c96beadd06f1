"""Figure 3's settings against the paper's; its table, words and verdicts from made-up curves."""

import json
from argparse import ArgumentTypeError
from dataclasses import replace

import pytest

from analysis.experiments import ablation
from analysis.experiments.shared.own_variants import as_text, parse
from analysis.paper.figure_3 import EVALUATION, configure
from analysis.results.claims import PROFILES
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from reptile_core.meta_gradients import figure_3
from tests.helpers.runs import context, judged, verdicts

NAMES = [variant.name for variant in figure_3()]


def test_settings_are_the_papers():
    for variant in figure_3():
        run = configure(variant, seed=0)
        assert run.iterations == 40_000
        assert (run.sampling.n_way, run.sampling.shots, run.sampling.batch) == (
            5,
            5 * variant.k,
            25,
        )
        # The pool has room for k disjoint minibatches.
        assert run.sampling.pool == variant.k * run.sampling.batch
        assert (run.inner.optimizer, run.inner.learning_rate, run.inner.reduction) == (
            "sgd",
            0.003,
            "sum",
        )
        assert (run.outer.optimizer, run.outer.step, run.outer.final, run.meta_batch) == (
            "plain",
            0.25,
            0.0,
            1,
        )
    assert (EVALUATION.n_way, EVALUATION.shots, EVALUATION.batch, EVALUATION.steps) == (5, 5, 25, 5)


def test_an_average_is_the_sum_at_the_outer_step_over_k():
    weights = {variant.name: variant.weights for variant in figure_3()}
    for k, name in ((2, "g1+g2"), (3, "g1+g2+g3"), (4, "g1+g2+g3+g4")):
        assert weights[f"({name})/{k}"] == pytest.approx([0.25 / k / 0.25] * k)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_a_prefix_of_the_papers_schedule(profile):
    scale = ablation.SCALES[profile]
    assert scale.iterations == 40_000
    assert max(scale.until, *ablation.LATE_LOOKS.get(profile, (0,))) <= 40_000
    assert scale.seeds >= 5 or profile == "smoke"
    names = {variant.name for variant in ablation.variants(profile)}
    assert (
        names == set(NAMES)
        if profile != "quick"
        else set(NAMES) - names == {"g1+g2+g3", "(g1+g2+g3)/3", "g3"}
    )
    assert ablation.SCALES["paper"].until == 40_000


def _run(curve, *, seeds=5, profile="smoke"):
    """Return the results of made-up curves(variant, iteration).

    Accuracy grows a little from seed to seed, by another amount in each variant.
    """

    def accuracy(job, iteration):
        found = curve(job.variant, iteration)
        return None if found is None else found + 0.0005 * (job.run.seed * len(job.variant) % 5)

    made = context(accuracy, seeds=seeds, profile=profile)
    return ablation.EXPERIMENT.result(made), ablation.EXPERIMENT.settings_in(made)


def _paper(variant, iteration=1):
    """Return curves like the paper's figure.

    g1 stays flat, the others are better the more steps they take, and sums gain more than the last
    gradient alone.
    """
    k = variant.count("g") if "+" in variant else int(variant[1])
    if k == 1 or iteration == 0:
        return 0.5
    return 0.7 + 0.06 * k if "+" in variant else 0.8 + 0.03 * k


@pytest.mark.parametrize("profile", PROFILES)
def test_verdicts_where_all_is_as_the_paper_has_it(profile):
    result, settings = _run(_paper, profile=profile)
    assert set(verdicts(ablation.EXPERIMENT, result).values()) == {SUPPORTED}
    json.dumps(settings)


@pytest.mark.parametrize(
    ("claim", "curve"),
    [
        ("ablation-g1", lambda v, i: 0.5 + 0.3 * (i > 0) if v == "g1" else _paper(v, i)),
        ("ablation-g2-beats-sum", lambda v, i: 0.8 if v == "g2" else _paper(v, i)),
        ("ablation-more-is-better", lambda v, i: 0.7 if v == "g1+g2+g3+g4" else _paper(v, i)),
        (
            "ablation-more-is-better-averages",
            lambda v, i: 0.7 if v == "(g1+g2+g3+g4)/4" else _paper(v, i),
        ),
        ("ablation-more-is-better-last", lambda v, i: 0.7 if v == "g4" else _paper(v, i)),
        ("ablation-sums-gain-more", lambda v, i: 0.99 if v == "g4" else _paper(v, i)),
    ],
)
def test_each_claim_can_be_refuted(claim, curve):
    assert verdicts(ablation.EXPERIMENT, _run(curve)[0])[claim] == REFUTED


@pytest.mark.parametrize(
    ("claim", "curve"),
    [
        ("ablation-g1", lambda v, i: 0.5),  # where nothing learns, g1 shows nothing
        ("ablation-g2-beats-sum", lambda v, i: 0.95 if v == "g1" else _paper(v, i)),
        ("ablation-more-is-better", lambda v, i: 0.99 if v == "g1" else _paper(v, i)),
        ("ablation-more-is-better-averages", lambda v, i: 0.99 if v == "g1" else _paper(v, i)),
        ("ablation-more-is-better-last", lambda v, i: 0.99 if v == "g1" else _paper(v, i)),
        ("ablation-sums-gain-more", lambda v, i: 0.99 if v == "g1" else _paper(v, i)),
    ],
)
def test_each_control_can_pass(claim, curve):
    verdict = judged(ablation.EXPERIMENT, _run(curve)[0])[claim]
    assert (verdict.decision, verdict.why) == (UNDECIDED, "the control does not fail")


def test_fewer_than_five_seeds_are_a_pilot():
    found = judged(ablation.EXPERIMENT, _run(_paper, seeds=4)[0])
    assert {verdict.why for verdict in found.values()} == {"pilot"}


def test_g2_and_the_sum_are_compared_early_and_over_all_of_the_run():
    def late(variant, iteration):
        return (
            0.9 if iteration > 5_000 and variant in ("g2", "g1+g2") else _paper(variant, iteration)
        )

    verdict = judged(ablation.EXPERIMENT, _run(late, profile="paper")[0])["ablation-g2-beats-sum"]
    early, whole = verdict.cases
    assert (early.name, whole.name) == ("early", "over all of the run")
    assert early.mean == pytest.approx(0.86 - 0.82, abs=0.002)
    assert whole.mean == pytest.approx((0.86 - 0.82) * 8 / 12, abs=0.002)
    (case,) = judged(ablation.EXPERIMENT, _run(late, profile="quick")[0])[
        "ablation-g2-beats-sum"
    ].cases
    assert case.name == "early"


def test_one_and_two_minibatches_are_followed_further_than_the_others():
    result, settings = _run(lambda v, i: 0.5 - 1e-4 * i, profile="quick")
    assert settings["looks_of"] == {
        name: [200, 400, 1_250, 1_500] for name in ("g1", "g1+g2", "g2")
    }
    found = judged(ablation.EXPERIMENT, result)
    assert found["ablation-g1"].cases[0].mean == pytest.approx(-0.15)
    assert found["ablation-g2-beats-sum"].cases[0].tasks == 2 * ablation.SCALES["quick"].tasks
    summary = result.tables["ablation_summary"].set_index("variant")
    assert (summary.iteration["g1"], summary.iteration["g4"]) == (1_500, 400)


def test_table_summary_and_words():
    result, _ = _run(lambda variant, i: 0.6 if variant == "g1" else 0.9, seeds=2)
    assert len(result.tables["ablation"]) == 10 * 2 * 3
    summary = result.tables["ablation_summary"]
    assert list(summary.variant) == NAMES
    assert summary.set_index("variant")["mean"]["g4"] == pytest.approx(0.9, abs=0.003)
    assert len(result.lines) == 11


def test_a_run_that_diverged_counts_as_chance():
    result, _ = _run(lambda variant, i: None if variant == "g2" and i == 4 else 0.9)
    assert result.tables["ablation_summary"].set_index("variant")["mean"]["g2"] == pytest.approx(
        0.2
    )
    assert verdicts(ablation.EXPERIMENT, result)["ablation-g2-beats-sum"] == REFUTED


def test_a_variant_of_ones_own_is_shown_and_not_judged():
    mine = parse("mine=0,0,1,1")
    made = replace(
        context(lambda job, n: 0.2 + 0.1 * (n > 0)), options={"variants": (mine,), "iterations": 3}
    )
    result, settings = ablation.EXPERIMENT.result(made), ablation.EXPERIMENT.settings_in(made)
    table = result.tables["ablation"]
    assert (
        sorted(set(table[table.variant == "mine"].iteration))
        == [0, 2, 3]
        == sorted(set(table.iteration))
    )
    assert settings["variants"]["mine"] == (0.0, 0.0, 1.0, 1.0) and settings["looks"] == (2, 3)
    assert result.evidence.empty and any("not judged" in line for line in result.lines)
    assert parse(as_text(mine)) == mine
    judged = ablation.EXPERIMENT.result(
        replace(made, options={"variants": (mine,)})
    )  # at the profile's looks the claims are judged
    assert len(judged.evidence) and "mine" in set(judged.tables["ablation"].variant)


@pytest.mark.parametrize(
    ("iterations", "judges"), [(3_000, False), (4_500, False), (5_000, True), (10_000, True)]
)
def test_a_prefix_of_the_papers_schedule_judges_from_where_its_early_part_ends(iterations, judges):
    made = context(lambda job, n: _paper(job.variant, n), seeds=5, profile="paper")
    result = ablation.EXPERIMENT.result(replace(made, options={"iterations": iterations}))
    assert result.tables["ablation"].iteration.max() == iterations
    found = verdicts(ablation.EXPERIMENT, result) if len(result.evidence) else {}
    assert bool(found) == judges
    if judges:
        assert set(result.evidence[result.evidence.claim == "ablation-g2-beats-sum"].case) == {
            "early"
        }
        assert set(result.evidence[result.evidence.claim == "ablation-g1"].case) == {
            f"after {iterations:,} iterations"
        }


WRONG = "mine", "mine=", "=1", "mine=1,x", "mine=0,0", "mine=1,1,1,1,1", "g4=1", "a_b=1", "a=nan"


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_variant_is_named(text):
    with pytest.raises(ArgumentTypeError, match=r"expected .*found"):
        parse(text)
