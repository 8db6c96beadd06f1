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
