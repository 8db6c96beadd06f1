"""Malformed inputs at random: arguments, manifests, checkpoints, tables, archives, images, caches.

Whatever is given, the script soon ends in one line and an exit code, and touches nothing but its
output and cache folders.
REPTILE_FULL=1 tries well over a thousand inputs instead of a few dozen.
"""

import io
import json
import os
import shlex
import signal
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reproduce
from analysis.experiments.shared.experiment import EPOCH
from analysis.plan import begin_manifest
from analysis.prepare import prepare
from analysis.results import checksums, evidence, folder
from analysis.results.tables import write_csv
from analysis.runs.advance import execute
from analysis.runs.job import NUMERICS_VERSION, Job
from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.datasets import omniglot
from reptile_core.datasets.common import Unavailable
from tests.helpers.jobs import short_job
from tests.helpers.omniglot import ZIPS
from tests.helpers.script import script

FULL = bool(os.environ.get("REPTILE_FULL"))
SECONDS = 60  # longer than any of these takes on a busy machine; more is a hang
fuzz = settings(
    max_examples=250 if FULL else 15,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
counted: dict[str, int] = {}

# ---- files that may be touched

WRITING = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.utime",
}
allowed: list[Path] = []
touched: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not allowed:
        return
    paths: list[Any] = []
    if event in WRITING:
        paths = [a for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
    elif event == "open":
        path, mode, flags = arguments
        writes = (
            any(c in mode for c in "wax+")
            if isinstance(mode, str)
            else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        paths = [path] if writes and not isinstance(path, int) else []
    for path in paths:
        where = Path(os.path.abspath(os.fsdecode(path)))
        if not any(
            where == folder or folder in where.parents for folder in (*allowed, Path("/dev"))
        ):
            touched.append(f"{event}: {where}")


# An audit hook cannot be removed; this one records nothing outside of `contained`.
sys.addaudithook(_watch)


@contextmanager
def contained(*folders: Path) -> Iterator[None]:
    """Check that nothing outside these folders is written, and that it ends in time."""

    def hang(*_: object) -> None:
        raise AssertionError(f"still at it after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    allowed.extend(folders)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        allowed.clear()
        found, touched[:] = list(touched), []
    assert not found


def _count(what: str) -> None:
    counted[what] = counted.get(what, 0) + 1


@pytest.fixture(scope="module", autouse=True)
def _say() -> Iterator[None]:
    yield
    print(
        "\n"
        f"malformed inputs: {sum(counted.values())} "
        f"({', '.join(f'{n} {what}' for what, n in counted.items())})"
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, which has a cache and neither data nor network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REPTILE_DATA", raising=False)
    monkeypatch.setattr("reptile_core.datasets.omniglot.download", _no_network)
    monkeypatch.setattr(reproduce, "run", lambda plan: ([], {"tables": {}}))
    return tmp_path


def _no_network(url: str, **_: object) -> None:
    raise Unavailable(f"{url}: there is no network")


def ends_well(*arguments: object) -> tuple[int, str]:
    """Return a script's exit code and the line of its error, "" where it has none.

    The script may print at most one line of an error, and no traceback.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            said = script(*arguments)
        except SystemExit as stop:  # raised by argparse
            return int(stop.code or 0), ""
    assert "Traceback" not in said.err and "unexpected" not in said.err, said.err
    if not said.code:
        return 0, ""
    errors = [line for line in said.err.splitlines() if line.startswith("reproduce.py: error: ")]
    assert len(errors) == 1 and said.err.endswith(errors[0] + "\n"), said.err
    return said.code, errors[0]


# ---- arguments

WORDS = st.sampled_from(  # split as a shell splits them
    shlex.split("""theory ablation --profile smoke paper --seeds --epoch --budget 1h --until-decided
    --workers --cells omniglot --fresh --list --data
    --dataset glyphs --device cpu cuda --quiet --json --strict --from -- - -h 0 -1 1e3
    999999999999999999999 /dev/null .. nowhere \udcff --seeds= --debug=1""")
)


@fuzz
@given(arguments=st.lists(WORDS | st.text(max_size=12), max_size=7))
def test_arguments(home: Path, arguments: list[str]) -> None:
    _count("arguments")
    with contained(home):
        code, _ = ends_well(*arguments, "--out", "here")
    assert code in (0, 1, 2)


# ---- manifests

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@lru_cache(maxsize=1)
def _manifest() -> str:
    plan = prepare(
        reproduce.parse(["ablation", "--profile", "smoke", "--dataset", "glyphs", "--out", "x"])
    )
    return json.dumps(begin_manifest(plan))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every entry in a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, entry in inner for place in _places(entry, (*path, key)))]


@fuzz
@given(data=st.data())
def test_manifests(home: Path, data: st.DataObject) -> None:
    _count("manifests")
    record = json.loads(_manifest())
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(_places(record)[1:]))
        parent = record
        for key in path:
            parent = parent[key]
        how = data.draw(st.sampled_from(["replaced", "gone", "added"]))
        if how == "replaced":
            parent[last] = data.draw(JSON)
        elif how == "gone":
            del parent[last]
        elif isinstance(parent, dict):
            parent[data.draw(st.text(max_size=5))] = data.draw(JSON)
        else:
            parent.append(data.draw(JSON))
    text = json.dumps(record)
    cut = data.draw(st.none() | st.integers(0, len(text)))
    (home / "m.json").write_text(text[:cut])
    with contained(home):
        code, _ = ends_well("--from", "m.json", "--out", "here")
    assert code in (0, 1, 2)


# ---- checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = short_job(tmp_path_factory.mktemp("finished"), 3)
    execute(job)
    return job


CUTS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 16), st.binary(max_size=16)), min_size=1, max_size=4
)


def _mutated(content: bytes, cuts: list[tuple[float, int, bytes]]) -> bytes:
    changed = bytearray(content)
    for place, length, replacement in cuts:
        at = int(place * len(changed))
        changed[at : at + length] = replacement
    return bytes(changed)


@fuzz
@given(cuts=CUTS, header=st.booleans(), end=st.none() | st.floats(0, 1))
def test_checkpoints_of_any_bytes(finished: Job, cuts, header: bool, end: float | None) -> None:
    """A checkpoint of any bytes is refused with the file's name, or gives exactly what was written.

    The latter happens where the change has no meaning.
    """
    _count("checkpoints of any bytes")
    whole = finished.path.read_bytes()
    tensors, record = load_checkpoint(finished.path)
    size = 8 + int.from_bytes(whole[:8], "little")
    changed = _mutated(whole[:size], cuts) + whole[size:] if header else _mutated(whole, cuts)
    path = finished.folder / "changed" / "x.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(changed if end is None else changed[: int(end * len(changed))])
    before = path.read_bytes()
    with contained(path.parent):
        try:
            found, other = load_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            assert other == record
            assert all(
                found[name].numpy().tobytes() == tensors[name].numpy().tobytes() for name in tensors
            )
    assert path.read_bytes() == before


DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64])


@fuzz
@given(data=st.data())
def test_checkpoints_that_are_whole_but_of_another_make(finished: Job, data: st.DataObject) -> None:
    """A whole checkpoint of another make is handled, as other versions may write what they like.

    Its digest is right, and its entries are anything.
    """
    _count("checkpoints of another make")
    tensors, record = load_checkpoint(finished.path)
    record = json.loads(json.dumps(record))
    for _ in range(data.draw(st.integers(1, 3))):
        names = sorted({*record, *tensors} - {"key", "data"})
        name = data.draw(st.sampled_from(names))
        if name in tensors:
            # Names that begin with "outer." belong to torch's optimizers, which alone know them.
            if data.draw(st.booleans()) and not name.startswith("outer."):
                del tensors[name]
            else:
                tensors[name] = (
                    tensors[name].flatten()[: data.draw(st.integers(2, 5))].to(data.draw(DTYPES))
                )
        elif name in record:
            if data.draw(st.booleans()):
                del record[name]
            else:
                record[name] = data.draw(JSON)
    folder = finished.folder / "other"
    job = Job(finished.run, finished.source, folder, finished.variant)
    save_checkpoint(job.path, tensors, record)
    before = job.path.read_bytes()
    with contained(folder):
        try:
            execute(job)
        except CheckpointError as error:
            assert str(job.path) in str(error)
            assert job.path.read_bytes() == before


# ---- tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a folder of tables as the script leaves it, as bytes by name."""
    place = tmp_path_factory.mktemp("tables")
    rows = [
        {"claim": "ablation-g1", "case": "g1", "role": role, "seed": 1000 * EPOCH + i, "value": 0.1}
        for role in ("check", "control")
        for i in range(3)
    ]
    table = evidence.tabulate(pd.DataFrame(rows)).assign(
        profile="quick", numerics=NUMERICS_VERSION, epoch=EPOCH, look=1
    )
    write_csv(table, place / "ablation_evidence.csv")
    checksums.record([place / "ablation_evidence.csv"])
    return {path.name: path.read_bytes() for path in place.iterdir()}


@fuzz
@given(
    cuts=CUTS,
    name=st.sampled_from(["ablation_evidence.csv", "SHA256SUMS"]),
    end=st.none() | st.floats(0, 1),
)
def test_tables(home: Path, tables: dict[str, bytes], name: str, cuts, end: float | None) -> None:
    """A table is judged as it was written, or not at all and with a warning."""
    _count("tables")
    changed = _mutated(tables[name], cuts)
    changed = changed if end is None else changed[: int(end * len(changed))]
    for other, content in (tables | {name: changed}).items():
        (home / "tables").mkdir(exist_ok=True)
        (home / "tables" / other).write_bytes(content)
    with contained(home), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        verdicts = folder.judge_all(home, reproduce.claims())
    (why,) = (verdict.why for verdict in verdicts if verdict.claim.id == "ablation-g1")
    if warned:
        assert why == "not measured"
    else:
        assert why == "pilot"
        assert (home / "tables" / "ablation_evidence.csv").read_bytes() == tables[
            "ablation_evidence.csv"
        ]
    assert (home / "tables" / name).read_bytes() == changed


# ---- archives, images and caches

NAMES = st.sampled_from(
    [
        "../evil.png",
        "/tmp/evil.png",
        "C:\\evil.png",
        "a\\..\\evil",
        "images_background/../../evil.png",
        "images_background/Zulu/character01/0001_01.png",
        "images_background/A.png",
        "__MACOSX/._a.png",
        "x" * 300,
    ]
)


def _archive(base: bytes, added: list[tuple[str, bytes]], links: bool, dense: bool) -> bytes:
    buffer = io.BytesIO(base)
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as archive:
        warnings.simplefilter("ignore")  # about duplicate names
        for name, content in added:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if links else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED if dense else zipfile.ZIP_STORED
            archive.writestr(info, content * (10**6 if dense and content else 1))
    return buffer.getvalue()


@fuzz
@given(
    part=st.sampled_from(sorted(ZIPS)),
    added=st.lists(st.tuples(NAMES, st.binary(max_size=3)), max_size=3),
    links=st.booleans(),
    dense=st.booleans(),
    cuts=st.just([]) | CUTS,
    end=st.none() | st.floats(0, 1),
)
def test_archives(home: Path, part, added, links, dense, cuts, end) -> None:
    """Every archive given with --data is refused, as none is the published one."""
    _count("archives")
    folder = home / "data" / "omniglot"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ZIPS.items():
        (folder / f"{name}.zip").write_bytes(content)
    made = _mutated(_archive(ZIPS[part], added, links, dense), cuts)
    (folder / f"{part}.zip").write_bytes(made if end is None else made[: int(end * len(made))])
    with contained(home / "here", home / "cache"):
        code, error = ends_well("theory", "--data", "data", "--out", "here")
    assert code == 2 and f"{Path('data', 'omniglot')}" in error, error


@fuzz
@given(
    content=st.binary(max_size=300) | st.builds(_mutated, st.just(next(iter(ZIPS.values()))), CUTS)
)
def test_caches(home: Path, content: bytes) -> None:
    """A cache of any bytes is named and not used; it is rebuilt if it can be."""
    _count("caches")
    cache = home / "cache" / "reptile-verification"
    cache.mkdir(parents=True, exist_ok=True)
    decoded = cache / f"omniglot-{omniglot.SIZE}-{omniglot.PUBLISHED.decoded[:12]}.npy"
    decoded.write_bytes(content)
    for part in omniglot.PUBLISHED.parts:
        (cache / f"{part.name}.zip").write_bytes(content)
    with contained(home):
        code, error = ends_well("theory", "--dataset", "omniglot", "--out", "here")
    assert code == 2 and "there is no network" in error, error
    assert decoded.read_bytes() == content
