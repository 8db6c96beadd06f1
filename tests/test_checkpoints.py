"""Checkpoints: round trips, damaged files and failing writers.

What is written comes back, damaged files are named, and a failing writer leaves the old file.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reptile_core.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from reptile_core.files import write_atomically

RECORD = {"iteration": 12, "seed": 3, "curve": [0.25, 0.5], "name": "g1+g2 — φ", "best": None}


def tensors() -> dict[str, Tensor]:
    return {
        "phi": torch.linspace(-1, 1, 7),
        "v": torch.linspace(0, 1, 6, dtype=torch.float64).view(2, 3),
        "t": torch.tensor(5.0),
        "index": torch.tensor([2**40, -1]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "none": torch.zeros(0),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, tensors(), RECORD)
    return path


def assert_refused(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before  # it is never deleted


def test_round_trip(saved: Path) -> None:
    found, record = load_checkpoint(saved)
    assert record == RECORD
    assert found.keys() == tensors().keys()
    for name, expected in tensors().items():
        assert found[name].dtype == expected.dtype and found[name].shape == expected.shape
        # Bits are compared, as nan is unequal to itself and -0.0 equals 0.0.
        raw = [t.reshape(-1).view(torch.uint8).tolist() for t in (found[name], expected)]
        assert raw[0] == raw[1]


def test_views_and_graphs_are_written_by_value(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4).requires_grad_()
    save_checkpoint(tmp_path / "a", {"transposed": whole.T, "strided": whole[:, 1::2] * 2}, {})
    found, _ = load_checkpoint(tmp_path / "a")
    assert torch.equal(found["transposed"], whole.T) and torch.equal(
        found["strided"], whole[:, 1::2] * 2
    )


def test_missing_directories_are_made(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a" / "b" / "c", {"x": torch.ones(1)}, {})
    assert load_checkpoint(tmp_path / "a" / "b" / "c")[1] == {}


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        load_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    assert_refused(saved)


def test_one_byte_more(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    assert_refused(saved)


@pytest.mark.parametrize("bit", [0, 7])
def test_flipped_bit_in_the_tensors(saved: Path, bit: int) -> None:
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(header, len(content), 5):
        saved.write_bytes(_flipped(content, place, bit))
        assert_refused(saved)


def test_flipped_bit_in_the_header_is_refused_or_harmless(saved: Path) -> None:
    """A flipped bit in the header is refused, or what was written comes back exactly.

    Spaces that pad the header mean nothing, so that a change there does no harm.
    """
    content = saved.read_bytes()
    for place in range(8 + int.from_bytes(content[:8], "little")):
        saved.write_bytes(_flipped(content, place, 0))
        try:
            found, record = load_checkpoint(saved)
        except CheckpointError as refused:
            assert str(saved) in str(refused)
        else:
            assert (found.keys(), record) == (tensors().keys(), RECORD), (
                f"byte {place} altered the record unnoticed"
            )


@pytest.mark.parametrize(
    "metadata", [None, {}, {"record": "{}"}, {"digest": "0"}, {"record": "{", "digest": "0"}]
)
def test_missing_metadata(tmp_path: Path, metadata: dict | None) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"phi": torch.ones(2)}, path, metadata)
    assert_refused(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text(json.dumps(RECORD))
    assert_refused(path)


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    "error", [OSError("no space"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"]
)
def test_failing_writer_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)):
            save_checkpoint(saved, {"phi": torch.zeros(1000)}, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_content_is_synced_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    path.write_bytes(b"old")
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (seen.append(("sync", path.read_bytes())), sync(handle))
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (seen.append(("replace", Path(a).read_bytes())), replace(a, b))
    )
    write_atomically(path, b"new")
    assert seen[:2] == [("sync", b"old"), ("replace", b"new")] and path.read_bytes() == b"new"


def test_a_record_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "a", {"x": torch.ones(1)}, {"when": object()})
    assert list(tmp_path.iterdir()) == []


def _flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
