"""Figures that are drawn while other work goes on.

Plotting libraries take seconds to load, so this module does not load them.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from analysis.experiments.shared.experiment import Experiment, Result
from analysis.plan import Plan


class Drawing:
    """Experiments' figures, drawn one after the other in a thread.

    Its `with` block ends when all are drawn.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._begun: list[Future[list[Path]]] = []

    def __enter__(self) -> "Drawing":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def begin(self, experiment: Experiment, result: Result, plan: Plan) -> None:
        """Queue an experiment's figures for drawing."""
        self._begun.append(self._thread.submit(draw, experiment, result, plan))

    def files(self) -> list[Path]:
        """Return the files of all figures, in order, once they are drawn.

        An error in drawing one is raised here.
        """
        return list(dict.fromkeys(path for figures in self._begun for path in figures.result()))


def draw(experiment: Experiment, result: Result, plan: Plan) -> list[Path]:
    import_module("matplotlib").use("agg")  # others may want the main thread
    return import_module("figures.drawing").draw(
        experiment.name,
        result.tables,
        experiment.settings_in(plan.context_of(experiment)),
        plan.out / "figures",
        data=plan.data_line(experiment, result.data),
        real=plan.is_real(experiment, result.data),
    )
