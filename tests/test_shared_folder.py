"""A folder that several commands fill, stopped and resumed in any order.

Nothing is lost, and nothing is done twice.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.experiments.shared import experiment
from analysis.results import manifest, manifest_records
from analysis.runs import redo, store
from analysis.runs.job import find
from tests.helpers.runs import FIRST_SEED
from tests.helpers.script import ablation_in, script

FEW_SHOT = (
    "few_shot",
    "--profile",
    "smoke",
    "--dataset",
    "glyphs",
    "--cells",
    "omniglot-5way-reptile",
    "--quiet",
)


def written(out: Path) -> dict[str, int]:
    """Return the time when each file of a run or an evaluation was written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}


def test_commands_share_a_folder_and_more_seeds_reuse_all(
    finished_ablation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished_ablation, out)
    first = written(out)
    table = pd.read_csv(out / "tables" / "ablation.csv")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt  # as SIGTERM does, once training is done

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "evaluate_chunk", stop)
        assert script(*FEW_SHOT, "--out", out).code == 130
    record = manifest.read(out / "manifest.json")
    assert record["status"] == "interrupted" and list(record["earlier"]) == ["ablation"]
    second = written(out)
    assert first.items() < second.items() and len(second) == len(first) + 1

    assert script(*ablation_in(out, "--seeds", 2)).code == 0
    third = written(out)
    assert second.items() < third.items(), (
        "one more seed, and nothing of the others is written again"
    )
    both = pd.read_csv(out / "tables" / "ablation.csv")
    pd.testing.assert_frame_equal(both[both.seed == FIRST_SEED].reset_index(drop=True), table)
    assert set(both.seed) == {FIRST_SEED, FIRST_SEED + 1}

    (out / "manifest.json").unlink()  # a kill may precede it; runs do not need it
    assert script(*FEW_SHOT, "--out", out).code == 0
    assert third.items() < written(out).items()
    assert script(*ablation_in(out, "--seeds", 2)).code == 0
    found = manifest_records.by_experiment(manifest.read(out / "manifest.json"))
    assert {name: record["status"] for name, record in found.items()} == {
        "few_shot": "finished",
        "ablation": "finished",
    }
    assert found["few_shot"]["options"]["cells"] == ["omniglot-5way-reptile"]


def test_runs_of_a_gpu_are_other_seeds_of_the_same_table(
    finished_ablation: Path, tmp_path: Path
) -> None:
    """Runs of a GPU are other seeds of the same table.

    The first seed's runs are stored as a GPU's would be, and the second seed is trained here.
    """
    out = tmp_path / "out"
    before = pd.read_csv(finished_ablation / "tables" / "ablation.csv")
    source = find("glyphs", None, quiet=True)
    for row in pd.read_csv(finished_ablation / "tables" / "ablation_runs.csv").to_dict("records"):
        job = redo.restore(row, source, finished_ablation / "runs", "cpu").job
        stored = store.load(job)
        assert stored is not None
        store.save(replace(job, folder=out / "runs", trained_on="cuda"), stored)
    theirs = written(out)
    assert script(*ablation_in(out, "--seeds", 2)).code == 0
    assert theirs.items() < written(out).items()
    runs = pd.read_csv(out / "tables" / "ablation_runs.csv")
    assert runs.groupby("seed").device.unique().map(list).to_dict() == {
        FIRST_SEED: ["cuda"],
        FIRST_SEED + 1: ["cpu"],
    }
    table = pd.read_csv(out / "tables" / "ablation.csv")
    assert table.groupby("seed").device.unique().map(list).to_dict() == {
        FIRST_SEED: ["cuda"],
        FIRST_SEED + 1: ["cpu"],
    }
    same = table[table.seed == FIRST_SEED].drop(columns="device").reset_index(drop=True)
    pd.testing.assert_frame_equal(same, before)
