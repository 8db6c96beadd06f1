"""What the script runs: each module computes tidy tables, judges claims and is drawn by its namesake in figures/."""

from analysis.experiment import Experiment
from analysis.experiments import (
    ablation,
    few_shot,
    inner_products,
    outer,
    overlap,
    rho,
    sgd,
    sine,
    theory,
    validity,
    variance,
    zero_shot,
)

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        theory,
        ablation,
        few_shot,
        inner_products,
        outer,
        overlap,
        rho,
        sgd,
        sine,
        validity,
        variance,
        zero_shot,
    )
}
