"""One run of a manifest done again.

The same kind of machine gives the same bits; another one may differ by a tolerance.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.results import checksums
from analysis.results.tables import write_csv
from analysis.runs.redo import TOLERANCE
from reptile_core.checkpoints import load_checkpoint
from tests.helpers.runs import FIRST_SEED
from tests.helpers.script import script

RUN = f"ablation/g1+g2/{FIRST_SEED}"


@pytest.fixture
def then(finished_ablation: Path, tmp_path: Path) -> Path:
    """Return the manifest of a finished run, with its tables and without its runs."""
    shutil.copytree(finished_ablation, tmp_path / "then", ignore=shutil.ignore_patterns("runs"))
    return tmp_path / "then" / "manifest.json"


def again(then: Path, *more: object, run: str = RUN):
    return script("--from", then, "--only", run, "--quiet", "--out", then.parents[1] / "now", *more)


def changed(then: Path, **columns: object) -> None:
    """Change entries of RUN's row in the table of runs, as if it had been written so."""
    path = then.parent / "tables" / "ablation_runs.csv"
    table = pd.read_csv(path)
    for name, value in columns.items():
        table.loc[table.variant == "g1+g2", name] = value
    write_csv(table, path)
    checksums.record([path])


def test_the_table_of_runs_is_what_their_files_hold(finished_ablation: Path) -> None:
    table = pd.read_csv(finished_ablation / "tables" / "ablation_runs.csv")
    for row in table.itertuples():
        phi = load_checkpoint(finished_ablation / "runs" / f"{row.key}.safetensors")[0]["phi"]
        assert row.parameters_sha256 == hashlib.sha256(phi.numpy().tobytes()).hexdigest()
        assert (row.iterations, row.status, row.device, row.data) == (
            2,
            "finished",
            "cpu",
            "glyphs",
        )
    tidy = pd.read_csv(finished_ablation / "tables" / "ablation.csv")
    last = tidy[tidy.iteration == 2].set_index("variant")
    np.testing.assert_allclose(
        table.set_index("variant").accuracy, last.value[table.variant], rtol=1e-12
    )
    np.testing.assert_allclose(
        table.set_index("variant").standard_error, last.standard_error[table.variant], rtol=1e-6
    )


def test_a_run_done_again_has_the_same_bits(then: Path) -> None:
    said = again(then)
    assert said.code == 0, said.err
    assert f"{RUN}: 2 iterations" in said.out
    assert "parameters: the same, bit for bit\naccuracies: the same, bit for bit\n" in said.out
    assert len(list((then.parents[1] / "now" / "runs").glob("*.safetensors"))) == 1, (
        "one run and no other"
    )


def test_other_bits_on_the_same_kind_of_machine_are_a_fault(then: Path) -> None:
    changed(then, parameters_sha256="0" * 64)
    said = again(then)
    assert said.code == 1
    assert (
        "parameters: other bits\naccuracies: the same" in said.out
        and "the same bits were expected" in said.out
    )


@pytest.mark.parametrize(("apart", "code"), [(0.0, 0), (2 * TOLERANCE, 1)])
def test_on_another_kind_of_machine_it_is_compared_to_a_tolerance(
    then: Path, apart: float, code: int
) -> None:
    table = pd.read_csv(then.parent / "tables" / "ablation_runs.csv").set_index("variant")
    accuracy = table.accuracy["g1+g2"] + apart * (table.standard_error["g1+g2"] + 0.01)
    changed(
        then,
        arithmetic="ABACUS-0",
        parameters_sha256="0" * 64,
        accuracies_sha256="0" * 64,
        accuracy=accuracy,
    )
    said = again(then)
    assert said.code == code
    assert (
        "trained on ABACUS-0, this machine is " in said.out
        and "bits cannot be compared" in said.out
    )
    assert ("not within" in said.out) == bool(code)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            f"ablation/g9/{FIRST_SEED}",
            f"such as ablation/g1/{FIRST_SEED}, ablation/g1+g2/{FIRST_SEED}",
        ),
        ("ablation/g1+g2/7", "found 'ablation/g1+g2/7'"),
        ("g1+g2", "expected EXPERIMENT/VARIANT/SEED"),
        ("sgd/x/1", "expected an experiment of the manifest (ablation), found 'sgd'"),
    ],
)
def test_a_run_that_is_not_there_is_named(then: Path, run: str, message: str) -> None:
    said = again(then, run=run)
    assert said.code == 2 and message in said.error


def test_what_would_be_another_run_is_refused(then: Path) -> None:
    for flag, value in (("--seeds", 2), ("--seeds", 0), ("--epoch", 0)):
        assert f"--only: expected no {flag} with it" in again(then, flag, value).error
    assert "--workers: expected at least 1, found 0" in again(then, "--workers", 0).error
    assert "--from MANIFEST with it" in script("--only", RUN).error
    said = script("--from", then, "--only", RUN, "--quiet", "--out", then.parent)
    assert said.code == 2 and "expected another folder than the manifest's" in said.error
    configuration = json.loads(
        pd.read_csv(then.parent / "tables" / "ablation_runs.csv").configuration[0]
    )
    changed(then, configuration=json.dumps(configuration | {"numerics": 4}))
    said = again(then)
    assert said.code == 2 and "found another version" in said.error
    (then.parent / "tables" / "ablation_runs.csv").unlink()
    assert "expected a table of runs at " in again(then).error
