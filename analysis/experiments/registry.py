"""All experiments, by name, in the order in which the script runs them."""

from importlib import import_module

from analysis.experiments.shared.experiment import Experiment

NAMES = (
    "theory",
    "ablation",
    "few_shot",
    "inner_products",
    "outer",
    "overlap",
    "rho",
    "sgd",
    "sine",
    "splits",
    "validity",
    "variance",
    "zero_shot",
)
EXPERIMENTS: dict[str, Experiment] = {name: import_module(f"analysis.experiments.{name}").EXPERIMENT for name in NAMES}


def takers(option: str) -> list[str]:
    """Return the names of the experiments that take this option, one of `experiment.OPTIONS`."""
    return [name for name, experiment in EXPERIMENTS.items() if option in experiment.options]
