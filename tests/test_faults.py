"""Faults, injected: kills, full disks, folders in use, files that changed, runs that diverge.

Nothing that was written is lost, no other file is mistaken for it, and one line says what happened.

REPTILE_FULL=1 kills a hundred times instead of a few, and with real processes too.
"""

import contextlib
import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

import reproduce
from analysis.experiments import ablation
from analysis.results import checksums, folder, ledger
from analysis.results.folder import alone_in
from analysis.results.verdict import Verdict
from analysis.runs.advance import execute
from analysis.runs.job import Job
from reptile_core.checkpoints import load_checkpoint
from reptile_core.files import UNFINISHED, write_atomically
from reptile_core.training import Inner
from tests.helpers.jobs import assert_same_run, short_job
from tests.helpers.runs import FIRST_SEED
from tests.helpers.script import SMOKE, ablation_in, finished_in, script

FULL = bool(os.environ.get("REPTILE_FULL"))
ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "reproduce.py", "ablation", *SMOKE, "--quiet"]
# Runs the script in children that are forked on request, so that libraries and data are loaded
# once. It prints the child's process id and, once asked, how the child ended.
FORKS = """
import os, sys, torch
from dataclasses import replace
import reproduce, figures.ablation, figures.drawing
from analysis import prepare
from analysis.experiments import ablation
from analysis.results.claims import seeds
from analysis.runs import job
from reptile_core import datasets
from tests.helpers.script import TINY_ABLATION, InProcess, glyphs
torch.set_num_threads(1)
prepare.Workers = InProcess
datasets._glyphs = glyphs
until, tasks, count = map(int, sys.argv[1].split())
scale = ablation.Scale(looks=(max(1, until // 2), until), tasks=tasks, seeds=count, queries=1)
reproduce.EXPERIMENTS["ablation"] = replace(TINY_ABLATION, scales={"smoke": scale})
for seed in seeds(1, count):
    job.split_of(job.Source("glyphs", None, datasets.load("glyphs").content), seed)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(reproduce.main([*sys.argv[2:], "--out", line.strip()]))
    print(child, flush=True)
    sys.stdin.readline()
    print(os.waitpid(child, 0)[1], flush=True)
"""


# ---- kills


def _stands(out: Path) -> dict[str, int]:
    """Return the iteration that each run has reached.

    Every file with a run's name must be readable.
    """
    return {
        path.name: load_checkpoint(path)[1]["iteration"]
        for path in (out / "runs").glob("*.safetensors")
    }


WITH_TIMES = {  # files that hold times and names
    "manifest.json", "report.md", "report.html", "tables.tex", "claims.json", "SHA256SUMS",
    "ablation_evidence.csv",
}  # fmt: skip


def _assert_same(one: Path, other: Path) -> None:
    """Check that runs, tables, figures and the ledger are the same bit for bit.

    Neither folder may hold other files.
    """
    names = [
        {path.relative_to(out) for path in out.rglob("*") if path.is_file()} for out in (one, other)
    ]
    assert names[0] == names[1]
    for name in sorted(names[0]):
        if name.suffix == ".safetensors":
            assert_same_run(one / name, other / name)
        elif name.name == "ablation_runs.csv":
            assert checksums.digest(one / name) == checksums.digest(other / name)
        elif name.name not in WITH_TIMES:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_killed_at_random_moments_and_resumed_it_gives_the_same_bits(tmp_path: Path) -> None:
    """A run that is killed at random moments and resumed gives the same bits.

    SIGKILL comes again and again, also during writes.
    A run that gets through is compared, and the next one begins.
    """
    scale, enough = ("30 4 2", 100) if FULL else ("4 2 1", 3)  # until, tasks, seeds
    chance, kills, rounds = random.Random(0), 0, 0
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS, scale, *COMMAND[2:]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip

    def run(out: Path, seconds: float | None) -> int:
        """Run into `out`, killed after `seconds`, and return the wait status: 0, or the signal."""
        assert forks.stdin is not None and forks.stdout is not None
        print(out, file=forks.stdin, flush=True)
        child = int(forks.stdout.readline())
        if seconds is not None:
            time.sleep(seconds)
            # It may have ended, but keeps its process id until waitpid is called.
            os.kill(child, signal.SIGKILL)
        print("how?", file=forks.stdin, flush=True)
        return int(forks.stdout.readline())

    with forks:
        assert run(tmp_path / "whole", None) == 0
        while kills < enough:
            out, reached, patience = tmp_path / f"killed-{rounds}", dict[str, int](), 0.5
            while run(out, chance.uniform(0, patience)) != 0:
                kills += 1
                stands = _stands(out)
                # Nothing was lost.
                assert all(stands[name] >= iteration for name, iteration in reached.items())
                patience *= 1.0 if stands != reached else 1.3  # a busy machine must progress too
                reached = stands
            _assert_same(out, tmp_path / "whole")
            rounds += 1
        assert forks.stdin is not None
        forks.stdin.close()
    print(f"{kills} kills over {rounds} runs")


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".hidden", "a.part", "b.csv", ".lock")]
    for path in kept:
        path.touch()
    (tmp_path / "quick" / "runs").mkdir(parents=True)  # another output folder, perhaps in use
    kept.append(tmp_path / "quick" / "runs" / f".x.safetensors.abcd{UNFINISHED}")
    kept[-1].touch()
    for part in ("runs", "runs/evaluations", "tables"):
        (tmp_path / part).mkdir()
        (tmp_path / part / f".x.safetensors.abcd{UNFINISHED}").touch()
    with alone_in(tmp_path):
        pass
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def _alive() -> dict[int, int]:
    """Return the parent's process id of every live process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(path.parent.name)] = int(parent)
    return found


def _workers_of(script: int) -> list[int]:
    return [number for number, parent in _alive().items() if parent == script]


def _wait(for_what: str, condition: object, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {seconds} s for {for_what}"
        time.sleep(0.05)


@contextlib.contextmanager
def _started(out: Path, until: str) -> Iterator[subprocess.Popen[str]]:
    """Start the script, and yield its process once a file that matches `until` is there.

    It reacts to Ctrl-C even where these tests ignore it.
    """
    command = [*COMMAND, "--workers", "1", "--out", str(out)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            _wait(until, lambda: list(out.glob(until)) or process.poll() is not None)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="asks /proc for a process's children"
)
def test_workers_end_with_a_script_that_is_killed(tmp_path: Path) -> None:
    with _started(tmp_path, "runs/*.safetensors") as process:
        workers = _workers_of(process.pid)
        assert workers
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _wait("the workers to end", lambda: not set(workers) & set(_alive()))


def test_an_interrupt_ends_in_one_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    with _started(tmp_path, "manifest.json") as process:
        time.sleep(1)  # workers are loading their libraries
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == (
        "Interrupted. Finished work is kept. Resume with: python reproduce.py ablation "
        f"--profile smoke --dataset glyphs --quiet --workers 1 --out {tmp_path}"
    )
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "interrupted"


def test_a_request_to_end_is_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "run", lambda plan: os.kill(os.getpid(), signal.SIGTERM))
    said = script(*ablation_in(tmp_path))
    assert said.code == 130
    assert said.err.startswith(
        "\nInterrupted. Finished work is kept. Resume with: python reproduce.py ablation"
    )


@pytest.mark.skipif(not FULL, reason="REPTILE_FULL=1 runs it: minutes")
def test_kills_of_scripts_and_workers_change_no_bit(tmp_path: Path) -> None:
    """Kills of real processes change no bit: the script, a worker, or all of them at once."""
    subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True
    )
    chance, kills, out, patience = random.Random(0), 0, tmp_path / "killed", 20.0
    while True:
        with subprocess.Popen(
            [*COMMAND, "--workers", chance.choice("123"), "--out", str(out)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                _, err = process.communicate(timeout=chance.uniform(1, patience))
                break
            except subprocess.TimeoutExpired:
                kills, patience = kills + 1, patience * 1.1
                whom = chance.choice(["script", "all", "worker"])
                for worker in _workers_of(process.pid)[:1] if whom == "worker" else []:
                    os.kill(worker, signal.SIGKILL)
                    time.sleep(1)
                (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGKILL)
                process.wait()
        _stands(out)
    assert process.returncode == 0, err
    _assert_same(out, tmp_path / "whole")
    print(f"{kills} kills")


# ---- disks and folders


def test_a_full_disk_ends_in_one_line_and_the_rest_is_done_later(tmp_path: Path) -> None:
    """A full disk ends the script in one line, and the rest is done later.

    A limit to the size of files stands for the disk: only files of runs are larger.
    """
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
    try:
        said = script(*ablation_in(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert said.code == 1
    assert said.error.startswith(f"reproduce.py: error: {tmp_path}/runs/")
    assert "File too large" in said.error and "the same command goes on" in said.error
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "interrupted"
    assert list((tmp_path / "runs").iterdir()) == []
    finished_in(tmp_path, only="runs")
    assert script(*ablation_in(tmp_path)).code == 0


@pytest.mark.parametrize("name", ["tables", "runs", "claims.json", "tables/SHA256SUMS"])
def test_something_else_in_the_place_of_an_output(tmp_path: Path, name: str) -> None:
    """A file in place of a folder, or a folder in place of a file, is named."""
    if name != "runs":
        finished_in(tmp_path, only="runs")
    if "." in name or "SUMS" in name:
        (tmp_path / name / "x").mkdir(parents=True)
    else:
        (tmp_path / name).touch()
    said = script(*ablation_in(tmp_path))
    assert said.code == 1
    assert f"{tmp_path}/{name}" in said.error
    assert (tmp_path / name).exists()


def test_a_failed_write_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.csv'"):
        write_atomically(tmp_path / "a.csv", b"1")


def test_a_second_run_into_one_folder_says_who_is_there(tmp_path: Path) -> None:
    finished_in(tmp_path, only="runs")
    assert script(*ablation_in(tmp_path)).code == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    with FileLock(tmp_path / ".lock"):
        said = script(*ablation_in(tmp_path))
    assert said.code == 2
    assert f"found {tmp_path} in use by process {os.getpid()}, started 20" in said.error
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"
    } == before
    assert script(*ablation_in(tmp_path)).code == 0


# ---- files that changed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = short_job(tmp_path_factory.mktemp("finished"), 6)
    execute(job)
    return job


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-10], "found one cut short, to"),
        (lambda content: content[:7], "found one cut short, to 7 bytes"),
        (lambda content: content[:300], "found one cut short, to 300 bytes"),
        (lambda content: b"", "found one cut short, to 0 bytes"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "found one that was altered"),
        (lambda content: content + b"\0", "found one that was altered"),
        (lambda content: b"<html>log in first</html>", "found a file that is none"),
    ],
)
def test_a_changed_checkpoint_is_named_and_kept(
    tmp_path: Path, finished: Job, change, message: str
) -> None:
    job = dataclasses.replace(finished, folder=tmp_path)
    changed = change(finished.path.read_bytes())
    job.path.write_bytes(changed)
    with pytest.raises(ValueError, match=message) as caught:
        execute(job)
    assert str(job.path) in str(caught.value) and "\n" not in str(caught.value)
    assert job.path.read_bytes() == changed


def test_a_checkpoint_of_something_else_is_refused_by_name(
    tmp_path: Path, finished: Job, monkeypatch
) -> None:
    others = {
        "another configuration": dataclasses.replace(
            finished, run=dataclasses.replace(finished.run, seed=1)
        ),
        "other data": dataclasses.replace(
            finished, source=dataclasses.replace(finished.source, content="0" * 64)
        ),
    }
    for words, job in others.items():
        moved = dataclasses.replace(job, folder=tmp_path)
        moved.path.write_bytes(finished.path.read_bytes())
        with pytest.raises(ValueError, match=f"found the run {finished.key}, of {words}$"):
            execute(moved)
    old = finished.path.read_bytes()
    monkeypatch.setattr("analysis.runs.job.NUMERICS_VERSION", 10**6)
    moved = dataclasses.replace(finished, folder=tmp_path)
    moved.path.write_bytes(old)
    with pytest.raises(ValueError, match=r"of another version$"):
        execute(moved)


def test_a_table_that_changed_is_named_not_judged_and_kept(tmp_path: Path) -> None:
    finished_in(tmp_path)
    path = tmp_path / "tables" / "ablation_evidence.csv"
    whole = path.read_bytes()
    assert _why(ledger.read(tmp_path)) == "shown only"
    changes = {
        "cut at a line": b"\n".join(whole.split(b"\n")[:-3]) + b"\n",
        "cut within one": whole[:-20],
        "altered": whole.replace(b"0", b"1", 1),
        "empty": b"",
        "no text": b"\xff\xfe",
    }
    for changed in changes.values():
        path.write_bytes(changed)
        with pytest.warns(
            UserWarning,
            match=f"{path}: expected SHA-256 .* left as it is and not judged; rerun ablation",
        ):
            assert _judged(tmp_path) == "not measured"
        assert path.read_bytes() == changed
    path.write_bytes(whole)
    (tmp_path / "tables" / checksums.SUMS).unlink()
    with pytest.warns(UserWarning, match=f"{path}: expected its digest in SHA256SUMS, found none"):
        assert _judged(tmp_path) == "not measured"
    assert script(*ablation_in(tmp_path)).code == 0
    assert path.read_bytes() == whole
    assert _judged(tmp_path) == "shown only"


def test_a_table_of_another_version_is_not_judged(tmp_path: Path, monkeypatch) -> None:
    finished_in(tmp_path)
    monkeypatch.setattr("analysis.results.checksums.NUMERICS_VERSION", 10**6)
    with pytest.warns(
        UserWarning, match="expected numbers of numerics version 1000000, found version 5"
    ):
        assert _judged(tmp_path) == "not measured"


def test_sums_are_as_sha256sum_has_them(tmp_path: Path) -> None:
    finished_in(tmp_path)
    check = ["sha256sum", "--check", "--strict", "--quiet", checksums.SUMS]
    try:
        subprocess.run(check, cwd=tmp_path / "tables", check=True)
    except FileNotFoundError:
        pytest.skip("no sha256sum here")


def _judged(out: Path) -> str:
    """Return why ablation-g1 is undecided."""
    return _why(folder.judge_all(out, reproduce.claims()))


def _why(verdicts: Sequence[Verdict]) -> str:
    return next(verdict.why for verdict in verdicts if verdict.claim.id == "ablation-g1")


# ---- runs that diverge


def test_a_run_that_diverges_stops_and_the_others_go_on(tmp_path: Path, monkeypatch) -> None:
    configure = ablation.configure

    def explosive(variant, seed):
        run = configure(variant, seed)
        return (
            dataclasses.replace(run, inner=Inner("sgd", 1e30))
            if (variant.name, seed) == ("g2", FIRST_SEED + 1)
            else run
        )

    monkeypatch.setattr(ablation, "configure", explosive)
    finished_in(tmp_path, only="runs")
    said = script(*ablation_in(tmp_path, "--seeds", 2))
    line = (
        f"g2, seed {FIRST_SEED + 1}: diverged at iteration 1 (inner sgd at 1e+30, outer plain at "
        "0.25)"
    )
    assert said.code == 0
    assert line in said.out
    curves = pd.read_csv(tmp_path / "tables" / "ablation.csv")
    ended = (
        curves[(curves.variant == "g2") & (curves.seed == FIRST_SEED + 1)]
        .set_index("iteration")
        .value
    )
    assert ended[1] == ended[2] == 0.2  # a run that diverged counts at the level of chance
    diverged = {verdict.claim.id: verdict.diverged for verdict in ledger.read(tmp_path)}
    assert diverged["ablation-g2-beats-sum"] == (line,)
    assert line in (tmp_path / "report.md").read_text()


def test_infinite_and_nan_are_found_at_the_very_iteration(tmp_path: Path, monkeypatch) -> None:
    from reptile_core import training

    train = training.train
    for bad in (float("nan"), float("inf"), -float("inf")):

        def poisoned(run, pool, state, bad=bad):
            for now in train(run, pool, state):
                if now.iteration == 5:
                    now.phi[3] = bad
                yield now

        monkeypatch.setattr(training, "train", poisoned)
        job = short_job(tmp_path / str(bad), 9)
        outcome = execute(job)
        assert (outcome.status, outcome.iteration) == ("diverged at iteration 5", 5)
        assert execute(job).status == outcome.status


def test_an_error_in_drawing_costs_no_table_and_is_not_swallowed(tmp_path):
    def draw(*_):
        raise OSError("no room for figures")

    said = script(*ablation_in(tmp_path), draw=draw)
    assert said.code == 1 and "no room for figures" in said.error
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "finished"
    assert (tmp_path / "tables" / "ablation.csv").exists() and (tmp_path / "report.html").exists()
