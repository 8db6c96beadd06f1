"""Stopped gradients, kinks and norms of zero: what an analysis names, and its summary."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from analysis.theory.own_model import analyse
from tests.helpers.data import assert_close
from tests.helpers.own_models import near_start, quick, seeded, task

pytestmark = pytest.mark.usefixtures("no_search_for_noise")

ROUND_OFF = 1e-11


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
