"""An experiment's figures: drawn by its namesake in this folder, stamped with the data they come from, and saved."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

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

    data: the line that names data and scale. real: False where the data only stand in for the real ones.
    """
    paths = []
    with style():
        figures = import_module(f"figures.{experiment}").draw(tables, settings)
        for name, figure in figures.items():
            stamp(figure, data, real=real)
            paths += save(figure, folder, name, experiment=experiment)
    return paths
