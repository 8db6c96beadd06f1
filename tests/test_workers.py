"""Workers: results in the order of the items, whichever went first; an item's fault is raised when the rest is done."""

from pathlib import Path

import pytest

from analysis.workers import Progress, Workers


def twice(item: int, progress: Progress) -> int:
    progress(1)
    return 2 * item


def touch(path: Path, progress: Progress) -> None:
    if path.name == "fault":
        raise OSError("a fault")
    path.touch()


def test_results_are_in_the_order_of_the_items() -> None:
    with Workers(1, quiet=True) as workers:
        assert workers.map("numbers", twice, [1, 2, 3], sizes=[1, 5, 3]) == [2, 4, 6]


def test_a_fault_waits_for_the_others(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("fault", "a", "b")]
    with pytest.raises(OSError, match="a fault"), Workers(1, quiet=True) as workers:
        workers.map("files", touch, paths)
    assert paths[1].exists() and paths[2].exists()


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="count: expected at least 1 worker, found 0"):
        Workers(0)
