"""The manifest of a folder into which several commands wrote, of any age."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.command_line import parse
from analysis.ending import UsageError
from analysis.plan import begin_manifest
from analysis.prepare import plans
from analysis.results import checkout, manifest, rerun
from analysis.results.manifest import ManifestError, complete
from analysis.results.manifest_records import by_experiment, commands, part_of
from analysis.runs.arithmetic import arithmetic, kind
from reptile_core import datasets
from tests.helpers.script import glyphs

PUBLISHED = sorted((Path(__file__).parents[1] / "figures" / "published").rglob("*manifest.json"))


def begun(
    *experiments: str, command: str = "a", before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return a manifest as a command begins it, without the fields that all commands share."""
    record = {
        "status": "running",
        "command": [command],
        "options": {"seeds": None},
        "commit": {"sha": command},
    }
    settings = {name: {"tasks": len(name)} for name in experiments}
    return record | {"experiments": settings, "earlier": by_experiment(before) if before else {}}


def ended(record: dict[str, Any], *experiments: str, status: str = "finished") -> dict[str, Any]:
    """Return the manifest after these experiments have finished, each with a table."""
    tables = {name: {f"{name}.csv": f"{record['command'][0]} {name}"} for name in experiments}
    return complete(
        record,
        status=status,
        wall_seconds=dict.fromkeys(experiments, 1.0),
        worker_seconds={},
        tables=tables,
        other_data={},
    )


def test_every_experiment_of_a_folder_keeps_the_command_that_wrote_it() -> None:
    first = ended(begun("theory", "sgd"), "theory", "sgd")
    second = ended(begun("sgd", "sine", command="b", before=first), "sgd", "sine")
    found = by_experiment(second)
    assert {name: record["command"] for name, record in found.items()} == {
        "theory": ["a"],
        "sgd": ["b"],
        "sine": ["b"],
    }
    assert {name: record["commit"]["sha"] for name, record in found.items()} == {
        "theory": "a",
        "sgd": "b",
        "sine": "b",
    }
    assert {name: record["tables"] for name, record in found.items()} == {
        "theory": {"theory.csv": "a theory"}, "sgd": {"sgd.csv": "b sgd"},
        "sine": {"sine.csv": "b sine"},
    }  # fmt: skip
    assert all(list(record["experiments"]) == [name] for name, record in found.items())
    third = ended(begun("sine", command="c", before=second), "sine")
    assert [record["command"] for record in commands(third)] == [["a"], ["b"], ["c"]]
    assert [list(record["experiments"]) for record in commands(third, ["sine", "theory"])] == [
        ["theory"],
        ["sine"],
    ]


def test_an_interrupted_command_replaces_only_what_it_wrote() -> None:
    first = ended(begun("theory", "sgd"), "theory", "sgd")
    stopped = ended(
        begun("theory", "sgd", command="b", before=first), "theory", status="interrupted"
    )
    after = ended(begun("sine", command="c", before=stopped), "sine")
    assert {name: record["command"][0] for name, record in by_experiment(after).items()} == {
        "theory": "b", "sgd": "a", "sine": "c",
    }  # fmt: skip
    assert [
        (record["command"][0], list(record["experiments"])) for record in commands(stopped)
    ] == [
        ("a", ["sgd"]),
        ("b", ["theory"]),
    ]
    killed = ended(begun("sgd", "sine", command="c", before=stopped), status="running")
    assert [(record["command"][0], list(record["experiments"])) for record in commands(killed)] == [
        ("a", ["sgd"]),
        ("b", ["theory"]),
        ("c", ["sine"]),
    ]
    assert "finished" not in killed and "finished" in stopped


def test_added_seeds_are_recorded_for_every_experiment_and_rerun_in_part(tmp_path: Path) -> None:
    """Where one experiment got more seeds, the manifest keeps what was asked for the others."""
    for asked, of_sine in (([], None), (["--seeds", "10"], 10)):
        options = parse(["sine", "sgd", *asked, "--out", str(tmp_path / "then")])
        (plan,) = plans(options)
        record = begin_manifest(plan.with_seeds({"sgd": 30}))
        found = {"sgd": 30} if of_sine is None else {"sine": 10, "sgd": 30}
        assert record["options"]["seeds"] == found
        path = tmp_path / "then" / "manifest.json"
        record = complete(
            record, status="finished", wall_seconds={"sine": 1.0, "sgd": 1.0}, worker_seconds={},
            tables={}, other_data={"sine": {}, "sgd": {}},
        )  # fmt: skip
        manifest.write(record, path)
        for names in ([], ["sine"], ["sgd"]):
            (again,) = plans(parse([*names, "--from", str(path), "--out", str(tmp_path / "now")]))
            assert not again.differences
            seeds = {one.name: again.context_of(one).seeds for one in again.experiments}
            assert seeds == {name: found.get(name) for name in names or ("sine", "sgd")}


def test_the_folder_of_the_manifest_is_not_where_it_is_rerun(tmp_path: Path) -> None:
    """Its runs would be read and not rerun, and all tables be the same."""
    (plan,) = plans(parse(["sine", "--out", str(tmp_path)]))
    manifest.write(begin_manifest(plan), tmp_path / "manifest.json")
    with pytest.raises(UsageError, match="--out: expected another folder than the manifest's"):
        plans(parse(["--from", str(tmp_path / "manifest.json"), "--out", str(tmp_path)]))


def test_a_part_has_the_data_of_its_own_experiments() -> None:
    record = complete(
        begun("sine", "few_shot"),
        status="finished",
        wall_seconds={"sine": 1.0, "few_shot": 1.0},
        worker_seconds={},
        tables={},
        other_data={"sine": {}, "few_shot": {"cifar_fs": "abc"}},
    )
    assert part_of(record, ["few_shot"])["other_data"] == {"cifar_fs": "abc"}
    assert part_of(record, ["sine"])["other_data"] == {}
    old = {name: value for name, value in record.items() if name != "other_data_of"}
    assert "other_data" not in part_of(old, ["sine"])
    assert part_of(old, ["sine", "few_shot"])["other_data"] == {"cifar_fs": "abc"}


def test_a_part_has_its_own_seeds_and_tables() -> None:
    record = ended(begun("theory", "sgd"), "theory", "sgd") | {
        "options": {"seeds": {"theory": 1, "sgd": 9}}
    }
    assert part_of(record, ["sgd"])["options"] == {"seeds": {"sgd": 9}}
    before = {name: value for name, value in record.items() if name != "tables_of"}
    assert part_of(before, ["sgd"])["tables"] == {"sgd.csv": "a sgd"}, (
        "by its name, where an old manifest does not say"
    )


def test_an_experiment_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ManifestError, match=r"expected an experiment of the manifest \(theory\), found 'sgd'"
    ):
        commands(ended(begun("theory"), "theory"), ["sgd"])


def recorded(path: Path) -> list[str]:
    """Return the experiments of a manifest, those of earlier commands first."""
    record = json.loads(path.read_text())
    return [*record.get("earlier", {}), *record["experiments"]]


@pytest.mark.parametrize(
    "path", PUBLISHED, ids=lambda path: path.relative_to(PUBLISHED[0].parent).as_posix()
)
def test_published_manifests_of_every_age_are_read(path: Path) -> None:
    record = manifest.read(path)
    assert record["schema"] == manifest.SCHEMA and record["options"]["device"] == "cpu"
    assert list(by_experiment(record)) == recorded(path)


def wanted(path: Path) -> list[object]:
    """Return test parameters for a published manifest: the whole, and each of its experiments."""
    name = path.relative_to(PUBLISHED[0].parent).as_posix()
    names = recorded(path)
    every = [[], *([[one] for one in names] if len(names) > 1 else [])]
    return [pytest.param(path, some, id=" ".join([name, *some])) for some in every]


@pytest.mark.parametrize(("path", "names"), [one for path in PUBLISHED for one in wanted(path)])
def test_published_manifests_are_taken_whole_or_in_part(
    path: Path, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published manifests are planned in whole or in part, and changed sources are reported.

    Nothing is run.
    """
    if data := json.loads(path.read_text())["data"]:  # None where no experiment takes images
        omniglot = replace(glyphs(), name="omniglot", real=True, content=data["content_sha256"])
        monkeypatch.setattr(datasets, "load", lambda *_, **__: omniglot)
    found = plans(parse([*names, "--from", str(path), "--out", str(tmp_path)]))
    planned = [experiment.name for plan in found for experiment in plan.experiments]
    assert planned == (names or recorded(path))
    today = checkout.sources()
    for plan in found:
        assert plan.again is not None
        said = any(line.startswith("sources: ") for line in plan.differences)
        assert said == (plan.again.get("sources") != today)


def test_machines_are_told_apart_by_arithmetic_and_not_by_name() -> None:
    machine = {
        "platform": "x",
        "processor": "abacus",
        "workers": 1,
        "device": "cpu",
        "native": True,
    }
    here = {"commit": None, "versions": {}, "machine": machine | {"arithmetic": arithmetic()}}
    renamed = here | {
        "machine": here["machine"] | {"processor": "other", "platform": "y", "workers": 9}
    }
    other = here | {
        "machine": here["machine"] | {"arithmetic": arithmetic() | {"vectors": "avx512f"}}
    }
    assert rerun.surroundings(here) == rerun.surroundings(renamed) != rerun.surroundings(other)
    assert kind() == kind("cpu") and arithmetic()["gpu"] is None
