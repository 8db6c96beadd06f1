"""How inputs reach a module, in every form, and what is refused by name."""

import collections
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from analysis.theory.own_model import analyse
from tests.helpers.data import assert_close, generator, normal
from tests.helpers.own_models import Recurrent, quick, seeded, task

pytestmark = pytest.mark.usefixtures("no_search_for_noise")

ROUND_OFF = 1e-11


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
