"""Modules of every kind: none is changed, and each gives what plain torch gives or says why not."""

import collections
import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from analysis.theory.own_model import analyse
from tests.helpers.data import assert_close, normal
from tests.helpers.own_models import Recurrent, near_start, quick, seeded, task

pytestmark = pytest.mark.usefixtures("no_search_for_noise")

ROUND_OFF = 1e-11


# A module's state, before and after.


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(3, 3), nn.Linear(3, 4)
        self.second = self.first

    def forward(self, x):
        return self.out(self.second(self.first(x).tanh()).tanh())


class Caching(nn.Module):
    """A module that keeps activations, counts its calls, and alters its own state.

    It alters lists, options and its own training mode.
    """

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.out = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)
        self.cached, self.calls, self.seen, self.options = (
            None,
            0,
            [],
            {"scale": 1.0, "at": collections.deque()},
        )
        self.register_buffer("running", torch.zeros(5))

    def forward(self, x):
        h = self.norm(self.inner(x)).tanh()
        self.cached = h
        self.calls += 1
        self.seen.append(h)
        self.options["last"] = h
        self.options["at"].append(self.calls)
        with torch.no_grad():
            self.running.mul_(0.9).add_(0.1 * h.mean(0))
        self.norm.momentum = 0.5
        return self.out(h)


ACTIVATIONS = {}


def hooked():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    kept = []
    net[0].register_forward_hook(lambda module, args, output: ACTIVATIONS.update(first=output))
    net[1].register_forward_pre_hook(lambda module, args: kept.append(args))
    net.kept = kept
    return net


def frozen():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    net[0].weight.requires_grad_(False)
    net[2].weight.grad = torch.ones(4, 5)
    return net


def one_norm_twice():
    norm, act = nn.BatchNorm1d(5), nn.PReLU()
    return nn.Sequential(nn.Linear(3, 5), norm, act, nn.Linear(5, 5), norm, act, nn.Linear(5, 4))


def parametrized():
    layers = (
        parametrizations.spectral_norm(nn.Linear(3, 5)),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(5, 4)),
    )
    return nn.Sequential(*layers)


def old_norms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, last = nn.utils.spectral_norm(nn.Linear(3, 5)), nn.utils.weight_norm(nn.Linear(5, 4))
    return nn.Sequential(first, nn.Tanh(), last)


HOLDING = {
    f.__name__: f
    for f in (Shared, Caching, hooked, frozen, one_norm_twice, parametrized, old_norms, Recurrent)
}


def held(thing, depth=0):
    """Return identities and bits of all that can be reached."""
    if isinstance(thing, nn.Module):
        return id(thing), type(thing), [(k, held(v, depth + 1)) for k, v in vars(thing).items()]
    if isinstance(thing, torch.Tensor):
        grad = thing.grad if thing.is_leaf else None
        bits = thing.detach().clone().numpy().tobytes()
        return (
            id(thing),
            type(thing),
            bits,
            thing.requires_grad,
            id(grad),
            None if grad is None else held(grad),
        )
    if isinstance(thing, dict):
        return id(thing), [(held(k, depth + 1), held(v, depth + 1)) for k, v in thing.items()]
    if isinstance(thing, list | tuple | collections.deque):
        return id(thing), [held(v, depth + 1) for v in thing]
    return id(thing), repr(thing) if isinstance(thing, int | float | str) else None


class Failing(Exception):
    pass


def gradient_of_the_module_itself(net, x, y):
    own = [p for p in net.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(net(x), y), own)])


@pytest.mark.parametrize(
    "after", ["an analysis", "an error in the loss", "an error in a derivative"]
)
@pytest.mark.parametrize("name", HOLDING)
def test_the_module_is_as_it_was(name, after):
    net, minibatches = seeded(HOLDING[name]), task()
    calls = 0

    def loss(outputs, labels):
        nonlocal calls
        calls += 1
        if (after == "an error in the loss" and calls == 7) or (
            after == "an error in a derivative" and calls == 31
        ):
            raise Failing
        return F.cross_entropy(outputs, labels)

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    before, data, kept = held(net), held(minibatches), dict(ACTIVATIONS)
    if after == "an analysis":
        found = quick(net, loss, minibatches)
    else:
        with pytest.raises((Failing, NotImplementedError)):
            quick(net, loss, minibatches)
    assert held(net) == before and held(minibatches) == data and kept == ACTIVATIONS
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    if name != "old_norms":  # their weights are not leaves, before or after
        copy.deepcopy(net)
    if after == "an analysis":
        assert found.verdict("g_bar") in ("holds", "stopped gradient") and not found.withheld
        assert_close(found.exact[0], gradient_of_the_module_itself(net, *minibatches[0]), ROUND_OFF)


def test_a_parameter_reached_past_the_module_is_flagged():
    net = seeded(lambda: nn.Linear(3, 4))
    own = list(net.parameters())

    def loss(outputs, labels):
        return F.cross_entropy(outputs, labels) + sum(p.square().sum() for p in own)

    with pytest.warns(UserWarning, match="the module itself has another gradient"):
        found = analyse(net, loss, task(), 1e-3, most_orders=0)
    for name in ("g_bar", "exact", "terms", "avg_grad_inner"):
        assert getattr(found, name).isnan().all() and name in found.withheld


def test_a_penalty_on_the_modules_own_parameters_counts():
    net = seeded(lambda: nn.Linear(3, 4))

    def loss(outputs, labels):
        return F.cross_entropy(outputs, labels) + sum(p.square().sum() for p in net.parameters())

    found = quick(net, loss)
    assert found.distrust == () and found.verdict("g_bar") == "holds"


def test_parameters_in_any_container_of_the_module_are_exchanged():
    class Containers(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)
            self.weights, self.biases = {"w": self.inner.weight}, (self.inner.bias, 0.5)

        def forward(self, x):
            return (x @ self.weights["w"].T + self.biases[0] * self.biases[1]).tanh()

    found = quick(seeded(Containers))
    assert found.distrust == () and found.verdict("terms") == "holds"


def test_what_is_written_through_data_of_a_constant_counts():
    class Writing(nn.Linear):
        def forward(self, x):
            scales = torch.ones(4, dtype=x.dtype)
            scales.data.mul_(2)
            scales.detach().add_(1)
            h = super().forward(x).tanh()
            kept = torch.zeros_like(h)
            kept.data.copy_(h)  # equals h, and torch allows no backward pass through it
            return h * scales + 0 * kept

    found = quick(seeded(lambda: Writing(3, 4)))
    tripled = quick(
        seeded(lambda: nn.Linear(3, 4)), lambda out, y: F.cross_entropy(3 * out.tanh(), y)
    )
    assert found.distrust == ()
    assert_close(found.terms, tripled.terms, ROUND_OFF)


def test_values_that_depend_on_whether_gradients_are_on_are_not_called_noise():
    class Asking(nn.Linear):
        def forward(self, x):
            return super().forward(x).tanh() * (2 if torch.is_grad_enabled() else 1)

    class Wrapped(nn.Linear):
        def forward(self, x):
            h = super().forward(x).tanh()
            return h * (1 + torch._C._functorch.is_functorch_wrapped_tensor(h))

    for kind, how in ((Asking, "without a graph"), (Wrapped, r"in torch\.func")):
        with pytest.raises(
            ValueError, match=f"expected the same value {how} as with gradients, found"
        ):
            quick(seeded(lambda kind=kind: kind(3, 4)))


def test_a_model_that_takes_gradients_itself_is_right():
    """A model that takes gradients itself is right.

    Its outputs are the slopes of an energy, as in physics, which evaluation without a graph lacks.
    """

    class Slopes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(3, 5), nn.Linear(5, 4)

        def forward(self, x):
            h = self.inner(x)
            return self.out(torch.autograd.grad(h.tanh().square().sum(), h, create_graph=True)[0])

    found = quick(seeded(Slopes))
    assert found.distrust == () and found.verdict("exact") == found.verdict("terms") == "holds"


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return 1.05 * g * ctx.saved_tensors[0].cos()


def hooked_inside(h):
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)
    return h.sin()


SUSPECTS = {"the backward pass of Wrong": Wrong.apply, "register_hook in Outermost": hooked_inside}


@pytest.mark.parametrize("name", SUSPECTS)
def test_a_wrong_gradient_in_no_layer_alone_has_suspects(name):
    class Outermost(nn.Linear):
        def forward(self, x):
            return SUSPECTS[name](super().forward(x))

    with pytest.warns(UserWarning, match=f"no layer alone shows it; look at {name}"):
        found = analyse(
            seeded(lambda: Outermost(3, 4)), F.cross_entropy, task(), 1e-3, most_orders=0
        )
    assert {"exact", "terms", "g_bar", "avg_grad_inner"} <= set(found.withheld)


def test_a_gradient_that_is_not_finite_is_refused_with_its_function():
    def root(d):
        return d.square().sum().sqrt()

    model, loss, start = near_start(root)
    with pytest.raises(
        ValueError, match=r"expected a finite gradient, found nan or infinity .*\(sqrt in root"
    ):
        quick(model, loss, parameters=start)


def test_a_hook_that_scales_a_gradient_is_flagged():
    net = seeded(lambda: nn.Linear(3, 4))
    net.weight.register_hook(lambda g: 2 * g)
    with pytest.warns(UserWarning, match="a hook on a parameter"):
        analyse(net, F.cross_entropy, task(), 1e-3, most_orders=0)


def test_data_altered_in_place_is_altered_in_copies():
    class Altering(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(2)).tanh()

    class Doubling(nn.Linear):
        def forward(self, x):
            return super().forward(2 * x).tanh()

    minibatches = task()
    before = held(minibatches)
    found = quick(seeded(lambda: Altering(3, 4)), minibatches=minibatches)
    assert held(minibatches) == before
    assert any("alters its inputs" in note for note in found.notes)
    assert_close(found.terms, quick(seeded(lambda: Doubling(3, 4))).terms, ROUND_OFF)


# Memory that is shared, and state from call to call.


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.b(self.a(x).tanh())


def squared(outputs, _):
    return outputs.square().mean()


def test_parameters_that_share_memory_are_refused_by_name():
    net = seeded(TwoLayers)
    net.b.weight.data = net.a.weight.data
    with pytest.raises(ValueError, match=r"model: .* found a\.weight and b\.weight in the"):
        quick(net, squared)
    net.b.weight = net.a.weight  # one parameter in two places
    assert quick(net, squared).g_bar.shape == (3, 9)


def test_a_buffer_in_a_parameters_memory_is_refused_by_name():
    net = seeded(TwoLayers)
    net.register_buffer("last", net.a.weight.data[2:])
    with pytest.raises(ValueError, match=r"model: .* found a\.weight and last in the same"):
        quick(net, squared)
    net.a.weight.requires_grad_(False)  # constants, which no step moves
    assert quick(net, squared).g_bar.shape == (3, 9)


def test_parts_of_one_memory_that_do_not_overlap_are_apart():
    net, whole = seeded(TwoLayers), normal(18)
    net.a.weight.data, net.b.weight.data = whole[:9].view(3, 3), whole[9:].view(3, 3)
    assert quick(net, squared).distrust == ()


def test_the_same_tensor_twice_in_a_functions_parameters_is_refused_by_name():
    w = normal(3)
    with pytest.raises(
        ValueError, match=r"parameters: expected .* found \['a'\] and \['b'\] in the same"
    ):
        quick(lambda p, x: (p["a"] * x).tanh() * p["b"], parameters={"a": w, "b": w})


class Baseline:
    """A loss with a running mean of its errors."""

    def __init__(self):
        self.mean = 0.0

    def __call__(self, outputs, _):
        value = (outputs - self.mean).square().mean()
        self.mean = self.mean / 2 + outputs.detach().mean() / 2
        return value


CARRYING = {
    "a running mean in the loss": (lambda: nn.Linear(3, 4), Baseline()),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), F.cross_entropy),
}


@pytest.mark.parametrize("name", CARRYING)
def test_a_state_that_moves_the_loss_from_call_to_call_is_named(name):
    make, loss = CARRYING[name]
    found = quick(seeded(make), loss)
    assert "the loss changes its own state from call to call" in found.distrust[-1]


@pytest.mark.parametrize("make", [Caching, one_norm_twice])
def test_a_state_that_moves_no_loss_is_not_named(make):
    assert quick(seeded(make)).distrust == ()
