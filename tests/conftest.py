"""Settings and fixtures for all tests.

Every process uses one thread.
Hypothesis draws the same examples on every run, and the examples have no time limit, as machines
may be slow.
"""

import os

# One thread, as in the script's workers: pytest-xdist occupies every core, and more threads only
# wait for each other. Set before torch is imported, it also holds for processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings

from analysis.runs.job import Source
from tests.helpers.jobs import glyph_source
from tests.helpers.script import finished

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def finished_ablation() -> Path:
    """Return the output folder of a finished ablation, which one run makes for all tests."""
    return finished()


@pytest.fixture(scope="session")
def source() -> Source:
    """Return the synthetic characters, as jobs name them."""
    return glyph_source()


@pytest.fixture
def no_search_for_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the search for random losses, for models whose loss is not random.

    The full search takes half of an analysis.
    """
    from analysis.theory.own_model import analysing, distrust

    monkeypatch.setattr(analysing, "evaluations_against_noise", lambda minibatches: 2)
    monkeypatch.setattr(distrust, "MORE_EVALUATIONS", 2)
