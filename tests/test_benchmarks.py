"""What benchmarks read, pack and say; their timings are for people to judge."""

import json
import tarfile

import pytest
import torch

from reptile_core.checkpoints import load_checkpoint, save_checkpoint
from tests.benchmarks import default_run, gpu, gpu_pack
from tests.helpers.folder import MANIFEST, write


def test_the_default_runs_time_is_shared_out(tmp_path):
    write(tmp_path)
    record = json.loads((tmp_path / "manifest.json").read_text())
    times = {
        "wall_seconds": {"theory": 120.0, "ablation": 600.0},
        "worker_seconds": {"theory": 60.0, "ablation": 1140},
    }
    whole = {
        "schema": 1,
        "options": {"seeds": None, "cells": [], "device": "cpu"},
        "experiments": {},
        "versions": {},
        "data": {
            "name": "glyphs",
            "real": False,
            "source": "",
            "content_sha256": "",
            "characters": 1,
            "drawings": 1,
        },
        "machine": MANIFEST["machine"] | {"process": 1, "native": True},
        "command": [],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(record | whole | times))
    found = "\n".join(default_run.rows(tmp_path))
    assert "| theory | 2.00 | 10% | 25.0% |" in found  # 2 of 20 minutes; 60 of 2 x 120 seconds
    assert "| ablation | 10.00 | 50% | 95.0% |" in found
    assert "| all, from its start to its report | 20.00 | | 50.0% (goal 93%) |" in found
    assert default_run.rows(tmp_path / "nowhere")[0].startswith("not measured: ")


def test_a_gpu_runs_files_are_few_and_say_what_they_leave_out(tmp_path, monkeypatch):
    """The GPU's runs are packed into few files, and runs without room are named.

    There is room for two states a file in three files.
    Hence the last two of eight runs are named.
    """
    work = tmp_path / gpu_pack.WORK
    (work / "figure_3-10" / "tables").mkdir(parents=True)
    (work / "figure_3-10" / "tables" / "ablation.csv").write_text("variant\ng1\n")
    monkeypatch.setattr(gpu_pack, "MAX_BYTES", 2**21)
    for number in range(8):
        phi = torch.full((200_000,), float(number))
        path = work / "figure_3" / "runs" / f"{number}.safetensors"
        save_checkpoint(path, {"phi": phi, "at.1": phi + 1}, {"iteration": number})
    assert gpu_pack.pack(tmp_path) == [f"figure_3/runs/{number}.safetensors" for number in (6, 7)]
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    # Two files of states, results.md and manifest.json.
    assert len(files) == 4 and all(path.stat().st_size <= 2**21 for path in files)
    states, records = load_checkpoint(tmp_path / "states-2.safetensors")
    name = "figure_3/runs/3.safetensors"
    assert records[name]["iteration"] == 3 and torch.equal(
        states[name], torch.full((200_000,), 3.0)
    )
    with tarfile.open(tmp_path / "tables.tar.gz") as archive:
        assert archive.getnames() == ["figure_3-10/tables/ablation.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "0"], "--scale: expected a number above 0 and at most 1.0, found 0.0"),
        (["--seconds", "-1"], "--seconds: expected a number above 0 and at most inf, found -1.0"),
    ],
)
def test_bad_arguments_of_the_gpu_benchmark(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_without_a_gpu_or_time_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == 2 and "not measured" in capsys.readouterr().err
    monkeypatch.setattr(
        "sys.argv", ["gpu", "--out", str(tmp_path), "--device", "cpu", "--seconds", "5"]
    )
    assert gpu.main() == 0
    record = json.loads((tmp_path / "manifest.json").read_text())
    assert {part["how"] for part in record["parts"]} == {"not begun: no time"}
