"""Reptile, FOMAML, MAML and any other sum of inner gradients.

The package holds tasks, networks, the inner loop, meta-training and evaluation. This is Reptile in
plain torch, where `model` is a `torch.nn.Module` and `tasks` holds k minibatches per iteration:

    for iteration, minibatches in enumerate(tasks):
        adapted = copy.deepcopy(model)  # phi_1
        optimizer = torch.optim.SGD(adapted.parameters(), lr=alpha)
        for x, y in minibatches:
            optimizer.zero_grad()
            F.cross_entropy(adapted(x), y, reduction="sum").backward()  # g_i
            optimizer.step()
        eps = step * (1 - iteration / iterations)
        with torch.no_grad():
            for phi, end in zip(model.parameters(), adapted.parameters()):
                phi += eps * (end - phi)  # towards phi_{k+1}

`train` does the same, on tasks that it draws from a pool of images:

    run = Run(
        network="omniglot",
        sampling=Sampling(n_way=5, shots=10, batch=10, steps=5),
        weights=sum_of(5).weights,  # of g_1 + … + g_5
        inner=Inner("sgd", alpha),
        outer=Outer(step),
        iterations=iterations,
        seed=0,
    )
    for state in train(run, pool, start(run)):
        pass

To train your own module, replace "omniglot" by `Network.of(model, takes=(1, 28, 28))`.

Other weights are other algorithms: `last(5).weights` is FOMAML, "maml" is MAML. `state.phi` holds
the parameters of `model` as one vector. `evaluate` returns the accuracy of a state on each of many
test tasks, `estimate` their mean with its standard error.
"""

from reptile_core.evaluation import estimate
from reptile_core.meta_gradients import Variant, average, figure_3, last, maml, sum_of, weighted_sum
from reptile_core.networks import Network, mini_imagenet, omniglot
from reptile_core.tasks import ImagePool, Sampling
from reptile_core.training import Inner, Outer, Run, evaluate, start, train

__all__ = [
    "ImagePool",
    "Inner",
    "Network",
    "Outer",
    "Run",
    "Sampling",
    "Variant",
    "average",
    "estimate",
    "evaluate",
    "figure_3",
    "last",
    "maml",
    "mini_imagenet",
    "omniglot",
    "start",
    "sum_of",
    "train",
    "weighted_sum",
]
