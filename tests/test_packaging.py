"""Metadata, the wheel, the command that it installs, and the code that an installation knows.

An installation must know its own code alone.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import reproduce
from analysis import ending, program
from analysis.command_line import parse
from analysis.results import checkout, manifest, rerun
from reptile_core.files import sources_digest

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
PACKAGES = ("analysis", "figures", "reptile_core")
PARTS = (*PACKAGES, "reproduce.py", "pyproject.toml", "README.md", "LICENSE")


def git(folder: Path, *arguments: str) -> str:
    """Run git without anyone's settings, and return what it prints."""
    names = {
        f"GIT_{role}_{what}": "x@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=kept | names | alone,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def repository(folder: Path) -> Path:
    """Return the folder as a repository with all of its files committed."""
    folder.mkdir(exist_ok=True)
    (folder / "theirs.txt").write_text("theirs\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "theirs")
    return folder


def copy_of_the_project(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def checkout_of(root: Path) -> ModuleType:
    """Return the module analysis.results.checkout of another root."""
    path = root / "analysis" / "results" / "checkout.py"
    spec = importlib.util.spec_from_file_location("checkout_elsewhere", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- metadata


def test_metadata_says_whose_it_is_and_what_it_needs() -> None:
    assert PROJECT["name"] == checkout.PROJECT
    assert PROJECT["license"] == "MIT" and all(
        (ROOT / name).is_file() for name in PROJECT["license-files"]
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert not any(line.startswith("License ::") for line in PROJECT["classifiers"]), (
        "the licence field says it"
    )
    assert f"Python :: {PROJECT['requires-python'].removeprefix('>=')}" in " ".join(
        PROJECT["classifiers"]
    )
    assert (ROOT / PROJECT["readme"]).is_file()


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    released = re.findall(
        r"^## (\S+)", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == version


def test_the_changelog_has_a_line_for_each_numerics_version() -> None:
    from analysis.runs.job import NUMERICS_VERSION

    found = re.findall(
        r"^- Numerics (\d+)\b", (ROOT / ".github" / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert {int(number) for number in found} == set(range(2, NUMERICS_VERSION + 1))


def test_tasks_and_splits_have_the_bits_of_the_numerics_version() -> None:
    """Tasks and splits have the bits of the numerics version, written down here by their SHA-256.

    They are integers, the same on any machine. Changing them requires a new numerics version.
    """
    from analysis.runs.job import NUMERICS_VERSION
    from reptile_core.datasets.split import split_characters
    from tests.helpers.tasks import SAMPLINGS, draw, parts

    drawn = [part for s in SAMPLINGS.values() for part in parts(draw(s, test_shots=2))]
    tasks = torch.cat([numbers.flatten() for part in drawn for numbers in (part.index, part.label)])
    split = split_characters(np.arange(1623).reshape(-1, 1, 1, 1), seed=7)
    order = torch.cat([split.train[:1200], split.test]).flatten()
    assert sorted(order.tolist()) == list(range(1623))
    found = [hashlib.sha256(x.numpy().astype("<i8").tobytes()).hexdigest() for x in (tasks, order)]
    assert NUMERICS_VERSION == 5
    assert found == [
        "49b6ea0593bf33f6c6e3f5a3dd397f22b2de116aeb59f00e9f8a6428a6a37bbd",  # tasks
        "4fd51e8c40a40bb866aacc7b88a3e0901747295ae978eaf9701eddeb75f6d489",  # order
    ]


def test_the_citation_is_one() -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0" and found["license"] == PROJECT["license"]
    assert {"message", "title", "authors"} <= set(found)
    paper = found["preferred-citation"]
    assert paper["type"] == "article" and [
        author["family-names"] for author in paper["authors"]
    ] == [
        "Nichol",
        "Achiam",
        "Schulman",
    ]


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".pre-commit-config.yaml"])
def test_what_others_run_can_be_read(path: str) -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load((ROOT / path).read_text())


# ---- installation


def test_every_folder_of_code_is_a_package_that_is_found() -> None:
    patterns = SETUPTOOLS["packages"]["find"]["include"]
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*.py"):
            folders = [folder for folder in path.relative_to(ROOT).parents if folder != Path()]
            assert [
                folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()
            ] == []
            dotted = ".".join(folders[0].parts)
            assert any(fnmatch(dotted, pattern) for pattern in patterns), dotted
    assert all((ROOT / f"{name}.py").is_file() for name in SETUPTOOLS["py-modules"])


def test_every_pattern_of_data_matches_files_and_all_packages_are_typed() -> None:
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        assert [pattern for pattern in patterns if not any(folder.glob(pattern))] == [], package
    assert all("py.typed" in SETUPTOOLS["package-data"][name] for name in PACKAGES)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return a wheel built from a copy of the project, which takes half a second."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("a licence by its SPDX name needs setuptools 77")
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    project = copy_of_the_project(folder / "project")
    subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_a_wheel_holds_all_that_runs_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    code = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert code | {"reproduce.py"} == {name for name in names if name.endswith(".py")}
    assert not [
        name
        for name in names
        if name.startswith(("tests/", "figures/published/")) or name.endswith(".md")
    ]
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        data = {
            path.relative_to(ROOT).as_posix()
            for pattern in patterns
            for path in folder.glob(pattern)
        }
        assert data <= names


def test_an_installed_wheel_in_a_foreign_repository_names_no_foreign_commit(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    foreign = repository(tmp_path / "foreign")
    site = foreign / "environment" / "site-packages"
    wheel.extractall(site)
    installed = checkout_of(site)
    assert site == installed.ROOT and len(git(foreign, "rev-parse", "HEAD")) == 40
    assert installed.commit() is None
    assert installed.sources() == checkout.sources()


# ---- whose commit, and which sources


def test_a_copy_in_a_foreign_repository_names_no_foreign_commit(tmp_path: Path) -> None:
    foreign = repository(tmp_path / "foreign")
    assert checkout_of(copy_of_the_project(foreign / "vendor" / "reptile")).commit() is None


@pytest.mark.parametrize("theirs", [None, '[project]\nname = "other"\n', "[tool]\n", "not toml"])
def test_a_foreign_project_at_the_same_root_names_no_commit(
    theirs: str | None, tmp_path: Path
) -> None:
    (tmp_path / "reproduce.py").write_text("")
    if theirs is not None:
        (tmp_path / "pyproject.toml").write_text(theirs)
    assert checkout.commit(repository(tmp_path)) is None


def test_the_project_s_own_checkout_names_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in ("pyproject.toml", "reproduce.py"):
        shutil.copy(ROOT / name, own / name)
    sha = git(repository(own), "rev-parse", "HEAD")
    assert checkout.commit(own) == {"sha": sha, "modified": False}
    foreign = repository(tmp_path / "foreign")
    monkeypatch.setenv("GIT_DIR", str(foreign / ".git"))
    assert checkout.commit(own) == {"sha": sha, "modified": False}, "a hook of another repository"
    (own / "theirs.txt").write_text("changed\n")
    assert checkout.commit(own) == {"sha": sha, "modified": True}


def test_a_digest_of_sources_depends_on_names_and_contents_of_code_alone(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            path = folder / "code" / name.replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return sources_digest(folder, "code")

    one = digest(a_py="1", b_c="2", c_h="3")
    assert digest(c_h="3", b_c="2", a_py="1", d_md="prose", e_pyc="compiled") == one
    others = [
        digest(a_py="1", b_c="2", c_h="4"),
        digest(b_py="1", b_c="2", c_h="3"),
        digest(a_py="1", b_c="2"),
    ]
    assert len({one, *others}) == 4


def test_sources_are_recorded_and_manifests_without_them_are_read() -> None:
    assert "sources?" in manifest.SHAPE
    record = {"commit": None, "versions": {}, "machine": {}}
    then, now = rerun.surroundings(record), rerun.surroundings(record | {"sources": "00"})
    assert list(rerun.differences(then, now)) == ["sources: only now"]
    assert rerun.surroundings(record | {"sources": "00"}) != rerun.surroundings(
        record | {"sources": "01"}
    )


# ---- the command


def test_the_command_is_the_script_s_main() -> None:
    assert PROJECT["scripts"] == {program.INSTALLED: "reproduce:main"}
    assert callable(reproduce.main)


@pytest.mark.parametrize(
    ("called", "name", "command"),
    [
        ("reproduce.py", "reproduce.py", "python reproduce.py"),
        ("/usr/bin/pytest", "reproduce.py", "python reproduce.py"),
        ("/opt/environment/bin/reptile-verify", "reptile-verify", "reptile-verify"),
    ],
)
def test_help_and_messages_name_the_command_that_was_used(
    called: str,
    name: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    assert (
        said.startswith(f"usage: {command} [EXPERIMENT ...]") and f"\n  {command} --list\n" in said
    )
    for subcommand in ("report", "demo"):
        with pytest.raises(SystemExit):
            reproduce.main([subcommand, "--help"])
        said += capsys.readouterr().out
        assert f"usage: {name} {subcommand}" in said
    assert ("reproduce.py" in said) == (name == "reproduce.py")
    for error, line in (
        (ValueError("x"), f"{name}: error: unexpected"),
        (KeyboardInterrupt(), f"Resume with: {command} a"),
    ):

        def fail(_: object, error: BaseException = error) -> int:
            raise error

        ending.guarded(fail, ["a"])
        assert line in capsys.readouterr().err
