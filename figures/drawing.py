"""An experiment's figures: drawn by its namesake in this folder or its plugin, stamped with their
data, and saved."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.experiments.registry import DRAWN, Draw
from figures.style import save, stamp, style


def draw(
    experiment: str,
    tables: Mapping[str, pd.DataFrame],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    data: str,
    real: bool,
) -> list[Path]:
    """Draw all figures of an experiment from its tables and settings; return the files in `folder`.

    data: the line that names data and scale. real: False where the data only stand in for the real
    ones.
    """
    paths = []
    with style():
        drawn = DRAWN[experiment] if experiment in DRAWN else _namesake(experiment)
        for name, figure in (drawn(tables, settings) if drawn else {}).items():
            stamp(figure, data, real=real)
            paths += save(figure, folder, name, experiment=experiment)
    return paths


def _namesake(experiment: str) -> Draw:
    drawn: Draw = import_module(f"figures.{experiment}").draw
    return drawn
