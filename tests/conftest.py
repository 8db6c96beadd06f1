"""What holds for all tests: one thread, and hypothesis draws the same examples on every run,
however slow the machine.

And the output folder of a finished run, made once for all who only read or copy it.
"""

import os

# As in the script's workers: pytest-xdist occupies every core, and threads beyond that only wait
# for each other. Set before torch is imported, it holds for the processes that tests start too.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.script import finished

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def finished_ablation() -> Path:
    """Return the output folder of a finished ablation, which one run makes for all tests."""
    return finished()


@pytest.fixture
def no_search_for_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """For models of one's own that have none: what looks for it takes half of an analysis."""
    from analysis.theory.own_model import analysing, distrust

    monkeypatch.setattr(analysing, "evaluations_against_noise", lambda minibatches: 2)
    monkeypatch.setattr(distrust, "MORE_EVALUATIONS", 2)
