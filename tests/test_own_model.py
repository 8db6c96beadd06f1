"""Models of the user's own against networks written by hand.

The latter take dense Hessians or double backward passes of plain autograd.
"""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from analysis.theory.own_model import analyse, analysing, losses
from tests.helpers.data import assert_close, generator, normal

pytestmark = pytest.mark.usefixtures("no_search_for_noise")

# In float64; MAML's remainders and third derivatives are differences of larger numbers.
ROUND_OFF = 1e-10
SMALL = 1e-3  # at this rate each term is at most a hundredth of the one before


def layer_norm_mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4))


def transformer_block():
    return nn.TransformerEncoderLayer(
        4, nhead=2, dim_feedforward=6, dropout=0.0, activation="gelu", batch_first=True
    )


def convolutions():
    layers = (
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Softplus(),
        nn.Conv2d(4, 2, 3),
        nn.GroupNorm(1, 2),
        nn.Tanh(),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4))


class Tied(nn.Module):
    """A network of words in and words out with one shared matrix; the middle bias is frozen."""

    def __init__(self):
        super().__init__()
        self.embed, self.middle, self.out = (
            nn.Embedding(4, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 4, bias=False),
        )
        self.out.weight = self.embed.weight
        self.middle.bias.requires_grad_(False)

    def forward(self, words):
        return self.out(self.middle(self.embed(words)).tanh())


def batch_norm_net(**options):
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, **options), nn.Tanh(), nn.Linear(5, 4))


def made(make, seed=0):
    """Make a module in float64 whose parameters are all random, also norms' scales and shifts.

    These begin at 1 and 0.
    """
    torch.manual_seed(seed)  # torch's own initialization takes no generator
    network, g = make().double(), generator(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return network


def labelled(count, *shape, seed=0):
    g = generator(seed)
    inputs = torch.randn(count, 6, *shape, generator=g, dtype=torch.float64)
    return list(zip(inputs, torch.randint(4, (count, 6), generator=g), strict=True))


def sequences(count, seed=0):
    return list(
        zip(normal(count, 3, 5, 4, seed=seed), normal(count, 3, 5, 4, seed=seed + 1), strict=True)
    )


def words(count):
    return [tuple(pair) for pair in torch.randint(4, (count, 2, 9), generator=generator())]


# By hand: the two networks as functions of a flat vector, and the paper's terms as sums over
# minibatches.


def cut(phi, *shapes):
    parts = phi.split([torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def normalize(x, scale, shift):
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    return (
        scale * centred / ((centred**2).sum(-1, keepdim=True) / x.shape[-1] + 1e-5) ** 0.5 + shift
    )


def softmax(x):
    return x.exp() / x.exp().sum(-1, keepdim=True)


def mlp_by_hand(phi, x, y):
    w, b, scale, shift, out, out_bias = cut(phi, (5, 3), (5,), (5,), (5,), (4, 5), (4,))
    logits = torch.tanh(normalize(x @ w.T + b, scale, shift)) @ out.T + out_bias
    return -softmax(logits)[range(len(y)), y].log().mean()


def block_by_hand(phi, x, y):
    shapes = [(12, 4), (12,), (4, 4), (4,), (6, 4), (6,), (4, 6), (4,), (4,), (4,), (4,), (4,)]
    qkv, qkv_bias, out, out_bias, up, up_bias, down, down_bias, *norms = cut(phi, *shapes)
    q, k, v = (x @ qkv.T + qkv_bias).split(4, -1)
    heads = [slice(0, 2), slice(2, 4)]
    mixed = [softmax(q[..., h] @ k[..., h].transpose(-1, -2) / 2**0.5) @ v[..., h] for h in heads]
    x = normalize(x + torch.cat(mixed, -1) @ out.T + out_bias, *norms[:2])
    hidden = x @ up.T + up_bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return ((normalize(x + hidden @ down.T + down_bias, *norms[2:]) - y) ** 2).mean()


def gradient(loss, phi):
    phi = phi.clone().requires_grad_()
    return torch.autograd.grad(loss(phi), phi)[0]


def by_double_backward(loss, phi, *vectors):
    """Return L'' u, or L'''[u, v], by repeated backward passes."""
    phi = phi.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(phi), phi, create_graph=True)
    for v in vectors:
        (g,) = torch.autograd.grad(g @ v, phi, create_graph=True)
    return g.detach()


def by_dense_hessian(loss, phi, u):
    return (
        torch.stack(
            [by_double_backward(loss, phi, e) for e in torch.eye(len(phi), dtype=phi.dtype)]
        )
        @ u
    )


def by_hand(losses, phi, alpha, product):
    """Return (exact, terms) of g_1 … g_k and MAML, from the paper's sums.

    MAML's exact gradient comes from autograd through the loop.
    """
    k, zero = len(losses), torch.zeros_like(phi)
    g_bar = [gradient(loss, phi) for loss in losses]
    s = [sum(g_bar[:i], zero) for i in range(k)]
    hs = [product(loss, phi, s_i) for loss, s_i in zip(losses, s, strict=True)]
    terms = []
    for i, loss in enumerate(losses):
        second = (
            product(loss, phi, sum(hs[:i], zero)) + by_double_backward(loss, phi, s[i], s[i]) / 2
        )
        terms.append([g_bar[i], -alpha * hs[i], alpha**2 * second])
    # MAML's terms: prod_{j<k} (I - alpha L_j''(phi_j)) g_k is multiplied out, with
    # L_j''(phi_j) = H_j - alpha T_j[s_j] + ….
    last, first, second = g_bar[-1], -hs[-1], terms[-1][2] / alpha**2
    for j in range(k - 1):
        first = first - product(losses[j], phi, last)
        second = (
            second
            + by_double_backward(losses[j], phi, s[j], last)
            + product(losses[j], phi, hs[-1])
        )
        for between in range(j + 1, k - 1):
            second = second + product(losses[j], phi, product(losses[between], phi, last))
    terms.append([last, alpha * first, alpha**2 * second])

    exact, point, start = [], phi, phi.clone().requires_grad_()
    for loss in losses:
        exact.append(gradient(loss, point))
        point = point - alpha * exact[-1]
    moved = start
    for loss in losses[:-1]:
        moved = moved - alpha * torch.autograd.grad(loss(moved), moved, create_graph=True)[0]
    exact.append(torch.autograd.grad(losses[-1](moved), start)[0])
    return torch.stack(exact), torch.stack([torch.stack(series) for series in terms])


CASES = {
    "LayerNorm MLP": (
        layer_norm_mlp,
        F.cross_entropy,
        labelled(4, 3),
        mlp_by_hand,
        by_dense_hessian,
    ),
    "transformer block": (
        transformer_block,
        F.mse_loss,
        sequences(4),
        block_by_hand,
        by_double_backward,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_everything_against_a_network_by_hand(case):
    make, loss, minibatches, hand, product = CASES[case]
    network, alpha, k = made(make), 0.05, 3
    found = analyse(network, loss, minibatches, alpha, steps=k, most_orders=0)
    phi = torch.cat([p.detach().flatten() for p in network.parameters()])
    losses = [lambda p, x=x, y=y: hand(p, x, y) for x, y in minibatches]
    exact, terms = by_hand(losses[:k], phi, alpha, product)
    assert found.names == ("g_1", "g_2", "g_3", "MAML")
    for row in range(k + 1):
        assert_close(found.exact[row], exact[row], ROUND_OFF)
        for n in range(3):  # the first step has no terms beyond order 0
            torch.testing.assert_close(
                found.terms[row, n], terms[row, n], rtol=ROUND_OFF, atol=1e-14
            )

    g_bar = torch.stack([gradient(loss, phi) for loss in losses])
    assert_close(found.g_bar, g_bar, ROUND_OFF)
    assert_close(
        found.gram, torch.stack([torch.stack([a @ b for a in g_bar]) for b in g_bar]), ROUND_OFF
    )
    assert_close(found.avg_grad, sum(g_bar) / 4, ROUND_OFF)
    pairs = [product(losses[b], phi, g_bar[a]) for a in range(4) for b in range(4) if a != b]
    assert_close(found.avg_grad_inner, sum(pairs) / 12, ROUND_OFF)

    table = found.expansion.set_index(["gradient", "order"])
    for row, name in enumerate(found.names):
        for n in range(3):
            rest = exact[row] - terms[row, : n + 1].sum(0)
            line = table.loc[(name, n)]
            assert line["remainder"] == pytest.approx(float(rest.norm()), rel=1e-8, abs=1e-14)
            assert line["relative"] == pytest.approx(
                float(rest.norm() / exact[row].norm()), rel=1e-8, abs=1e-14
            )
            assert line["term"] == pytest.approx(float(terms[row, n].norm()), rel=1e-8, abs=1e-14)
            if row:
                moved = exact[row] - terms[row, 0]
                assert line["explained"] == pytest.approx(
                    1 - float(rest.square().sum() / moved.square().sum()), rel=1e-8
                )
    for line in found.inner_products.itertuples():
        a, b = g_bar[line.i - 1], g_bar[line.j - 1]
        assert line.inner_product == pytest.approx(float(a @ b), rel=1e-9)
        assert line.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), rel=1e-9)
    assert len(found.inner_products) == 10


NETWORKS = {
    "LayerNorm MLP": (layer_norm_mlp, labelled(3, 3)),
    "convolutions with GroupNorm": (convolutions, labelled(3, 1, 6, 6)),
    "tied and frozen": (Tied, words(3)),
    "batch norm in evaluation": (lambda: batch_norm_net().eval(), labelled(3, 3)),
}


def entropy(logits, labels):
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def slopes(analysis):
    """Return the slopes of all gradients but g_1, which equals g_bar_1."""
    table = analysis.expansion
    return table[table.gradient != "g_1"].pivot(index="gradient", columns="order", values="slope")


@pytest.mark.parametrize("name", NETWORKS)
def test_remainders_fall_with_the_next_power_of_alpha(name):
    make, minibatches = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = slopes(analyse(made(make), entropy, minibatches, SMALL, most_orders=0))
    # The next term moves the slope, log2 of a ratio, by about alpha times a ratio of terms: some
    # tens.
    assert (found - [1, 2, 3]).abs().to_numpy().max() < 0.05, found


@pytest.mark.parametrize("train", [True, False])
def test_a_transformer_in_training_or_evaluation(train):
    block = made(transformer_block).train(train)
    found = slopes(analyse(block, F.mse_loss, sequences(2), SMALL, most_orders=0))
    assert (found - [1, 2, 3]).abs().to_numpy().max() < 0.05, found


def test_the_slope_shows_torchs_own_third_derivatives_to_be_wrong(monkeypatch):
    """The slope shows torch's own third derivatives to be wrong.

    This is the control.
    With torch's layer norm the second-order term is wrong, and its remainder falls as alpha^2 only.
    """
    monkeypatch.setattr(losses, "right_derivatives", nullcontext)
    found = slopes(
        analyse(made(layer_norm_mlp), entropy, labelled(3, 3), SMALL, most_orders=0, certify=False)
    )
    assert (found[[0, 1]] - [1, 2]).abs().to_numpy().max() < 0.05, found
    assert found[2].max() < 2.5, found


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"track_running_stats": False}],
    ids=["usual", "cumulative", "no statistics"],
)
def test_batch_norm_is_named_right_and_left_as_it_was(options):
    network = made(lambda: batch_norm_net(**options))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.warns(
        UserWarning, match=r"by the statistics of the input in '1' \(BatchNorm1d\)\. In torch 2\.13"
    ):
        found = slopes(analyse(network, entropy, labelled(3, 3), SMALL, most_orders=0))
    assert (found - [1, 2, 3]).abs().to_numpy().max() < 0.05, found
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters()) and network.training


def test_every_layer_with_statistics_of_the_input_is_named():
    class Mine(nn.BatchNorm2d):
        pass

    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), Mine(2), nn.Sequential(nn.InstanceNorm2d(2)), nn.BatchNorm2d(2).eval()
    )
    model = made(lambda: nn.Sequential(network, nn.Flatten(), nn.Linear(32, 4)))
    named = r"in '0.1' \(Mine\), '0.2.0' \(InstanceNorm2d\)\. In"
    with pytest.warns(UserWarning, match=named) as caught:
        analyse(model, entropy, labelled(2, 1, 6, 6), SMALL, order=0, most_orders=0)
    assert caught[0].filename == __file__


def test_coefficients_are_the_theorems_for_small_alpha():
    found = analyse(made(layer_norm_mlp), F.cross_entropy, labelled(3, 3), SMALL, order=0)
    assert found.left_out == ""
    table = found.coefficients.pivot(index="update", columns="term", values="measured")
    assert table["AvgGrad"].to_dict() == pytest.approx(
        {"MAML": 1, "FOMAML": 1, "Reptile": 3}, abs=1e-6
    )
    assert table["AvgGradInner"].to_dict() == pytest.approx(
        {"MAML": -4, "FOMAML": -2, "Reptile": -3}, abs=1e-4
    )
    assert table["unexplained"].abs().max() < 1e-4
    assert (found.coefficients.predicted - found.coefficients.measured).abs().max() < 1e-4


def test_coefficients_of_a_large_pool_are_left_out_with_the_reason():
    found = analyse(
        made(layer_norm_mlp),
        F.cross_entropy,
        labelled(5, 3),
        SMALL,
        steps=3,
        order=0,
        most_orders=59,
    )
    assert found.left_out == "60 ordered choices of 3 of 5 minibatches, above 59"
    assert found.coefficients.empty and found.verdict("coefficients") == "not checked"


def test_coefficients_are_the_theorems_at_a_rate_that_is_too_large_for_the_series():
    """They are those in the limit alpha -> 0, whatever alpha is; the notes speak of alpha."""
    found = analyse(made(layer_norm_mlp), F.cross_entropy, labelled(3, 3), 2.0, order=0)
    assert (found.coefficients.predicted - found.coefficients.measured).abs().max() < 1e-4
    assert found.verdict("coefficients") == "holds"


def test_coefficients_that_the_step_moves_are_undecided(monkeypatch):
    monkeypatch.setattr(analysing, "SHARP", 0.0)
    found = analyse(made(layer_norm_mlp), F.cross_entropy, labelled(3, 3), SMALL, order=0)
    assert found.verdict("coefficients") == "undecided"
    assert "hide whether coefficients are right" in found.notes[0]


@pytest.mark.parametrize("width", [1, 6])
def test_coefficients_of_parallel_terms_are_left_out_with_the_reason(width):
    """In |phi - y|^2 / 2 the Hessian is the identity, and one parameter has one direction."""
    minibatches = [(y, y) for y in normal(3, 4, width)]
    found = analyse(
        lambda phi, _: phi,
        lambda o, y: (o - y).square().sum(-1).mean() / 2,
        minibatches,
        SMALL,
        parameters=normal(width, seed=1),
    )
    assert_close(found.avg_grad_inner, found.avg_grad, ROUND_OFF)
    assert found.left_out == "AvgGrad and AvgGradInner are parallel here, or one of them is zero"
    assert found.coefficients.empty and found.left_out in found.summary()


def test_coefficients_at_a_stationary_point_are_left_out_with_the_reason():
    found = analyse(
        lambda phi, x: phi * x.mean(),
        lambda o, _: o.square().mean(),
        [(x, x) for x in normal(3, 4)],
        SMALL,
        parameters=torch.zeros(2, dtype=torch.float64),
    )
    assert not found.g_bar.any()
    assert found.coefficients.empty and "one of them is zero" in found.left_out


def test_a_function_of_parameters_and_a_complete_loss_give_what_the_module_gives():
    network, minibatches = made(layer_norm_mlp), labelled(3, 3)
    of_module = analyse(network, F.cross_entropy, minibatches, SMALL)

    def forward(parameters, x):
        (w, b), rest = parameters["first"], parameters["rest"]
        return F.linear(F.layer_norm(F.linear(x, w, b), (5,), *rest[:2]).tanh(), *rest[2:])

    w, b, *rest = network.parameters()
    parameters = {"first": (w, b), "rest": rest}
    of_function = analyse(forward, F.cross_entropy, minibatches, SMALL, parameters=parameters)
    of_loss = analyse(
        lambda values, batch: F.cross_entropy(forward(values, batch["x"]), batch["y"]),
        lambda value, _: value,
        [({"x": x, "y": y}, None) for x, y in minibatches],
        SMALL,
        parameters=parameters,
    )
    for other in (of_function, of_loss):
        assert_close(other.exact, of_module.exact, ROUND_OFF)
        torch.testing.assert_close(other.terms, of_module.terms, rtol=ROUND_OFF, atol=1e-14)
        assert (other.coefficients.measured - of_module.coefficients.measured).abs().max() < 1e-9


def test_vectors_go_back_into_the_models_own_structure():
    network = made(Tied)
    found = analyse(network, entropy, words(2), SMALL, order=0)
    back = found.unflatten(found.avg_grad)
    assert list(back) == ["embed.weight", "middle.weight"]  # tied weights once, frozen ones never
    sum(entropy(network(x), y) / 2 for x, y in words(2)).backward()
    assert_close(back["embed.weight"], network.embed.weight.grad, ROUND_OFF)
    assert_close(back["middle.weight"], network.middle.weight.grad, ROUND_OFF)


def test_several_inputs_batches_of_other_sizes_and_float32():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Bilinear(2, 3, 1)

        def forward(self, a, b):
            return self.mix(a, b)

    torch.manual_seed(0)
    batches = [((torch.randn(n, 2), torch.randn(n, 3)), torch.randn(n, 1)) for n in (4, 4, 3)]
    found = analyse(Two(), nn.MSELoss(), batches, SMALL)
    assert {t.dtype for t in (found.exact, found.terms, found.gram, found.avg_grad_inner)} == {
        torch.float32
    }
    assert slopes(found)[0].tolist() == pytest.approx([1, 1, 1], abs=0.05)


X, Y = labelled(1, 3)[0]
PAIRS = labelled(2, 3)


def call(**changed):
    usable = {
        "model": made(layer_norm_mlp),
        "loss": F.cross_entropy,
        "minibatches": PAIRS,
        "alpha": SMALL,
    }
    return analyse(**{**usable, **changed})


def linear(parameters, x):
    return x @ parameters["w"]


W = {"w": normal(3, 4)}
ERRORS = {
    "alpha 0": ({"alpha": 0.0}, ValueError, "alpha: expected a finite number above 0, found 0.0"),
    "alpha below": ({"alpha": -1}, ValueError, "alpha: .* found -1"),
    "alpha nan": ({"alpha": float("nan")}, ValueError, "alpha: .* found nan"),
    "alpha infinite": ({"alpha": float("inf")}, ValueError, "alpha: .* found inf"),
    "alpha a string": ({"alpha": "0.1"}, TypeError, "alpha: expected a number, found str"),
    "alpha true": ({"alpha": True}, TypeError, "alpha: expected a number, found bool"),
    "alpha a tensor": (
        {"alpha": torch.tensor(0.1)},
        TypeError,
        "alpha: expected a number, found Tensor",
    ),
    "order above": ({"order": 3}, ValueError, "order: expected 0 … 2, found 3"),
    "order below": ({"order": -1}, ValueError, "order: .* found -1"),
    "order half": ({"order": 1.5}, ValueError, "order: .* found 1.5"),
    "steps 0": (
        {"steps": 0},
        ValueError,
        "steps: expected 1 … 2, the number of minibatches, found 0",
    ),
    "steps above": ({"steps": 3}, ValueError, "steps: .* found 3"),
    "no minibatches": (
        {"minibatches": []},
        ValueError,
        "minibatches: expected at least 2, found 0",
    ),
    "one minibatch": (
        {"minibatches": PAIRS[:1]},
        ValueError,
        "minibatches: expected at least 2, found 1",
    ),
    "no pairs": (
        {"minibatches": [X, X]},
        TypeError,
        r"minibatches: expected pairs .*found torch.float64\[\*, 3\] in .* 0",
    ),
    "other structure": (
        {"minibatches": [(X, Y), ({"x": X}, Y)]},
        ValueError,
        r"minibatches: expected all like the first, \(torch.float64\[\*, 3\], torch.int64\[\*\]\), "
        r"found \(\{x: torch.float64\[\*, 3\]\}, torch.int64\[\*\]\) in minibatch 1",
    ),
    "other shape": (
        {"minibatches": [(X, Y), (X[:, :2], Y)]},
        ValueError,
        r"minibatches: .* found .*\[\*, 2\]",
    ),
    "other dtype": (
        {"minibatches": [(X, Y), (X, Y.int())]},
        ValueError,
        "minibatches: .* found .*int32.* in minibatch 1",
    ),
    "inputs not in the parameters' dtype": (
        {"minibatches": [(X.float(), Y)] * 2},
        ValueError,
        r"minibatches: expected the parameters' torch.float64 \(or integers\) on cpu, "
        r"found torch.float32 on cpu",
    ),
    "inputs elsewhere": (
        {"minibatches": [(X.to("meta"), Y)] * 2},
        ValueError,
        "minibatches: .* on cpu, found .* on meta",
    ),
    "loss a number": (
        {"loss": lambda o, t: 1.0},
        TypeError,
        "loss: expected a scalar tensor, found float on minibatch 0",
    ),
    "loss a vector": (
        {"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")},
        ValueError,
        r"loss: expected a scalar, such as a mean, found shape \(6,\)",
    ),
    "loss in float32": (
        {"loss": lambda o, t: o.float().mean()},
        ValueError,
        "loss: .* torch.float64, found torch.float32",
    ),
    "loss nan": (
        {"loss": lambda o, t: o.mean().abs().neg().sqrt()},
        ValueError,
        "loss: expected a finite number, found nan",
    ),
    "loss constant": (
        {"loss": lambda o, t: normal(1).sum()},
        ValueError,
        "loss: expected a function of the parameters, found none of them in it on minibatch 0",
    ),
    "loss random": (
        {"loss": lambda o, t: F.cross_entropy(F.dropout(o), t)},
        ValueError,
        "loss: expected the same value each time, found .* is there dropout",
    ),
    "gradients that blow up": (
        {"loss": lambda o, t: o.square().mean().exp(), "alpha": 1e10},
        ValueError,
        "alpha: expected one at which all gradients stay finite, found 10000000000.0: g_2",
    ),
    "model a number": (
        {"model": 1},
        TypeError,
        "model: expected a torch.nn.Module or a function, found int",
    ),
    "function without parameters": (
        {"model": linear},
        ValueError,
        "parameters: expected those to give .* found None",
    ),
    "module and parameters": (
        {"parameters": W},
        ValueError,
        "parameters: expected None with a torch.nn.Module",
    ),
    "all frozen": (
        {"model": made(layer_norm_mlp).requires_grad_(False)},
        ValueError,
        "parameters: expected at least one that requires a gradient, found none",
    ),
    "parameters no tensors": (
        {"model": linear, "parameters": {"w": [1.0]}},
        TypeError,
        r"parameters: expected tensors, found float at \['w'\]\[0\]",
    ),
    "parameters integer": (
        {"model": linear, "parameters": {"w": torch.ones(3, 4, dtype=torch.int64)}},
        TypeError,
        r"parameters: expected real floating-point numbers, found torch.int64 at \['w'\]",
    ),
    "parameters complex": (
        {"model": linear, "parameters": {"w": torch.ones(3, 4, dtype=torch.complex128)}},
        TypeError,
        "parameters: .* found torch.complex128",
    ),
    "parameters mixed": (
        {"model": linear, "parameters": {**W, "b": torch.ones(4)}},
        ValueError,
        (
            "parameters: expected one dtype and device, found torch.float32 on cpu, torch.float64 "
            "on cpu"
        ),
    ),
    "parameters elsewhere": (
        {"model": linear, "parameters": {**W, "b": normal(4).to("meta")}},
        ValueError,
        (
            "parameters: expected one dtype and device, found torch.float64 on cpu, torch.float64 "
            "on meta"
        ),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_unusable_arguments_are_named(case):
    changed, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call(**changed)


@pytest.mark.parametrize(
    "layer, named",
    [
        (nn.Dropout(0.1), r"'1' \(Dropout\)"),
        (nn.RReLU(), r"'1' \(RReLU\)"),
        (
            nn.TransformerEncoderLayer(4, 2, 6),
            r"'1.self_attn' \(MultiheadAttention\), '1.dropout' \(Dropout\), ",
        ),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.1), r"'1' \(LSTM\)"),
    ],
)
def test_random_layers_in_training_are_refused_by_name(layer, named):
    with pytest.raises(ValueError, match="model: .* found random layers in training: " + named):
        call(model=nn.Sequential(nn.Linear(3, 4), layer).double())


def test_dropout_in_evaluation_or_of_nothing_is_no_noise():
    quiet = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5).eval(), nn.Dropout(0.0)).double()
    assert call(model=quiet, order=0).left_out == ""
