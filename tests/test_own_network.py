"""Modules of the user's own in the core, against loops of plain torch; images of wrong shapes."""

import copy
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from analysis.runs.advance import execute, execute_together
from analysis.runs.job import Job
from analysis.runs.store import load
from analysis.theory.own_model import analyse
from reptile_core import (
    ImagePool,
    Inner,
    Network,
    Outer,
    Run,
    Sampling,
    evaluate,
    inner_loop,
    last,
    omniglot,
    start,
    sum_of,
    train,
)
from reptile_core.evaluation import accuracies, evaluation_tasks
from reptile_core.lanes import lane, lane_bytes, train_lanes
from reptile_core.losses import CrossEntropy, Minibatch
from reptile_core.networks import check_shape
from reptile_core.tasks import training_stream
from tests.benchmarks import plain
from tests.helpers.data import assert_close, generator, minibatch
from tests.helpers.oracles import flat as as_phi
from tests.helpers.oracles import learned
from tests.helpers.oracles import load as load_phi

SHAPE = 1, 4, 4
LEARN = Sampling(n_way=3, shots=4, batch=6, steps=2)
ALPHA, STEP, ITERATIONS = 0.05, 0.5, 3
ROUND_OFF = 1e-12  # float64: a few steps, the same operations in another order


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double()


def pool(shape=SHAPE, dtype=torch.float64):
    return ImagePool(
        torch.randint(256, (6, 8, *shape), generator=generator(), dtype=torch.uint8),
        dtype,
        white=255,
    )


REPTILE = sum_of(2).weights


def run_of(network, weights=REPTILE, **options):
    return Run(
        network=network,
        sampling=LEARN,
        weights=weights,
        inner=Inner("sgd", ALPHA),
        outer=Outer(STEP),
        iterations=ITERATIONS,
        seed=options.pop("seed", 0),
        dtype="float64",
        **options,
    )


def by_plain_torch(net, weights, images, seed=0):
    """Meta-train by a loop over the module's own parameters.

    MAML's gradient comes from autograd through the steps.
    """
    phi = {name: p.detach().clone() for name, p in net.named_parameters()}
    for iteration, tasks in enumerate(
        training_stream(LEARN, images, seed=seed, iterations=range(3), meta_batch=1)
    ):
        point = begin = {name: p.clone().requires_grad_() for name, p in phi.items()}
        taken = []
        for batch in tasks.minibatches:
            x = images.images.flatten(0, 1)[batch.index[0]].double() / 255
            value = F.cross_entropy(
                functional_call(net, point, (x,)), batch.label[0], reduction="sum"
            )
            taken.append(torch.autograd.grad(value, list(point.values()), create_graph=True))
            before, point = (
                point,
                {n: p - ALPHA * g for (n, p), g in zip(point.items(), taken[-1], strict=True)},
            )
        if weights == "maml":
            value = F.cross_entropy(
                functional_call(net, before, (x,)), batch.label[0], reduction="sum"
            )
            total_of = torch.autograd.grad(value, list(begin.values()))
        else:
            total_of = [
                sum(w * g for w, g in zip(weights, gs, strict=True))
                for gs in zip(*taken, strict=True)
            ]
        eps = STEP * (1 - iteration / ITERATIONS)
        phi = {
            n: p - eps * ALPHA * d.detach() for (n, p), d in zip(phi.items(), total_of, strict=True)
        }
    return torch.cat([p.flatten() for p in phi.values()])


@pytest.mark.parametrize("weights", [sum_of(2).weights, last(2).weights, (-0.5, 1.0), "maml"])
def test_a_module_trains_as_plain_torch_trains_it(weights):
    net = module()
    before = copy.deepcopy(net.state_dict())
    run = run_of(Network.of(net, SHAPE), weights)
    *_, state = train(run, pool(), start(run))
    assert_close(state.phi, by_plain_torch(copy.deepcopy(net), weights, pool()), ROUND_OFF)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("weights", [((1.0, 1.0), (0.0, 1.0)), ("maml", "maml")])
def test_lanes_are_the_runs_one_by_one(weights):
    network = Network.of(module(), SHAPE)
    assert network.together
    runs = [run_of(network, w, seed=seed) for seed, w in enumerate(weights)]
    *_, state = train_lanes(runs, [pool()] * 2, [start(run) for run in runs])
    for index, run in enumerate(runs):
        *_, alone = train(run, pool(), start(run))
        assert_close(lane(state, index).phi, alone.phi, ROUND_OFF)
    assert lane_bytes(runs[0]) > 8 * 6 * 12


def test_evaluation_classifies_as_the_module_does():
    network = Network.of(module(), SHAPE)
    run = run_of(network)
    found = evaluate(run, pool(), start(run), LEARN, range(4), queries=2)["accuracy"]
    drawn = evaluation_tasks(LEARN, pool(), seed=0, tasks=range(4), queries=2)
    loss = CrossEntropy(network, "sum")
    phi = start(run).phi
    lanes = accuracies(
        network, loss, phi, pool(), drawn, run.inner.build(), transductive=False, lanes=3
    )["accuracy"]
    assert torch.equal(found, lanes)
    # Without transduction each query is in a batch of its own, in front of the support set.
    for task in range(4):
        adapted = phi
        for batch in drawn.minibatches:
            mini = pool().minibatch(batch[task])
            net = network.as_module(adapted)
            value = F.cross_entropy(net(mini.x), mini.y, reduction="sum")
            parts = torch.autograd.grad(value, list(net.parameters()))
            adapted = adapted - ALPHA * torch.cat([part.flatten() for part in parts])
        test, support = pool().minibatch(drawn.test[task]), pool().minibatch(drawn.support[task])
        net = network.as_module(adapted)
        predicted = [net(torch.cat([x[None], support.x]))[0].argmax() for x in test.x]
        assert found[task] == (torch.stack(predicted) == test.y).double().mean()


def test_a_run_of_it_is_a_file_that_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "pool", lambda job, part, dtype=None: pool())
    source = type("Source", (), {"identity": "made up"})()
    run = run_of(Network.of(module(), SHAPE))
    jobs = {name: Job(run, source, tmp_path / name, "mine") for name in ("whole", "cut")}
    execute(jobs["whole"])
    execute(replace(jobs["cut"], until=1))
    resumed = replace(jobs["cut"], run=pickle.loads(pickle.dumps(run)))  # as in a worker process
    # The same network made again has the same key.
    assert resumed.key == replace(jobs["cut"], run=run_of(Network.of(module(), SHAPE))).key
    execute_together([resumed])
    found = [load(job).state for job in (jobs["whole"], resumed)]
    assert found[0].iteration == ITERATIONS and torch.equal(found[0].phi, found[1].phi)
    keys = {job.key for job in (jobs["whole"], resumed)}
    other = replace(jobs["whole"], run=run_of(Network.of(module(seed=1), SHAPE)))
    assert len(keys) == 1 and other.key not in keys


def test_the_built_in_network_as_a_module_has_its_gradient():
    """The built-in network as a module has the built-in gradient.

    The module flattens features as channel, height, width, the core as height, width, channel.
    """
    built, batch = omniglot(5), minibatch(batch=6)
    phi = built.initialize(0, dtype=torch.float64)
    net = load_phi(plain.model_of(5).double(), phi)
    with torch.no_grad():
        net[-1].weight.copy_(net[-1].weight.reshape(5, 2, 2, 64).permute(0, 3, 1, 2).flatten(1))
    own = Network.of(net, (1, 28, 28))
    mine = Minibatch(batch.x.unsqueeze(1), batch.y)
    g = own.unflatten(
        inner_loop.gradient(CrossEntropy(own, "sum"), own.initialize(0, dtype=torch.float64), mine)
    )
    parts = {name: g[name] for name in learned(net)}
    parts["17.weight"] = parts["17.weight"].reshape(5, 64, 2, 2).permute(0, 2, 3, 1).flatten(1)
    expected = inner_loop.gradient(CrossEntropy(built, "sum"), phi, batch)
    # Round-off of some hundred sums of some thousand terms each.
    assert_close(as_phi(parts.values()), expected, 1e-11)


class Viewing(nn.Module):
    """A module that takes a view, which needs channels first in memory."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Conv2d(1, 3, 3), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.inner(x).view(len(x), -1))


def test_channels_go_last_in_memory_where_the_module_allows_it():
    assert not Network.of(Viewing(), SHAPE).channels_last
    own = Network.of(module().float(), SHAPE)
    assert own.channels_last
    seen = []
    own._on(torch.device("cpu"), torch.float32)[1].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    phi, x = own.initialize(0), torch.rand(5, *SHAPE, generator=generator())
    assert_close(own(phi, x), own._one(phi, x), 1e-5)  # float32, sums in another order
    assert [each.is_contiguous() for each in seen] == [False, True]


def test_what_was_trained_is_analysed():
    network = Network.of(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3)), SHAPE
    )
    run = run_of(network)
    *_, state = train(run, pool(), start(run))
    minibatches = [(pool().images[:3, i].double() / 255, torch.arange(3)) for i in range(2)]
    found = analyse(network.as_module(state.phi), F.cross_entropy, minibatches, 1e-3, most_orders=0)
    assert found.distrust == () and found.g_bar.shape == (2, network.n_parameters)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x.flatten(1))


class Closure(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 3)
        weight = self.linear.weight
        self.call = lambda x: x.flatten(1) @ weight.T

    def forward(self, x):
        return self.call(x)


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers)


REFUSED = {
    "dropout": (
        lambda: flat(nn.Linear(16, 3), nn.Dropout(0.5)),
        "found noise in '2' \\(Dropout\\); call .eval",
    ),
    "a little dropout": (
        lambda: flat(nn.Linear(16, 3), nn.Dropout(0.001)),
        "found noise in '2' \\(Dropout\\); call .eval",
    ),
    "parameters that are not finite": (
        lambda: load_phi(flat(nn.Linear(16, 3)), torch.full((51,), float("nan"))),
        "expected finite outputs, found others",
    ),
    "another shape": (
        lambda: flat(nn.Linear(9, 3)),
        r"takes: expected the shape of one input .*found \(1, 4, 4\)",
    ),
    "no logits": (
        lambda: nn.Conv2d(1, 2, 3),
        r"module: expected logits \(batch, classes\) of 3 inputs, found shape",
    ),
    "a state": (Counting, "found that it changes calls"),
    "a closure": (Closure, "found none on linear.weight, linear.bias; freeze"),
    "lazy layers": (lambda: flat(nn.LazyLinear(3)), "found lazy layers; call the module once"),
    "nothing to learn": (
        lambda: flat(nn.Linear(16, 3)).requires_grad_(False),
        "parameters that require a gradient",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_of_parameters_and_inputs_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Network.of(make(), SHAPE)


def test_as_many_outputs_as_classes_are_asked_for():
    with pytest.raises(ValueError, match="network: expected 3 outputs, as n_way is, found 5"):
        run_of(Network.of(flat(nn.Linear(16, 5)), SHAPE))
    for network, found in ((nn.Linear(16, 3), "Linear"), (omniglot(3), "Network")):
        with pytest.raises(
            TypeError, match=rf"^network: expected .* as Network.of makes it, found {found}"
        ):
            run_of(network)
    with pytest.raises(
        ValueError, match=r"^activation: expected the default with your own .*, found 'tanh'"
    ):
        run_of(Network.of(flat(nn.Linear(16, 3)), SHAPE), activation="tanh")
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, found function"):
        Network.of(lambda x: x, SHAPE)


# Images.

WRONG_SHAPES = {
    (1, 28, 28): r"found \(1, 28, 28\); images.squeeze\(-3\) drops their single channel",
    (32, 32): r"expected shape \(28, 28\) each for the network omniglot, found \(32, 32\)",
}


@pytest.mark.parametrize("weights", [(1.0, 1.0), "maml"])
@pytest.mark.parametrize("shape", WRONG_SHAPES)
def test_images_of_another_shape_are_named_before_any_work(shape, weights):
    run = replace(run_of("omniglot", weights), dtype="float32")
    state = start(run)
    images = pool(shape, torch.float32)
    calls = (
        lambda: next(train(run, images, state)),
        lambda: next(train_lanes([run], [images], [state])),
        lambda: evaluate(run, images, state, LEARN, range(1)),
        lambda: by_hand(run, images, state.phi),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"images: .*{WRONG_SHAPES[shape]}"):
            call()


def by_hand(run, images, phi):
    drawn = evaluation_tasks(LEARN, images, seed=0, tasks=range(1))
    return CrossEntropy(omniglot(run.sampling.n_way), "sum").gradient(
        phi, images.minibatch(drawn.minibatches[0][0])
    )


@pytest.mark.parametrize(
    "takes, found",
    [
        *(((1, 28, 28), (28, 28)), ((28, 28, 1), (28, 28)), ((28, 28), (28, 28, 1))),
        *(((1, 64), (64,)), ((64, 1), (64,)), ((64,), (1, 64)), ((64,), (64, 1))),
        *(((1, 28, 1), (1, 28)), ((1, 28), (1, 28, 1))),
    ],
    ids=str,
)
def test_the_way_to_add_or_drop_a_channel_leads_there(takes, found):
    images = torch.zeros(6, 8, *found)
    with pytest.raises(ValueError, match="images: expected shape") as error:
        check_shape(takes, found, "mine")
    name, axis = re.search(r"images\.(\w+)\((-\d)\)", str(error.value)).groups()
    assert getattr(images, name)(int(axis)).shape == (6, 8, *takes)


def test_channels_first_and_last_are_told_apart():
    run = replace(run_of("cifar_fs"), dtype="float32")
    with pytest.raises(
        ValueError, match=r"network cifar_fs, .*channels first: images.movedim\(-3, -1\) puts "
    ):
        next(train(run, pool((3, 32, 32), torch.float32), start(run)))
    own = run_of(Network.of(flat(nn.Linear(48, 3)), (3, 4, 4)))
    with pytest.raises(
        ValueError, match=r"channels last: images.movedim\(-1, -3\) puts them first"
    ):
        next(train(own, pool((4, 4, 3)), start(own)))


def test_numpy_arrays_are_taken_and_other_numbers_are_named():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, *SHAPE), np.uint8)
    images.setflags(write=False)
    run = run_of(Network.of(module(), SHAPE))
    pools = [ImagePool(each, torch.float64, white=255) for each in (images, torch.tensor(images))]
    assert torch.equal(*[list(train(run, each, start(run)))[-1].phi for each in pools])
    for wrong in (images.astype(np.uint16), torch.tensor(images).int()):
        with pytest.raises(
            TypeError,
            match=r"images: expected bytes \(uint8\) or floating-point numbers, found .*int",
        ):
            ImagePool(wrong)
    with pytest.raises(
        ValueError, match=r"images: expected \(classes, examples, .*found shape \(6, 8\)"
    ):
        ImagePool(torch.zeros(6, 8))
