"""Workers: order of results, faults and deaths.

Results come in the order of the items, whichever went first.
An item's fault is raised when the rest is done.
A worker that dies costs the work that it had not yet written down.
"""

import io
import os
import queue
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import pytest

from analysis.runs import workers as runs_workers
from analysis.runs.workers import Lines, Progress, Update, Workers, available_cores


class Threads(Workers):
    """Threads of this process in place of workers: they start at once.

    They serve for what the script's side alone decides.
    """

    def _open(self) -> ThreadPoolExecutor:
        runs_workers._updates = self._updates = queue.Queue()
        return ThreadPoolExecutor(self.count)

    def _close(self, *, stop: bool) -> None:
        self._executor.shutdown()


def twice(item: int, progress: Progress) -> int:
    progress(1)
    return 2 * item


def touch(path: Path, progress: Progress) -> None:
    if path.name == "fault":
        raise OSError("a fault")
    path.touch()


def die_once(path: Path, progress: Progress) -> str:
    """Kill the worker the first time; the second time find what the first wrote down."""
    if path.exists():
        return "resumed"
    path.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die(path: Path, progress: Progress) -> None:
    path.with_suffix(f".{time.monotonic_ns()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_are_in_the_order_of_the_items() -> None:
    with Threads(1, quiet=True) as workers:
        assert workers.map("numbers", twice, [1, 2, 3], sizes=[1, 5, 3]) == [2, 4, 6]


class Screen(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_a_bar_is_for_a_terminal_that_asks_for_it(
    terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    with Threads(1, quiet=quiet) as workers:
        workers.map("numbers", twice, [1], sizes=[1])
    assert ("numbers" in screen.getvalue()) == (terminal and not quiet)


def slowly(item: int, progress: Progress) -> None:
    for _ in range(item):
        time.sleep(0.3)
        progress(1)


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (False, True), (False, False)])
def test_a_log_has_lines(terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(runs_workers, "LINE_SECONDS", 0.5)
    with Threads(1, quiet=quiet) as workers:
        workers.map("numbers", slowly, [4], sizes=[4])
    lines = [
        line for line in screen.getvalue().splitlines() if re.search(r"numbers: .* % after", line)
    ]
    assert bool(lines) == (not terminal and not quiet)
    for line in lines:
        assert re.fullmatch(r"numbers: \d+ % after \d+ s(, about \d+ s left)?", line)


def test_lines_say_how_far_and_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines say how far the work is and how long it will take, by a made-up clock.

    Work done before the clock started does not count in the pace.
    """
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines, resumed = Lines("runs", 100), Lines("more", 100, done=50)
    said = []
    for seconds, show, done in (
        (29, lines, 10), (61, lines, 34), (62, lines, 50), (70, resumed, 50), (100, resumed, 75),
        (200, lines, 100)
    ):  # fmt: skip
        now[0] = 1000.0 + seconds
        show.tell(done)
        said.append(capsys.readouterr().err)
    assert said == [
        "",
        "runs: 34 % after 61 s, about 118 s left\n",
        "",
        "more: 50 % after 70 s\n",
        "more: 75 % after 100 s, about 100 s left\n",
        "",
    ]


def resumed(item: int, progress: Progress) -> None:
    progress(1000 - item, there=True)
    slowly(item, progress)


@pytest.mark.parametrize("terminal", [True, False])
def test_work_that_was_there_says_nothing_about_the_pace(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four units of 0.3 s are left of 1,000: 3 a second are done, and not 1,000 in a moment."""
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(runs_workers, "LINE_SECONDS", 0.4)
    with Threads(1) as workers:
        workers.map("numbers", resumed, [4], sizes=[1000])
    if terminal:
        paces = re.findall(r"([\d.]+) images/s", screen.getvalue())
        assert paces and max(map(float, paces)) < 10
    else:
        assert re.findall(r"about (\d+) s left", screen.getvalue())[0] == "1"
    assert "100%" in screen.getvalue() or not terminal


def main_file(item: int, progress: Progress) -> str | None:
    return getattr(sys.modules["__main__"], "__file__", None)


def test_workers_do_not_load_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not load the script.

    Loading a main module that cannot be run would end a worker before its first item.
    """
    path = tmp_path / "script.py"
    path.write_text("raise SystemExit(3)")
    script = sys.modules["__main__"]
    monkeypatch.setattr(script, "__file__", str(path), raising=False)
    monkeypatch.setattr(script, "__spec__", None)
    with Workers(1, quiet=True) as workers:
        assert workers.map("main modules", main_file, [0]) == [None]
    assert (script.__file__, script.__spec__) == (str(path), None)


def test_a_queue_that_an_interrupt_closed_ends_the_bar() -> None:
    workers = Workers(1)
    workers._updates = get_context("spawn").Queue()
    assert workers._next_update(threading.Event()) == Update(0)
    workers._updates.close()
    assert workers._next_update(threading.Event()) is None


def test_a_fault_waits_for_the_others(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("fault", "a", "b")]
    with pytest.raises(OSError, match="a fault"), Threads(1, quiet=True) as workers:
        workers.map("files", touch, paths)
    assert paths[1].exists() and paths[2].exists()


def test_what_a_killed_worker_left_undone_is_done_by_another(tmp_path: Path) -> None:
    with Workers(1, quiet=True) as workers:
        assert workers.map("deaths", die_once, [tmp_path / "a"]) == ["resumed"]
        assert workers.map("numbers", twice, [1, 2, 3], sizes=[1, 5, 3]) == [2, 4, 6]


def test_repeated_worker_deaths_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_workers, "ATTEMPTS", 2)
    with (
        pytest.raises(BrokenProcessPool, match="deaths: expected workers that live"),
        Workers(1, quiet=True) as workers,
    ):
        workers.map("deaths", die, [tmp_path / "a"])
    assert len(list(tmp_path.iterdir())) == 2


def test_there_must_be_one() -> None:
    with pytest.raises(ValueError, match="count: expected at least 1 worker, found 0"):
        Workers(0)


def test_cores_are_no_more_than_the_containers_share(tmp_path: Path) -> None:
    """The number of cores is at most the container's share.

    cgroup's file holds microseconds of processor time in a period, and the period.
    """
    quota = tmp_path / "cpu.max"
    without = available_cores(quota)
    for text, expected in (
        ("max 100000\n", without),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
    ):
        quota.write_text(text)
        assert available_cores(quota) == expected
