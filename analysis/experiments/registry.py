"""All experiments by name, in the order in which the script runs them.

`analysis.plugins` adds the user's own.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import pandas as pd

from analysis.experiments.shared.experiment import Experiment

# Tables, settings -> figures.
Draw = Callable[[Mapping[str, pd.DataFrame], Mapping[str, Any]], Mapping[str, Any]]

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
_MODULES = {name: import_module(f"analysis.experiments.{name}") for name in NAMES}
EXPERIMENTS: dict[str, Experiment] = {name: module.EXPERIMENT for name, module in _MODULES.items()}
# How the experiments of plugins are drawn: None where they have no figure.
DRAWN: dict[str, Draw | None] = {}


def takers(option: str) -> list[str]:
    """Return the names of the experiments that take this option, one of `experiment.OPTIONS`."""
    return [name for name, experiment in EXPERIMENTS.items() if option in experiment.options]
