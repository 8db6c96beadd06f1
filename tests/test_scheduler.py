"""A Dask cluster as the place of work.

A scheduler and two workers, in processes of their own, give the bits of local ones.
A worker that is killed costs its run in flight.
Work that nobody waits for is abandoned, and faults are one line.
"""

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import reproduce
from analysis.experiments.shared.curves import Scale
from analysis.runs.advance import execute
from analysis.runs.job import Job
from analysis.runs.store import Outcome
from analysis.runs.workers import ClusterError, Progress, Update
from reptile_core import native
from reptile_core.native import SOURCES
from tests.helpers.jobs import RUN, assert_same_run, glyph_source
from tests.helpers.script import TINY_ABLATION, ablation_in

distributed = pytest.importorskip(
    "distributed", reason="needs the package distributed: pip install -e '.[cluster]'"
)
from analysis.runs import cluster as runs_cluster  # noqa: E402 - needs the package
from analysis.runs.cluster import ClusterWorkers  # noqa: E402

ROOT = Path(__file__).parents[1]


class Cluster:
    """A scheduler and workers, started as a user would start them, in a folder that is not ours."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.file = folder / "scheduler.json"
        self._start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")
        _until(lambda: self.file.exists() and self.file.read_text().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]
        self.client = stack.enter_context(distributed.Client(self.address, set_as_default=False))

    def start_worker(self, *, threads: int = 1) -> subprocess.Popen:
        before = self.workers
        process = self._start("dask_worker", "--nthreads", str(threads), "--no-nanny")
        self.wait_for_workers(before + 1)
        return process

    @property
    def workers(self) -> int:
        return len(self.client.nthreads())

    def wait_for_workers(self, count: int) -> None:
        _until(lambda: self.workers == count)

    def _start(self, program: str, *arguments: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.{program}",
            "--scheduler-file",
            str(self.file),
        ]
        process = subprocess.Popen(
            [*command, "--no-dashboard", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process


@pytest.fixture(autouse=True)
def nothing_to_collect() -> None:
    """Collect garbage before a test.

    A client that could not connect is closed when it is collected, which blocks the event loop that
    happens to run.
    """
    gc.collect()


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a scheduler that has no worker until a test asks for `cluster`."""
    with ExitStack() as stack:
        yield Cluster(tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture(scope="module")
def cluster(lonely: Cluster) -> Cluster:
    """Return the scheduler with one worker."""
    lonely.start_worker()
    return lonely


def _until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.02)


def _jobs(folder: Path, *, seeds: int, iterations: int) -> list[Job]:
    source = glyph_source()
    run, keep = replace(RUN, iterations=iterations), tuple(range(20, iterations, 20))
    return [
        Job(replace(run, seed=seed), source, folder, "g1+g2", keep=keep) for seed in range(seeds)
    ]


def noted(job: Job, progress: Progress) -> Outcome:
    """Execute a run, and leave a file for each start that names the process."""
    folder = job.folder.parent / "begun"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{job.key} {os.getpid()}").touch()
    return execute(job, progress)


def endless(folder: Path, progress: Progress) -> None:
    folder.mkdir()
    try:
        while True:
            progress(1)
            time.sleep(0.02)
    except runs_cluster.Abandoned:
        (folder / "abandoned").touch()
        raise


def _stop_after(folder: Path) -> None:
    _until(folder.exists)
    raise KeyboardInterrupt


def test_without_a_scheduler(tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError,
        match="expected the address of a Dask scheduler, tcp://HOST:PORT, found nonsense",
    ):
        ClusterWorkers("nonsense", tmp_path)


def test_without_workers_or_with_threads(
    lonely: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runs_cluster, "PATIENCE", 2)
        with pytest.raises(ClusterError, match=r"expected workers .*, found none"):
            ClusterWorkers(lonely.address, tmp_path)
    threaded = lonely.start_worker(threads=2)
    with pytest.raises(ClusterError, match=r"expected workers of one thread .* with 2"):
        ClusterWorkers(lonely.address, tmp_path)
    threaded.kill()
    lonely.wait_for_workers(0)


def test_workers_that_are_not_as_the_script(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runs_cluster, "_identity", lambda: "other code")
        with pytest.raises(
            ClusterError, match=r"expected workers with other code as here .*, found .* with torch"
        ):
            ClusterWorkers(cluster.address, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", lambda path: None)
        with pytest.raises(
            ClusterError, match=r"expected workers that see the folder .*, found that .* does not"
        ):
            ClusterWorkers(cluster.address, tmp_path)


def test_a_killed_worker_costs_its_run_in_flight_and_no_bit(
    cluster: Cluster, tmp_path: Path
) -> None:
    here, there = (
        _jobs(tmp_path / name / "runs", seeds=3, iterations=60) for name in ("here", "there")
    )
    # Use as many threads as the workers, as their number may change the order of sums.
    torch.set_num_threads(1)
    local = [execute(job) for job in here]

    doomed = cluster.start_worker()
    begun = tmp_path / "there" / "begun"
    with (
        ClusterWorkers(cluster.address, there[0].folder, quiet=True) as workers,
        ThreadPoolExecutor(1) as thread,
    ):
        assert workers.count == 2
        outcomes = thread.submit(workers.map, "runs", noted, there)
        _until(lambda: begun.exists() and [key for key, who in _read(begun) if who == doomed.pid])
        killed = next(key for key, who in _read(begun) if who == doomed.pid)
        _until((there[0].folder / f"{killed}.safetensors").exists)
        os.kill(doomed.pid, signal.SIGKILL)
        cluster_outcomes = outcomes.result()

    assert [replace(outcome, seconds=0) for outcome in cluster_outcomes] == [
        replace(o, seconds=0) for o in local
    ]
    for one, other in zip(here, there, strict=True):
        assert_same_run(one.path, other.path)
    times = {job.key: [key for key, _ in _read(begun)].count(job.key) for job in there}
    assert sum(times.values()) == len(there) + 1, (
        "one was in flight and begun again; the others were not disturbed"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scheduler", "nonsense"],
            "--scheduler: expected the address of a Dask scheduler, tcp://HOST:PORT, found nons",
        ),
        (
            ["--scheduler", "tcp://127.0.0.1:1", "--workers", "2"],
            "--workers: expected none with --scheduler",
        ),
    ],
)
def test_bad_arguments_are_refused_before_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ablation(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_workers_with_another_header_of_the_loops_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native.library()  # compiled from the unchanged files
    read, found = Path.read_bytes, set()
    for text in (b"1", b"2", b"1"):
        monkeypatch.setattr(
            Path,
            "read_bytes",
            lambda self, text=text: text if self.name == "tiles.h" else read(self),
        )
        found.add(runs_cluster._identity.__wrapped__())
    assert len(found) == 2
    assert {source.suffix for source in SOURCES} == {".c", ".h"}


@pytest.mark.parametrize(
    "changed",
    [
        "reproduce.py",
        "analysis/results/judge.py",
        "analysis/theory/taylor.py",
        "analysis/runs/store.py",
        "reptile_core/tasks.py",
    ],
)
def test_workers_with_other_code_of_the_analysis_are_others(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, before = Path.read_bytes, runs_cluster._identity.__wrapped__()
    path = ROOT / changed
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"" if self == path else read(self))
    assert (runs_cluster._identity.__wrapped__() == before) == (changed == "reproduce.py"), (
        "the script is not loaded"
    )


def test_the_script_on_a_cluster_writes_the_tables_of_local_workers(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = {"smoke": Scale(looks=(2,), tasks=1, seeds=1)}
    monkeypatch.setitem(reproduce.EXPERIMENTS, "ablation", replace(TINY_ABLATION, scales=shorter))
    monkeypatch.setattr("figures.background.draw", lambda *_: [])
    monkeypatch.chdir(tmp_path)  # the workers stay in another folder
    assert _ablation(Path("there"), "--scheduler", cluster.address) == 0
    assert _ablation(Path("here"), "--workers", "1") == 0
    for name in ("ablation", "ablation_summary"):
        assert (tmp_path / "there/tables" / f"{name}.csv").read_bytes() == Path(
            f"here/tables/{name}.csv"
        ).read_bytes()
    assert {path.name for path in Path("there/runs").iterdir()} == {
        path.name for path in Path("here/runs").iterdir()
    }


def _ablation(out: Path, *arguments: str) -> int:
    return reproduce.main([*map(str, ablation_in(out)), *arguments])


def test_an_interrupted_script_abandons_its_work_and_leaves_the_workers(
    cluster: Cluster, tmp_path: Path
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ClusterWorkers(cluster.address, tmp_path, quiet=True) as workers,
    ):
        workers._executor = workers._open()
        workers._submit(endless, tmp_path / "endless")
        _stop_after(tmp_path / "endless")
    _until((tmp_path / "endless" / "abandoned").exists)
    with ClusterWorkers(cluster.address, tmp_path, quiet=True) as workers:
        assert workers.map("lengths", _length, ["a", "abc"]) == [1, 3]
        (found,) = workers.map("runs", _what_is_reported, [0])
        assert found == {"done": 3, "there": 5, "note": "words"}
        workers._updates = queue.Queue()
        for script in (workers._terms.script, "another"):
            workers._receive((0.0, {"script": script, **found}))
        assert list(workers._updates.queue) == [Update(5, there=True), Update(3, "words")]
    assert not list(tmp_path.glob(".script-*"))


def _length(text: str, progress: Progress) -> int:
    progress(1)
    return len(text)


def _what_is_reported(item: int, progress: Progress) -> dict[str, object]:
    """Return what the next report to the script would say."""
    progress(5, there=True)
    progress(3, "words")
    report = vars(progress)
    return {name: report[name] for name in ("done", "there", "note")}


def _read(begun: Path) -> list[tuple[str, int]]:
    return [(path.name.split()[0], int(path.name.split()[1])) for path in begun.iterdir()]
