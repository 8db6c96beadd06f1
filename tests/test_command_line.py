"""The command line: rerunning manifests, summaries for people and programs, errors in one line."""

import json
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest

import reproduce
from analysis import ending
from analysis.results import checksums, ledger, manifest, manifest_records, rerun, terminal
from tests.helpers.script import ablation_in, finished_in, script, tables_of


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """Return the manifest of a finished run, whose runs are also in the folder "now".

    A command that writes to that folder finds them.
    """
    finished_in(tmp_path / "now", only="runs")
    return finished_in(tmp_path / "then") / "manifest.json"


def _changed(path: Path, change) -> Path:
    record = json.loads(path.read_text())
    change(record)
    other = path.with_name("changed.json")
    other.write_text(json.dumps(record))
    return other


# ---- reruns


def test_a_manifest_is_enough_to_get_the_same_tables(done: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "now")
    said = script("--from", done, "--quiet", "--out", tmp_path / "now")
    assert said.code == 0
    assert "5 of 5 tables are the same, bit for bit" in said.out
    now, before = tables_of(tmp_path / "now"), tables_of(done.parent)
    with_times = {"ablation_evidence.csv", "ablation_runs.csv", "SHA256SUMS"}
    assert {name: now[name] for name in now.keys() - with_times} == {
        n: before[n] for n in before.keys() - with_times
    }
    then, now = (manifest.read(path) for path in (done, tmp_path / "now" / "manifest.json"))
    assert rerun.work(then) == rerun.work(now)
    moved = tmp_path / "moved.json"
    done.rename(moved)  # a manifest is enough without its tables
    assert script("--from", moved, "--quiet", "--out", tmp_path / "now").code == 0


def test_manifests_from_before_splits_could_be_chosen_are_of_the_only_one(
    done: Path, tmp_path: Path
) -> None:
    before = _changed(
        done,
        lambda record: [record["options"].pop(n) for n in ("split", "iterations", "tail_shots")],
    )
    assert manifest.read(before) == manifest.read(done)
    assert script("--from", before, "--quiet", "--out", tmp_path / "now").code == 0
    said = script("--from", done, "--split", "seed", "--quiet", "--out", tmp_path / "now")
    assert said.code == 2 and "--from: expected no --split with it" in said.error


def test_it_goes_to_a_folder_of_its_own(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.parent)
    folder = Path("results") / f"again-{manifest.digest(manifest.read(done))[:8]}"
    finished_in(folder, only="runs")
    assert script("--from", done.name, "--quiet").code == 0
    assert list(Path("results").iterdir()) == [folder] and (folder / "manifest.json").exists()


def test_a_table_that_differs_is_named_with_how_much(done: Path, tmp_path: Path) -> None:
    path = done.parent / "tables" / "ablation.csv"
    table = pd.read_csv(path)
    table.loc[3, "value"] = 0.75
    path.write_text(table.to_csv(index=False, lineterminator="\n"))

    def other(record):
        record["tables"]["ablation.csv"] = checksums.digest(path)
        record["tables"]["gone.csv"] = "0" * 64

    said = script("--from", _changed(done, other), "--quiet", "--out", tmp_path / "now")
    assert said.code == 1
    assert "4 of 6 tables are the same" in said.out
    assert "ablation.csv: differs in 1 of " in said.out and ", by up to 0." in said.out
    assert "gone.csv: was written then, not now" in said.out
    path.unlink()
    said = script("--from", done.parent / "changed.json", "--quiet", "--out", tmp_path / "now")
    assert said.code == 1
    assert f"ablation.csv: differs; the old table is not at {path}" in said.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r["experiments"]["ablation"].update(tasks=3),
            "found experiments.ablation.tasks: 3 then, 2",
        ),
        (lambda r: r["data"].update(content_sha256="0" * 64), "found data.content_sha256: "),
        (
            lambda r: r["experiments"].update(nonsense={}),
            "EXPERIMENT: expected one of theory, .*, found 'nonsense'",
        ),
        (lambda r: r["options"].update(seeds=0), "--seeds: expected at least 1, found 0"),
        (lambda r: r["options"].update(iterations=0), "--iterations: expected at least 1, found 0"),
        (lambda r: r["options"].update(iterations=3), "found experiments.ablation.looks"),
        (
            lambda r: r["options"].update(iterations=40_001),
            "--iterations: expected at most the 40,000 of ablation",
        ),
        (
            lambda r: r["options"].update(tail_shots=1001),
            "--tail-shots: expected at most 1000, found 1001",
        ),
        (lambda r: r.update(schema=2), "schema: expected 1, found 2"),
        (lambda r: r.update(schema=True), "schema: expected 1, found true"),
        (lambda r: r.pop("schema"), "found none of the name 'schema'"),
        (lambda r: r.update(more=1), 'found the unknown "more"'),
        (
            lambda r: r["data"].update(name="nonsense"),
            'data.name: expected "omniglot" or "glyphs", found "nonsense"',
        ),
        (
            lambda r: r["machine"].update(cores="two"),
            'machine.cores: expected a whole number, found "two"',
        ),
        (
            lambda r: r["options"].update(cells=[1]),
            r"options.cells\[0\]: expected a string, found 1",
        ),
        (
            lambda r: r.update(profile=None),
            'profile: expected "smoke" or "quick" or "paper", found null',
        ),
    ],
)
def test_a_manifest_that_cannot_be_followed(
    done: Path, tmp_path: Path, change, message: str
) -> None:
    said = script("--from", _changed(done, change), "--quiet", "--out", tmp_path / "now")
    assert said.code == 2
    assert re.search(message, said.error)
    assert not (tmp_path / "now" / "tables").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found none that can be read (No such file or directory)"),
        (b"", "expected a manifest in JSON"),
        (b"{", "expected a manifest in JSON"),
        (b"\xff\xfe", "expected a manifest in JSON"),
        (b"[" * 100_000, "expected a manifest in JSON"),
        (b"[]", "the whole: expected an object, found []"),
        (b" " * (2**24 + 1), "expected a manifest of at most 16777216 bytes"),
    ],
)
def test_no_manifest_at_all(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_bytes(content)
    said = script("--from", path, "--out", tmp_path / "now")
    assert (said.code, message in said.error) == (2, True)


@pytest.mark.parametrize(
    "more",
    [
        ["--profile", "quick"],
        ["--seeds", "2"],
        ["--epoch", "2"],
        ["--budget", "1h"],
        ["--device", "cpu"],
    ],
)
def test_what_the_manifest_says_is_not_given_with_it(done: Path, tmp_path: Path, more) -> None:
    said = script(*more, "--from", done, "--out", tmp_path / "now")
    assert said.code == 2
    assert "--from: expected no " in said.error and "since the manifest says which" in said.error


def test_an_experiment_of_a_manifest_is_done_alone(done: Path, tmp_path: Path) -> None:
    """An experiment of a manifest can be rerun alone, though two filled the folder."""
    earlier = json.loads(done.read_text())
    earlier["earlier"] = {
        "theory": manifest_records.part_of(earlier, []) | {"experiments": {"theory": {}}}
    }
    both = done.with_name("both.json")
    both.write_text(json.dumps(earlier))
    said = script("ablation", "--from", both, "--quiet", "--out", tmp_path / "now")
    assert said.code == 0 and "5 of 5 tables are the same" in said.out
    said = script("sgd", "--from", both, "--out", tmp_path / "now")
    assert (
        said.code == 2
        and "expected an experiment of the manifest (theory, ablation), found 'sgd'" in said.error
    )
    # Without a name all experiments are checked, theory's settings too.
    said = script("--from", both, "--quiet", "--out", tmp_path / "now")
    assert said.code == 2 and "found experiments.theory.checks: only now" in said.error


def test_settings_of_other_code_are_said_and_those_of_this_code_are_held(
    done: Path, tmp_path: Path
) -> None:
    def other(record: dict) -> None:
        record["experiments"]["ablation"]["tasks"] = 3
        record["sources"] = "0" * 64

    said = script("--from", _changed(done, other), "--quiet", "--out", tmp_path / "now")
    assert said.code == 0 and "experiments.ablation.tasks: 3 then, 2 now" in said.out


def test_other_libraries_or_machines_are_said(done: Path, tmp_path: Path) -> None:
    def other(record):
        record["versions"]["torch"] = "1.0"
        record["machine"] |= {"processor": "abacus", "workers": 99, "cores": 99}
        record["machine"]["arithmetic"]["vectors"] = "beads"
        record["commit"] = None

    said = script("--from", _changed(done, other), "--quiet", "--out", tmp_path / "now")
    assert said.code == 0
    lines = [line for line in said.out.splitlines() if line.startswith("not as in ")]
    assert any('versions.torch: "1.0" then' in line for line in lines)
    assert any('machine.arithmetic.vectors: "beads" then' in line for line in lines)
    assert not any(
        f"machine.{name}" in line for line in lines for name in ("workers", "cores", "processor")
    )


def test_times_are_not_compared(tmp_path: Path) -> None:
    for name, seconds in (("a.csv", 1.5), ("b.csv", 2.5)):
        pd.DataFrame({"variant": ["g1"], "seconds": [seconds]}).to_csv(tmp_path / name, index=False)
    assert checksums.digest(tmp_path / "a.csv") == checksums.digest(tmp_path / "b.csv")


# ---- output


def test_json_is_one_document_alone_on_stdout(done: Path, tmp_path: Path) -> None:
    said = script(*ablation_in(done.parent, "--json"))
    found = json.loads(said.out)
    assert found["manifest"] == manifest.read(done)
    assert [row["id"] for row in found["claims"]] == [
        claim.id for claim in reproduce.EXPERIMENTS["ablation"].claims
    ]
    assert found["differences"] is None
    assert "wrote" in said.err
    again = script("--from", done, "--quiet", "--json", "--out", tmp_path / "now")
    assert json.loads(again.out)["differences"] == []


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.in_colour(Terminal())  # type: ignore[arg-type]
    assert not terminal.in_colour(open(os.devnull, "w"))  # noqa: SIM115
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.in_colour(Terminal())  # type: ignore[arg-type]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal.in_colour(Terminal())  # type: ignore[arg-type]


def test_verdicts_are_aligned(done: Path) -> None:
    mine = {claim.id for claim in reproduce.EXPERIMENTS["ablation"].claims}
    verdicts = [verdict for verdict in ledger.read(done.parent) if verdict.claim.id in mine]
    plain, coloured = (terminal.verdicts(verdicts, colour=colour) for colour in (False, True))
    assert not any("\033" in line for line in plain)
    assert any("\033[" in line for line in coloured)


def test_help_names_every_experiment_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(
        name in text
        for name in (*reproduce.EXPERIMENTS, "examples:", "exit codes:", "--from MANIFEST")
    )


# ---- errors


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("a\nb"), 1, "unexpected RuntimeError: a b; --debug shows where"),
        (
            OSError(28, "No space left on device", "x.csv"),
            1,
            "x.csv: No space left on device; what is done is kept",
        ),
        (MemoryError(), 1, "out of memory"),
        (ending.UsageError("x"), 2, "x"),
    ],
)
def test_every_end_is_one_line(tmp_path: Path, monkeypatch, error, code: int, message: str) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(reproduce, "run", fail)
    said = script(*ablation_in(tmp_path))
    assert (said.code, message in said.error) == (code, True)
    said = script(*ablation_in(tmp_path, "--debug"))
    assert "Traceback" in said.err


def test_a_warning_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script("--list")
    assert (
        warnings.formatwarning(UserWarning("a\nb"), UserWarning, "x.py", 1)
        == "reproduce.py: warning: a b\n"
    )


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "\udcff\0"])
def test_a_folder_that_cannot_be(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script(*ablation_in(Path(name))).code == 2
    assert list(tmp_path.iterdir()) == []


def test_too_many(tmp_path: Path) -> None:
    assert (
        "--seeds: expected at most 1000, found 1001"
        in script(*ablation_in(tmp_path, "--seeds", 1001)).error
    )
    assert (
        "--workers: expected at most 1000"
        in script(*ablation_in(tmp_path, "--workers", 10**9)).error
    )


def test_it_is_no_terminal_here() -> None:
    """Stdout is no terminal here, so that the tests above show what a file or a program gets."""
    assert not sys.stdout.isatty()
