"""Settings of figure 3 (section 6.2), and the run of each of its curves.

Omniglot 5-way 5-shot with plain SGD in both loops, on k disjoint minibatches of 25. The learning
rate is 0.003 on the summed loss. The outer step is annealed linearly from 0.25 to 0 over 40,000
iterations (an average divides by k). Evaluation follows 5 steps of batch 25.
"""

from typing import Any

from reptile_core.meta_gradients import Variant, figure_3
from reptile_core.tasks import Sampling
from reptile_core.training import Inner, Outer, Run

N_WAY = SHOTS = 5
CHANCE = 1 / N_WAY
BATCH = 25
# For the loss summed over a minibatch, as in the authors' code; for the mean it would be 0.075.
LEARNING_RATE = 0.003
OUTER_STEP = 0.25
ITERATIONS = 40_000
EVALUATION_STEPS = 5
EVALUATION = Sampling(n_way=N_WAY, shots=SHOTS, batch=BATCH, steps=EVALUATION_STEPS)
SETTINGS: dict[str, Any] = {
    "n_way": N_WAY,
    "shots": SHOTS,
    "train_shots": "5 k",
    "inner": {
        "optimizer": "sgd",
        "learning_rate": LEARNING_RATE,
        "reduction": "sum",
        "batch": BATCH,
    },
    "outer_step": {"from": OUTER_STEP, "to": 0.0},
    "evaluation_steps": EVALUATION_STEPS,
    "variants": {variant.name: variant.weights for variant in figure_3()},
}


def configure(variant: Variant, seed: int, *, iterations: int = ITERATIONS) -> Run:
    """Return the run of one curve.

    Train shots are 5 k, so that the k minibatches of 25 are disjoint.

    iterations: the length of the schedule. To train only a prefix of it, give the job an `until`.
    """
    return Run(
        network="omniglot",
        sampling=Sampling(n_way=N_WAY, shots=SHOTS * variant.k, batch=BATCH, steps=variant.k),
        weights=variant.weights,
        inner=Inner("sgd", LEARNING_RATE),
        outer=Outer(OUTER_STEP),
        iterations=iterations,
        seed=seed,
    )
