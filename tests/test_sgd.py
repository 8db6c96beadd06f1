"""SGD outside meta-learning: equal loss at the end, paths and alignment against plain loops.

Also the ledger and the figure.
"""

import matplotlib
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cosine_similarity, cross_entropy

from analysis.experiments import sgd
from analysis.experiments.sgd_training import (
    FULL,
    HALF,
    HALVED,
    NETWORK,
    SMALL,
    TRAINING_IMAGES,
    Item,
    _orders,
    digits,
    measure,
    minibatches,
    of_item,
    train,
    train_and_measure,
)
from analysis.results.judge import judge
from analysis.results.tables import over_seeds
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from analysis.runs.workers import silent
from figures.sgd import draw
from figures.style import style
from reptile_core.losses import CrossEntropy
from reptile_core.philox import Purpose, bits
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

LOSS = CrossEntropy(NETWORK, reduction="mean")
SEEDS = FIRST_SEED, FIRST_SEED + 4


@pytest.fixture(scope="module")
def data():
    return digits(SEEDS)


@pytest.fixture(scope="module")
def start():
    return torch.stack([NETWORK.initialize(seed) for seed in SEEDS])


def test_settings():
    assert FULL % SMALL == 0
    for scale in sgd.SCALES.values():
        assert {SMALL, FULL} <= set(scale.batches)
        assert all(TRAINING_IMAGES % batch == 0 for batch in scale.batches)  # epochs are whole
    assert sgd.SCALES["quick"].seeds >= 8


def test_every_digit_is_trained_on_or_tested_with(data):
    images, labels = load_digits(return_X_y=True)
    for seed in range(len(SEEDS)):
        x = torch.cat([data.train.x[seed], data.test.x[seed]]) * 16
        y = torch.cat([data.train.y[seed], data.test.y[seed]])
        rows = sorted(zip(map(tuple, x.tolist()), y.tolist(), strict=True))
        assert rows == sorted(zip(map(tuple, images.tolist()), labels.tolist(), strict=True))
    assert data.train.x.shape == (len(SEEDS), 500, 64)
    assert not torch.equal(data.train.y[0], data.train.y[1])


def test_an_epoch_meets_every_image_once(data):
    order = torch.stack(
        [torch.randperm(500, generator=torch.Generator().manual_seed(s)) for s in SEEDS]
    )
    epoch = minibatches(data.train, order, 50)
    assert epoch.x.shape == (len(SEEDS), 10, 50, 64)
    for seed in range(len(SEEDS)):
        torch.testing.assert_close(epoch.x[seed].flatten(0, 1), data.train.x[seed, order[seed]])
        assert torch.equal(epoch.y[seed].flatten(), data.train.y[seed, order[seed]])


@pytest.mark.parametrize(("batch", "target"), [(500, 1.5), (50, 1.0)])
def test_training_is_plain_sgd_to_the_target(data, start, batch, target):
    """Training is plain SGD to the target, seed by seed, in a new order in every epoch.

    The end point's loss is the target, on the segment of the last step.
    """
    end, steps = train(start, data.train, LOSS, seeds=SEEDS, batch=batch, target=target)
    for seed in range(len(SEEDS)):
        x, y = data.train.x[seed], data.train.y[seed]
        phi = start[seed].clone().requires_grad_()
        count = 0
        while cross_entropy(NETWORK(phi, x), y) > target:
            epoch, at = divmod(count, 500 // batch)
            keys = bits(SEEDS[seed], Purpose.TRAINING, 500, iteration=epoch).tolist()
            here = sorted(range(500), key=keys.__getitem__)[at * batch : (at + 1) * batch]
            loss = cross_entropy(NETWORK(phi, x[here]), y[here])
            before, g = phi.detach(), torch.autograd.grad(loss, phi)[0]
            phi = (before - 0.3 * g).requires_grad_()
            count += 1
        assert steps[seed] == count > 500 // batch  # after the first epoch
        t = (end[seed] - before).norm() / (phi - before).norm()
        torch.testing.assert_close(
            end[seed], torch.lerp(before, phi.detach(), t), rtol=1e-4, atol=1e-5
        )
        assert cross_entropy(NETWORK(end[seed], x), y).item() == pytest.approx(target, abs=1e-5)


def test_all_sizes_end_at_equal_loss(data, start):
    for batch, order in ((10, 0), (10, 1), (500, 0)):
        end, _ = train(start, data.train, LOSS, seeds=SEEDS, batch=batch, target=1.0, order=order)
        torch.testing.assert_close(
            LOSS(end, data.train), torch.full((len(SEEDS),), 1.0), rtol=0, atol=1e-5
        )


def test_orders_differ_and_repeat(data, start):
    paths = [
        train(start, data.train, LOSS, seeds=SEEDS, batch=10, target=1.5, order=order)[0]
        for order in (0, 1, 0)
    ]
    assert torch.equal(paths[0], paths[2])
    assert not torch.equal(paths[0], paths[1])


def test_a_path_that_never_arrives_has_no_end(data, start):
    end, _ = train(start, data.train, LOSS, seeds=SEEDS, batch=500, target=0.01, max_steps=2)
    assert end.isnan().all()


def test_measures_are_those_of_a_plain_loop(data, start):
    found = measure(start, data, LOSS, SEEDS)
    common = minibatches(data.train, _orders(SEEDS, Purpose.EVALUATION, 500), 10)
    for seed in range(len(SEEDS)):
        g = []
        for x, y in zip(common.x[seed], common.y[seed], strict=True):
            phi = start[seed].clone().requires_grad_()
            g.append(torch.autograd.grad(cross_entropy(NETWORK(phi, x), y), phi)[0].double())
        pairs = [(i, j) for i in range(50) for j in range(i)]
        cosine = sum(cosine_similarity(g[i], g[j], dim=0) for i, j in pairs) / len(pairs)
        product = sum(g[i] @ g[j] for i, j in pairs) / len(pairs)
        mean = torch.stack(g).mean(0)
        variance = sum((one - mean).square().sum() for one in g) / 49
        logits = NETWORK(start[seed], data.test.x[seed])
        gap = cross_entropy(logits, data.test.y[seed]) - cross_entropy(
            NETWORK(start[seed], data.train.x[seed]), data.train.y[seed]
        )
        accuracy = (logits.argmax(-1) == data.test.y[seed]).double().mean()
        for name, value in (
            ("cosine", cosine),
            ("inner product", product),
            ("variance", variance),
            ("generalization gap", gap),
            ("test accuracy", accuracy),
        ):
            assert found[name][seed].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


def test_half_of_the_images_are_all_that_is_trained_on(data, start):
    item = Item(HALF, HALVED, SEEDS, target=1.5)
    half = of_item(item)
    assert half.train.y.shape == (len(SEEDS), 250) and torch.equal(
        half.train.x, data.train.x[:, :250]
    )
    assert torch.equal(half.test.x, data.test.x)
    end, _ = train(start, half.train, LOSS, seeds=SEEDS, batch=250, target=1.5)
    found = {
        (row["quantity"], row["seed"]): row["value"] for row in train_and_measure(item, silent)
    }
    for lane, seed in enumerate(SEEDS):
        assert found["training loss", seed] == pytest.approx(1.5, abs=1e-5)
        gap = LOSS(end, half.test)[lane] - LOSS(end, half.train)[lane]
        assert found["generalization gap", seed] == pytest.approx(gap.item(), rel=1e-4)


VARIANTS = (
    (10, "plain"),
    (10, "another order"),
    (10, "settled"),
    (500, "plain"),
    (250, "half of the images"),
)


def _table(cosine, gap, *, half=0.05, order=0.0, seeds=16):
    """Return made-up rows with the given differences.

    cosine: how far minibatches of 10 are above the full batch in cosine.
    gap: how far they are below it in the generalization gap.
    half: how far half of the images is above it in the gap.
    order: how far another order is above the first in cosine.
    """
    chance = torch.randn(seeds, generator=torch.Generator().manual_seed(0)).mul(0.001).tolist()
    rows = []
    for seed in range(seeds):
        for batch, variant in VARIANTS:
            values = dict.fromkeys(sgd.MEASURED, 0.5)
            values["cosine"] += cosine * (batch == 10) + (order + chance[seed]) * (
                variant == "another order"
            )
            values["generalization gap"] -= (gap + chance[seed]) * (batch == 10)
            values["generalization gap"] += half * (batch == 250)
            rows += [
                {
                    "batch": batch,
                    "variant": variant,
                    "seed": FIRST_SEED + seed,
                    "quantity": quantity,
                    "value": value,
                }
                for quantity, value in values.items()
            ]
    return pd.DataFrame(rows)


def _verdicts(*effects, **more):
    return judge(sgd.CLAIMS, sgd.evidence(_table(*effects, **more)))


def _decisions(*effects, **more):
    return tuple(verdict.decision for verdict in _verdicts(*effects, **more))


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (2, [2]), (10, [10]), (11, [5, 6]), (40, [10] * 4)]
)
def test_every_seed_is_in_one_part(count, sizes):
    parts = sgd.in_parts(range(count), 10)
    assert [len(part) for part in parts] == sizes
    assert [seed for part in parts for seed in part] == list(range(count))


def test_parts_of_seeds_make_the_table_of_all_in_one(monkeypatch):
    scale, seeds = sgd.Scale(seeds=4, target=1.0, batches=(SMALL, FULL)), (0, 1, 2, 3)
    found = []
    for most in (4, 2):
        monkeypatch.setattr(sgd, "LANES", most)
        parts = [pd.DataFrame(train_and_measure(item, silent)) for item in sgd.items(scale, seeds)]
        found.append(pd.concat(parts, ignore_index=True))
    found[1] = sgd.in_order(found[1])  # the first is in order already
    assert (len(found[0]), found[0].variant.nunique()) == (5 * 8 * 4, 4)
    pd.testing.assert_frame_equal(*found, check_exact=True)


def test_verdicts_on_made_up_tables():
    assert _decisions(0.1, 0.0) == (SUPPORTED, SUPPORTED)
    assert _decisions(-0.1, 0.0) == (REFUTED, SUPPORTED)
    assert _decisions(0.1, 0.01) == (SUPPORTED, REFUTED)
    assert _decisions(0.1, -0.01) == (SUPPORTED, REFUTED)
    assert _decisions(0.1, 0.005) == (SUPPORTED, UNDECIDED)  # at the end of the band
    assert _decisions(0.1, 0.0, seeds=4) == (UNDECIDED, UNDECIDED)


def test_controls_on_made_up_tables():
    alignment, generalization = _verdicts(0.1, 0.0)
    assert (alignment.control, generalization.control) == ("failed", "failed")
    # Both controls do what they must not.
    alignment, generalization = _verdicts(0.1, 0.0, order=0.2, half=0.0)
    assert (alignment.control, generalization.control) == ("passed", "passed")
    assert (alignment.decision, generalization.decision) == (UNDECIDED, UNDECIDED)


def test_what_is_only_shown():
    alignment, generalization = _verdicts(0.1, 0.0)
    assert {case.name for case in alignment.shown} >= {"inner product", "cosine, settled"}
    assert {case.name for case in generalization.shown} >= {"test accuracy", "gap, settled"}


def test_figure_is_the_table():
    table = _table(0.1, 0.2)
    summary = over_seeds(table, ["batch", "variant", "quantity"])
    settings = sgd.SETTINGS | {"seeds": 16, "target": 0.02, "batches": (10, 500)}
    with style():
        figure = draw({"sgd": table, "sgd_summary": summary}, settings)["sgd"]
    assert (
        "cosine 0.600 against 0.500, generalization gap 0.300 against 0.500"
        in figure.get_suptitle()
    )
    line = figure.axes[0].get_lines()[0]
    assert list(line.get_xdata()) == [10, 500]
    assert list(line.get_ydata()) == pytest.approx([0.6, 0.5])
    assert len(sgd.report(summary)) == 2 + len(VARIANTS)
