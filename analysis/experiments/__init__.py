"""What the script runs: each module computes tidy tables, judges claims and is drawn by its namesake in figures/."""

from importlib import import_module

from analysis.experiment import Experiment

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
