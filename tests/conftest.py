"""What holds for all tests: hypothesis draws the same examples on every run, however slow the machine.

And the output folder of a finished run, made once for all who only read or copy it.
"""

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
