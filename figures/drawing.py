"""An experiment's figures: drawn, stamped with their data and saved.

The module of this folder with the experiment's name draws them, or the experiment's plugin.
"""

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
    """Draw all figures of an experiment and return their files, which are in `folder`.

    tables, settings: the experiment's own. data: the line that names data and scale.
    real: False where the data only stand in for the real ones.
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
