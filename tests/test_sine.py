"""Section 4's sine waves: the paper's settings, training and adaptation against plain loops.

Also the ledger and the figure.
"""

import copy
from dataclasses import replace
from math import pi

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from analysis.experiments import sine, sine_waves
from analysis.results.judge import judge
from analysis.results.tables import over_seeds
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED
from analysis.runs.workers import silent
from figures.sine import draw
from figures.style import style
from reptile_core import philox
from reptile_core.inner_loop import gradient
from reptile_core.losses import Minibatch
from reptile_core.networks import mlp
from reptile_core.philox import Purpose
from tests.helpers.runs import FIRST_SEED

matplotlib.use("Agg")

ITERATIONS = 6
SEEDS = FIRST_SEED, FIRST_SEED + 3


def test_settings_are_the_papers():
    assert sine.SCALES["paper"].iterations == 30_000
    assert set(sine.JUDGED) <= set(sine.SCALES["paper"].networks)
    activations = [sine_waves.NETWORKS[network][0] for network in sine.JUDGED]
    assert activations == ["tanh", "relu"]  # the authors' script uses tanh, the paper ReLU
    assert (sine_waves.POINTS, sine_waves.BATCH) == (50, 10)
    assert (sine_waves.K, sine_waves.TEST_STEPS) == (5, 32)
    assert (sine_waves.LEARNING_RATE, sine_waves.OUTER_STEP) == (0.02, 0.1)
    assert sine_waves.WIDTHS == (1, 64, 64, 1)
    assert sine_waves.grid().tolist() == pytest.approx(np.linspace(-5, 5, 50).tolist(), abs=1e-6)


def test_waves_are_sines_of_the_papers_amplitudes_and_phases():
    waves = sine_waves.draw_waves([0, 1], Purpose.EVALUATION, task=torch.arange(400))
    assert waves.y.shape == (2, 400, 50)
    assert not torch.equal(waves.y[0], waves.y[1])
    assert torch.equal(waves.order.sort(-1).values, torch.arange(50).expand(2, 400, 50))
    # Least squares on sin x and cos x find a sin(x + b), whatever was drawn.
    x = sine_waves.grid().double()
    basis = torch.stack([x.sin(), x.cos()], -1)
    solution = torch.linalg.lstsq(basis, waves.y[0].double().T)
    fitted = basis @ solution.solution
    assert (fitted.T - waves.y[0]).abs().max() < 1e-5
    amplitude = solution.solution.norm(dim=0)
    phase = torch.atan2(solution.solution[1], solution.solution[0]) % (2 * pi)
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, 2 * pi)):
        assert low <= values.min() and values.max() <= high
        # The mean of 400 uniform values is within 4 standard errors of the middle.
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / 12**0.5 / 20


def _module(phi, activation):
    """Return the network as a torch.nn module, whose weights are the transposes of ours."""
    act = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[activation]
    widths = (1, 64), (64, 64), (64, 1)
    layers = [torch.nn.Linear(*w) for w in widths]
    parts = mlp(activation=activation).unflatten(phi)
    for index, layer in enumerate(layers):
        layer.weight.data = parts[f"linear{index}.weight"].T.clone()
        layer.bias.data = parts[f"linear{index}.bias"].clone()
    return torch.nn.Sequential(layers[0], act(), layers[1], act(), layers[2])


def _flat(module):
    return torch.cat(
        [
            part.t().flatten()
            for layer in module[::2]
            for part in (layer.weight.data, layer.bias.data)
        ]
    )


def _sgd_step(module, x, y, step):
    loss = torch.nn.functional.mse_loss(module(x), y)
    grads = torch.autograd.grad(loss, list(module.parameters()))
    for parameter, g in zip(module.parameters(), grads, strict=True):
        parameter.data -= step * g


def test_first_weights_are_pytorchs():
    """Each part of the first weights is as uniform and as wide as torch.nn.Linear's own."""
    network = mlp()
    found = network.unflatten(
        torch.stack([sine_waves.initialize(network, seed, "pytorch") for seed in range(50)])
    )
    torch.manual_seed(0)
    for index, widths in enumerate(((1, 64), (64, 64), (64, 1))):
        layers = [torch.nn.Linear(*widths) for _ in range(50)]
        for part in ("weight", "bias"):
            theirs = torch.stack([getattr(layer, part).detach() for layer in layers])
            ours = found[f"linear{index}.{part}"]
            assert ours.abs().max() <= widths[0] ** -0.5
            # Standard deviations of at least 50 numbers agree to a tenth, or four standard errors.
            assert ours.std().item() == pytest.approx(
                theirs.std().item(), rel=max(0.1, 4 * ours.numel() ** -0.5)
            )
    assert torch.equal(sine_waves.initialize(network, 3, "glorot"), network.initialize(3))


def _wave(seed, purpose, iteration):
    u = philox.uniform(seed, purpose, 52, iteration=iteration)
    a, b = 0.1 + 4.9 * u[0], 2 * pi * u[1]
    x = torch.linspace(-5, 5, 50)
    return x.unsqueeze(1), (a * torch.sin(x + b)).float().unsqueeze(1), u[2:].argsort()


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("name", ["reptile", "joint"])
def test_training_is_the_authors_loop(name, activation):
    """Training is the authors' loop.

    Copy the weights, take five SGD steps, and move a part of the way.
    Joint training takes one step on everything, five times as long.
    """
    found = sine_waves.train(sine_waves.Item(name, activation, ITERATIONS, SEEDS, tasks=1), silent)
    for lane, seed in enumerate(SEEDS):
        phi = sine_waves.initialize(mlp(activation=activation), seed, "pytorch")
        module = _module(phi, activation)
        for iteration in range(ITERATIONS):
            x, y, order = _wave(seed, Purpose.TRAINING, iteration)
            before = copy.deepcopy(module.state_dict())
            if name == "joint":
                _sgd_step(module, x, y, 5 * 0.02)
            else:
                for start in range(0, 50, 10):
                    chosen = order[start : start + 10]
                    _sgd_step(module, x[chosen], y[chosen], 0.02)
            step = 0.1 * (1 - iteration / ITERATIONS)
            after = module.state_dict()
            module.load_state_dict(
                {key: before[key] + (after[key] - before[key]) * step for key in before}
            )
        # In float32, through 6 x 5 steps, sums have another order.
        torch.testing.assert_close(found[lane], _flat(module), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", list(sine.JUDGED))
@pytest.mark.parametrize("size", [10, 50])
def test_gradient_by_hand_is_autograds_to_the_bit(network, size):
    loss = sine_waves.loss_of(network)
    phi = torch.stack([sine_waves.initialize(loss.network, seed, "pytorch") for seed in SEEDS])
    (batch,) = sine_waves.draw_waves(SEEDS, Purpose.TRAINING).minibatches(1, size=size)

    def without_a_gradient_of_its_own(phi, batch):
        return loss(phi, batch)

    for lanes in (slice(None), slice(1), 0):
        here = Minibatch(batch.x[lanes], batch.y[lanes])
        expected = gradient(without_a_gradient_of_its_own, phi[lanes], here)
        assert torch.equal(gradient(loss, phi[lanes], here), expected)


def test_parts_of_the_seeds_have_the_bits_of_the_whole():
    item = sine_waves.Item("reptile", "relu", ITERATIONS, tuple(range(5)), tasks=3)
    together = sine_waves.train_and_adapt(item, silent)
    for lanes in (slice(0, 2), slice(2, 5)):
        part = sine_waves.train_and_adapt(replace(item, seeds=item.seeds[lanes]), silent)
        assert torch.equal(part.squared_error, together.squared_error[:, lanes])


def test_many_seeds_are_several_pieces_of_one_table():
    """Rows are in the order of their seeds, and the picture is of the first seed."""
    seeds = range(FIRST_SEED, FIRST_SEED + sine_waves.LANES + 1)
    work = sine_waves.items(["tanh"], seeds, iterations=1, tasks=2)
    assert {len(item.seeds) for item in work} == {16, 17}  # none is alone
    assert len(work) == 2 * len(sine_waves.INITIALIZATIONS)
    adapted = {item: sine_waves.train_and_adapt(item, silent) for item in work}
    losses = sine.table(adapted)
    for _, part in losses.groupby("initialization"):
        assert list(part.seed.unique()) == list(seeds)
    assert len(sine.picture(adapted)) == 3 * 50 * len(sine.SHOWN)


def test_adaptation_is_plain_sgd_on_ten_points():
    loss = sine_waves.loss_of("tanh")
    phi = torch.stack([loss.network.initialize(seed) for seed in SEEDS])
    adapted = sine_waves.adapt(loss, phi, SEEDS, tasks=3)
    assert adapted.squared_error.shape == (33, 2, 3)
    module = _module(phi[0], "tanh")
    x, y, order = _wave(SEEDS[0], Purpose.EVALUATION, 0)
    for step in range(33):
        f = module(x)
        assert adapted.squared_error[step, 0, 0] == pytest.approx(
            (f - y).square().mean().item(), rel=1e-3
        )
        torch.testing.assert_close(
            adapted.picture[step], f.squeeze(1).detach(), rtol=1e-3, atol=1e-4
        )
        _sgd_step(module, x[order[:10]], y[order[:10]], 0.02)
    assert adapted.energy[0, 0] == pytest.approx(y.square().mean().item())


def test_predicting_zero_leaves_all():
    loss = sine_waves.loss_of("tanh")
    adapted = sine_waves.adapt(loss, torch.zeros(2, loss.network.n_parameters), SEEDS, tasks=4)
    torch.testing.assert_close(adapted.relative[0].mean(-1), torch.ones(2, dtype=torch.float64))
    assert (adapted.relative_standard_error[0] < 1e-6).all()  # whatever the waves, f = 0 leaves all


def test_the_error_over_tasks_is_that_of_a_quotient():
    """It agrees with leaving out one task at a time, and with the spread over many draws.

    The squared errors grow with the energies, as they do for waves. If the energies were taken as
    fixed, the error would be more than twice as large.
    """
    generator = torch.Generator().manual_seed(0)
    tasks, draws = 100, 2000
    energy = torch.rand(draws, tasks, generator=generator) ** 2
    noise = 1 + 0.3 * torch.randn(draws, tasks, generator=generator)
    made_up = sine_waves.Adapted((0.5 * energy * noise)[None], energy, torch.zeros(1, 50))
    found = made_up.relative_standard_error[0]
    without = [torch.arange(tasks) != task for task in range(tasks)]
    e, E = (0.5 * energy * noise)[0].double(), energy[0].double()
    left_out = torch.stack([e[rest].mean() / E[rest].mean() for rest in without])
    jackknife = ((tasks - 1) * left_out.var(unbiased=False)).sqrt()
    assert found[0].item() == pytest.approx(jackknife.item(), rel=0.02)
    spread = made_up.relative[0].mean(-1).std()
    assert found.square().mean().sqrt().item() == pytest.approx(spread.item(), rel=0.05)
    assert (made_up.relative[0].std(-1) / tasks**0.5).mean() > 2 * spread


def _losses(final, seeds=6):
    """Return a made-up table: 1 before the steps, final[initialization] after the last."""
    rows = []
    for name, last in final.items():
        for seed in range(seeds):
            for step, value in ((0, 1.0), (32, last)):
                found = {"value": value + 0.001 * seed, "standard_error": 0.002, "count": 100}
                rows.append(
                    {
                        "network": "tanh",
                        "initialization": name,
                        "seed": FIRST_SEED + seed,
                        "step": step,
                    }
                    | found
                )
    return pd.DataFrame(rows)


def _verdicts(final, seeds=6):
    found = {one.claim.id: one for one in judge(sine.CLAIMS, sine.evidence(_losses(final, seeds)))}
    assert {found.pop(f"{claim}-relu").why for claim in ("sine", "sine-joint")} == {"not measured"}
    return found


def _decisions(final, seeds=6):
    return {name: verdict.decision for name, verdict in _verdicts(final, seeds).items()}


def test_verdicts_on_made_up_losses():
    fits = {"untrained": 0.8, "joint": 0.9, "reptile": 0.03}
    assert _decisions(fits) == {"sine": SUPPORTED, "sine-joint": SUPPORTED}
    assert _decisions(fits | {"reptile": 0.5})["sine"] == REFUTED
    assert _decisions(fits | {"reptile": 0.0975})["sine"] == UNDECIDED
    assert _decisions(fits | {"joint": 0.02})["sine-joint"] == REFUTED
    assert set(_decisions(fits, seeds=4).values()) == {UNDECIDED}


def test_controls_on_made_up_losses():
    """The control fails only if both of Reptile's rivals lose, seed by seed."""
    fits = {"untrained": 0.8, "joint": 0.9, "reptile": 0.03}
    assert _verdicts(fits)["sine"].control == "failed"
    for rival in ("joint", "untrained"):
        assert _verdicts(fits | {rival: 0.03})["sine"].control == "passed"
        assert _decisions(fits | {rival: 0.03})["sine"] == UNDECIDED
    assert _verdicts(fits | {"reptile": 0.9})["sine-joint"].control == "passed"


def test_evidence_holds_the_errors_over_tasks():
    found = sine.evidence(_losses({"untrained": 0.8, "joint": 0.9, "reptile": 0.03}))
    assert set(found.task_error) == {0.002} and set(found.tasks) == {100}
    assert set(found.seed) == set(range(FIRST_SEED, FIRST_SEED + 6)) and len(found) == 5 * 6


def test_figure_is_the_tables():
    losses = _losses({"untrained": 0.8, "joint": 0.9, "reptile": 0.03})
    item = sine_waves.Item("untrained", "tanh", 0, SEEDS, tasks=1)
    untrained = sine_waves.train_and_adapt(item, silent)
    picture = sine.picture({item: untrained})
    assert (picture.seen.sum(), len(picture)) == (10 * len(sine.SHOWN), 50 * len(sine.SHOWN))
    waves = pd.concat([picture.assign(initialization=name) for name in sine_waves.INITIALIZATIONS])
    tables = {
        "sine_picture": waves,
        "sine_intervals": over_seeds(losses, ["network", "initialization", "step"]),
    }
    settings = sine.SETTINGS | {
        "networks": ("tanh",),
        "iterations": 30_000,
        "seeds": 6,
        "tasks": 100,
    }
    with style():
        figures = draw(tables, settings)
    assert figures.keys() == {"sine"}
    title = figures["sine"].get_suptitle()
    assert (
        "32 steps on 10 points" in title
        and "3.2 % from Reptile's initialization, 90 % from joint" in title
    )
    words = figures["sine"].texts[-1].get_text()
    assert "[0.1, 5]" in words and f"seed {SEEDS[0]}" in words
    curves = {
        line.get_label(): list(line.get_ydata()) for line in figures["sine"].axes[3].get_lines()
    }
    assert curves["Reptile"] == pytest.approx([1.0025, 0.0325])
