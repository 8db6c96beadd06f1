"""What the script runs: each module computes tidy tables, judges claims and is drawn by its namesake in figures/."""

from analysis.experiment import Experiment
from analysis.experiments import ablation, theory

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (theory.EXPERIMENT, ablation.EXPERIMENT)
}
