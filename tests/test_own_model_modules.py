"""Modules of every kind: none is changed, and each gives what plain torch gives or says why not."""

import collections
import copy
import random
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from analysis.theory.own_model import analyse
from tests.helpers.data import assert_close, generator, normal
from tests.helpers.own_models import quick, seeded, task

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


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.inner, self.out = kind(1, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.inner(x[..., None])[0][:, -1])


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


# How inputs reach a module.


class WithKeywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, input_ids=None, attention_mask=None):
        return {"logits": self.inner(input_ids * attention_mask).tanh()}


class Batch(NamedTuple):
    ids: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Record:
    ids: torch.Tensor
    mask: torch.Tensor


class OfOne(nn.Module):
    """A module that takes a batch of some kind as its only argument."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, batch):
        ids, mask = (
            (batch["ids"], batch["mask"]) if isinstance(batch, dict) else (batch.ids, batch.mask)
        )
        return self.inner(ids * mask).tanh()


class OfTwo(OfOne):
    def forward(self, ids, mask):
        return self.inner(ids * mask).tanh()


class Keywords(OfOne):
    def forward(self, **batch):
        return super().forward(batch)


MASK = (normal(6, 3, seed=4) > 0).double()
INPUTS = {
    "keywords": (OfTwo, lambda x: {"ids": x, "mask": MASK}),
    "any keywords": (Keywords, lambda x: {"mask": MASK, "ids": x}),
    "a user's mapping": (OfTwo, lambda x: collections.UserDict(ids=x, mask=MASK)),
    "a dict": (OfOne, lambda x: {"ids": x, "mask": MASK}),
    "a named tuple": (OfOne, lambda x: Batch(x, MASK)),
    "a named tuple of arguments": (OfTwo, lambda x: Batch(x, MASK)),
    "a data class": (OfOne, lambda x: Record(x, MASK)),
    "a tuple": (OfTwo, lambda x: (x, MASK)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_every_kind(name):
    kind, wrap = INPUTS[name]
    found = quick(seeded(kind), minibatches=[(wrap(x), y) for x, y in task()])

    class Plain(OfOne):
        def forward(self, x):
            return self.inner(x * MASK).tanh()

    assert_close(found.terms, quick(seeded(Plain)).terms, ROUND_OFF)


def test_keywords_and_outputs_in_a_dict():
    minibatches = [({"input_ids": x, "attention_mask": torch.ones_like(x)}, y) for x, y in task()]
    found = quick(
        seeded(WithKeywords), lambda out, y: F.cross_entropy(out["logits"], y), minibatches
    )
    assert found.distrust == () and found.verdict("terms") == "holds"


def test_packed_sequences():
    class Packed(Recurrent):
        def forward(self, sequences):
            assert isinstance(sequences, PackedSequence)
            return self.out(self.inner(sequences)[1][0][0])

    lengths = [4, 2, 1], [3, 2, 2]
    minibatches = [
        (pack_sequence([normal(n, 1, seed=n) for n in ns]), torch.tensor([0, 3, 1]))
        for ns in lengths
    ]
    found = quick(seeded(Packed), minibatches=minibatches)
    assert found.distrust == () and found.verdict("terms") == "holds"


def test_parameters_in_a_data_class():
    @dataclass
    class Weights:
        w: torch.Tensor
        b: torch.Tensor

    net = seeded(lambda: nn.Linear(3, 4))
    found = quick(
        lambda p, x: F.linear(x, p.w, p.b).tanh(),
        parameters=Weights(net.weight.detach(), net.bias.detach()),
    )
    assert_close(found.terms, quick(nn.Sequential(net, nn.Tanh())).terms, ROUND_OFF)
    assert isinstance(found.unflatten(found.avg_grad), Weights)


def test_recurrent_layers_in_float32():
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        net = seeded(lambda kind=kind: Recurrent(kind)).float()
        found = quick(net, minibatches=[(x.float(), y) for x, y in task()])
        assert found.distrust == () and found.exact.dtype == torch.float32


def test_inside_inference_mode_numbers_are_the_same():
    net = seeded(Recurrent)
    expected = quick(net)
    with torch.inference_mode():
        within = quick(net, minibatches=task())
    with torch.no_grad():
        without = quick(net)
    assert_close(within.terms, expected.terms, ROUND_OFF)
    assert_close(without.terms, expected.terms, ROUND_OFF)


# Refusals, which name the layer and the remedy.


def embedding(**options):
    return lambda: nn.Sequential(nn.Embedding(5, 4, **options), nn.Flatten(), nn.Linear(8, 4))


def ids(m=3):
    words = torch.randint(5, (m, 6, 2), generator=generator())
    return list(zip(words, torch.randint(4, (m, 6), generator=generator(1)), strict=True))


def test_embeddings_with_options():
    plain = quick(seeded(embedding()), minibatches=ids())
    assert_close(
        quick(seeded(embedding(sparse=True)), minibatches=ids()).terms, plain.terms, ROUND_OFF
    )
    with pytest.raises(ValueError, match=r"found max_norm in '0' \(Embedding\); set it to None"):
        quick(seeded(embedding(max_norm=1.0)), minibatches=ids())
    with pytest.raises(
        ValueError, match=r"found scale_grad_by_freq in '0' \(Embedding\).*set it to False"
    ):
        quick(seeded(embedding(scale_grad_by_freq=True)), minibatches=ids())
    with pytest.warns(UserWarning, match=r"gradients are stopped: embedding in '0' \(Embedding\)"):
        padded = analyse(
            seeded(embedding(padding_idx=0)), F.cross_entropy, ids(), 1e-3, most_orders=0
        )
    assert padded.verdict("terms") == "holds" and padded.verdict("g_bar") == "stopped gradient"
    assert not padded.unflatten(padded.exact[-1])["0.weight"][0].any()


def test_lazy_layers_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"found '1' \(LazyLinear\) not yet initialized; call the module once"
    ):
        quick(nn.Sequential(nn.Tanh(), nn.LazyLinear(4)).double())


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.inner, self.use_reentrant = nn.Linear(3, 4), use_reentrant

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(
            self.inner, x, use_reentrant=self.use_reentrant
        ).tanh()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_is_refused_by_name(use_reentrant):
    with pytest.raises(
        (ValueError, NotImplementedError), match=r"gradient checkpointing .*in '1|turn off gradient"
    ):
        quick(nn.Sequential(nn.Linear(3, 3), Checkpointed(use_reentrant)).double())


def test_an_error_of_the_module_names_the_layer():
    with pytest.raises(RuntimeError) as caught:
        quick(nn.Sequential(nn.Linear(3, 5), nn.Linear(4, 4)).double())
    assert caught.value.__notes__ == [
        "analyse: this arose in '1' (Linear), with the inputs of minibatch 0"
    ]


def test_whole_numbers_are_asked_for():
    with pytest.raises(
        ValueError,
        match=r"steps: expected a whole number, 1 … 3, the number of minibatches, found 2\.0",
    ):
        quick(seeded(lambda: nn.Linear(3, 4)), steps=2.0)


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


# Stopped gradients.


class SimSiam(nn.Module):
    def __init__(self, stop):
        super().__init__()
        self.f, self.h, self.stop = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 4), stop

    def forward(self, x):
        return self.h(self.f(x)), self.stop(self.f(x + 0.5))


def under_no_grad(h):
    with torch.no_grad():
        return h * 1


STOPS = {
    "detach": lambda h: h.detach(),
    "detach, a function": torch.detach,
    "data": lambda h: h.data,
    "detach_": lambda h: h.detach_(),
    "no_grad": under_no_grad,
}


def similarity(outputs, _):
    return -F.cosine_similarity(*outputs, dim=-1).mean()


@pytest.mark.parametrize("name", STOPS)
def test_a_stopped_gradient_has_one_meaning_and_is_flagged(name):
    net, minibatches, alpha = seeded(lambda: SimSiam(STOPS[name])), task(), 1e-3
    with pytest.warns(UserWarning, match=f"gradients are stopped: {name.split(',')[0]} in SimSiam"):
        found = analyse(net, similarity, minibatches, alpha, most_orders=0)
    own = list(net.parameters())
    start = [p.detach().clone() for p in own]

    def loop(a):
        """Return g_1 … g_k and MAML's gradient, by plain autograd on the module's own functions."""
        first = [s.clone().requires_grad_() for s in start]
        here, gradients = first, []
        for i, (x, y) in enumerate(minibatches):
            values = dict(zip(dict(net.named_parameters()), here, strict=True))
            value = similarity(torch.func.functional_call(net, values, (x,)), y)
            if i + 1 == len(minibatches):
                gradients.append(torch.autograd.grad(value, here, retain_graph=True))
                gradients.append(torch.autograd.grad(value, first))
            else:
                gradients.append(torch.autograd.grad(value, here, create_graph=True))
                here = [p - a * g for p, g in zip(here, gradients[-1], strict=True)]
        return torch.stack([torch.cat([g.detach().flatten() for g in gs]) for gs in gradients])

    assert_close(found.exact, loop(alpha), ROUND_OFF)
    h = 1e-2  # fourth order: truncation 1e-8 of the terms, round-off 1e-16 / h^2
    at = {n: loop(n * h) for n in (-2, -1, 0, 1, 2)}
    first = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)
    second = (16 * (at[1] + at[-1]) - (at[2] + at[-2]) - 30 * at[0]) / (24 * h**2)
    assert_close(found.terms[1:, 1] / alpha, first[1:], 1e-5)
    assert_close(found.terms[1:, 2] / alpha**2, second[1:], 1e-4)
    assert found.verdict("terms") == "holds" and found.verdict("g_bar") == "stopped gradient"


def test_a_stopped_value_that_becomes_a_leaf_is_flagged():
    """A stopped value that becomes a leaf is flagged.

    torch.func makes no leaves, so that terms come from differences.
    """
    net = seeded(lambda: SimSiam(lambda h: h.detach().clone().requires_grad_()))
    with pytest.warns(UserWarning, match="gradients are stopped: detach in SimSiam"):
        found = analyse(net, similarity, task(), 1e-3, most_orders=0)
    expected = quick(seeded(lambda: SimSiam(torch.detach)), similarity)
    assert_close(found.exact, expected.exact, ROUND_OFF)
    assert_close(found.terms[:, 1], expected.terms[:, 1], 1e-6)  # terms come from differences


def test_a_number_taken_out_of_torch_is_flagged():
    class Scaled(nn.Linear):
        def forward(self, x):
            h = super().forward(x).tanh()
            return h * h.mean().item()

    with pytest.warns(UserWarning, match="gradients are stopped: item in Scaled"):
        analyse(seeded(lambda: Scaled(3, 4)), F.cross_entropy, task(), 1e-3, most_orders=0)


def test_a_stop_that_changes_nothing_is_not_flagged():
    class Stable(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            h = h - h.max(-1, keepdim=True).values.detach()  # softmax is the same for any shift
            return h.exp() / h.exp().sum(-1, keepdim=True)

    found = quick(seeded(lambda: Stable(3, 4)))
    assert found.distrust == () and not found.withheld


# Kinks.


def test_kinks_are_named_where_they_spoil_a_slope():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 4)))
    found = analyse(net, F.cross_entropy, task(), 1.0, most_orders=0)
    assert any(
        "kinks lie on the way (relu in '1' (ReLU), where " in note for note in found.notes
    ), found.notes
    assert "relu in '1' (ReLU)" in found.summary()
    smooth = analyse(net, F.cross_entropy, task(), 1e-6, most_orders=0, order=1)
    assert smooth.notes == () and smooth.distrust == ()


def test_a_kink_at_the_very_point_is_flagged():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)))
    nn.init.zeros_(net[0].bias)
    # One input is 0, like black borders.
    minibatches = [(x * (torch.arange(6) > 0)[:, None], y) for x, y in task()]
    with pytest.warns(
        UserWarning, match=r"slope of the loss jumps at this very point \(relu in '1' \(ReLU\)"
    ):
        found = analyse(net, F.cross_entropy, minibatches, 1e-3, most_orders=0)
    assert found.verdict("g_bar") == "kink" and not found.withheld


# The whole analysis.


def test_a_summary_has_five_lines():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)))
    found = quick(net, most_orders=6)
    lines = found.summary().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Checked",
        "Series",
        "Reach",
        "Minibatches",
        "Distrust",
    ]
    assert (
        "nothing is withheld" in lines[0]
        and "MAML -4.00" in lines[3]
        and "nothing that was looked for" in lines[4]
    )


def hinge(outputs, labels):
    return (1 - outputs[:, 0]).clamp(min=0).mean()


def scaled_gradient(h):
    """Return h, with a gradient that is wrong by a factor."""
    if h.requires_grad:
        h.register_hook(lambda g: 1.1 * g)
    return h


def test_a_summary_says_why_a_number_is_not_there():
    net = seeded(lambda: nn.Linear(3, 4))
    flat = quick(net, hinge).summary().splitlines()
    assert flat[2] == "Reach: not known, as the terms of first or of second order are zero."
    first_order = quick(net, order=1).summary().splitlines()
    assert first_order[2] == "Reach: not known, as it needs terms of second order."
    one_step = quick(net, steps=1).summary().splitlines()
    assert one_step[1] == "Series: there is a single step."
    assert one_step[2] == "Reach: not known, as there is a single step."
    wrong = quick(net, lambda o, y: F.cross_entropy(scaled_gradient(o), y))
    assert "g_bar" in wrong.withheld
    withheld = wrong.summary().splitlines()
    assert withheld[1] == "Series: gradients or terms are withheld."
    assert withheld[2] == "Reach: not known, as gradients or terms are withheld."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_smooth_network_in_half_precision_has_no_kinks(dtype):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))).to(dtype)
    found = quick(net, minibatches=[(x.to(dtype), y) for x, y in task()])
    assert set(found.certificate.verdict) <= {"holds", "undecided"}


def test_first_order_explains_nine_tenths_as_far_as_it_says():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)))
    name, reach = quick(net).reach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = analyse(net, F.cross_entropy, task(), reach, most_orders=0).expansion
    explained = float(found[(found.gradient == name) & (found.order == 1)].explained.iloc[0])
    assert 0.8 < explained < 0.95  # terms of third order move it from 0.9


def test_every_quantity_has_agreements_and_a_verdict():
    found = quick(seeded(lambda: nn.Linear(3, 4)), most_orders=6)
    quantities = ["exact", "terms", "g_bar", "gram", "avg_grad", "avg_grad_inner"]
    quantities += ["expansion", "inner_products", "coefficients"]
    assert set(found.certificate.quantity) == set(quantities)
    assert {found.verdict(quantity) for quantity in quantities} == {"holds"}
    assert (found.certificate.agreement <= found.certificate.explained).all()


def near_start(penalty):
    """Return a model with a penalty on its distance from the start, its loss, and the start."""
    net = seeded(lambda: nn.Linear(3, 4))
    start = {name: p.detach().clone() for name, p in net.named_parameters()}

    def model(p, x):
        d = torch.cat([(p[name] - start[name]).flatten() for name in p])
        return F.linear(x, p["weight"], p["bias"]).tanh(), penalty(d)

    return model, lambda outputs, labels: F.cross_entropy(outputs[0], labels) + outputs[1], start


def test_the_square_of_the_norm_of_zero_is_the_sum_of_squares():
    """The square of the norm of zero is analysed as the sum of squares.

    Torch's second derivative of a norm at 0 is 0 or nan (pytorch 92075).
    """
    of_squares, loss, start = near_start(lambda d: d.square().sum())
    right = quick(of_squares, loss, parameters=start)
    found = quick(near_start(lambda d: torch.norm(d) ** 2)[0], loss, parameters=start)
    assert right.distrust == found.distrust == () and found.verdict("terms") == "holds"
    for name in ("exact", "terms", "avg_grad_inner"):
        assert_close(getattr(found, name), getattr(right, name), ROUND_OFF)


def test_the_norm_of_zero_is_withheld_and_named_where_the_power_does_not_know_of_it():
    of_squares, loss, start = near_start(lambda d: d.square().sum())
    right = quick(of_squares, loss, parameters=start)
    apart, _, _ = near_start(lambda d: torch.stack([torch.norm(d)]).square().sum())
    with pytest.warns(UserWarning, match="withheld.*norm in"):
        found = analyse(apart, loss, task(), 1e-3, parameters=start, most_orders=0)
    for ours, theirs in ((found.exact, right.exact), (found.terms, right.terms)):
        finite = ours.isfinite()
        assert not finite.all()
        torch.testing.assert_close(ours[finite], theirs[finite], rtol=1e-9, atol=1e-12)
    assert found.avg_grad_inner.isnan().all()


def test_parametrizations_of_ones_own():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).T

    def make():
        layer = nn.Linear(3, 3)
        parametrize.register_parametrization(layer, "weight", Symmetric())
        return nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 4))

    found = quick(seeded(make))
    assert found.distrust == () and found.verdict("terms") == "holds"
