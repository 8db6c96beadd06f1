"""Checkpoints: tensors and a JSON record in one file, whole or absent.

The format is safetensors, which holds no code. A digest of both is stored with them, so that a
damaged file is reported instead of used.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from reptile_core.files import write_atomically


class CheckpointError(ValueError):
    """A file that is there but cannot be used; the message says why. It is never deleted."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors (any device) and a JSON-able record."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(record)
    metadata = {"record": text, "digest": _digest(on_cpu, text)}
    write_atomically(path, save(on_cpu, metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises FileNotFoundError where there is no file, and CheckpointError where it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned into memory aligned as torch's own. Where the file put them, a matrix product
            # may round differently.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        text = metadata["record"]
        record = json.loads(text)
        digest = _digest(tensors, text)
    except Exception as error:  # whatever hostile bytes lead safetensors, torch and json to
        raise CheckpointError(
            f"{path}: expected a checkpoint, found {_found(path)} ({error})"
        ) from error
    if metadata.get("digest") != digest:
        raise CheckpointError(
            f"{path}: expected a content with the digest noted in it, found one that was altered"
        )
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: expected a record of names and values, found another kind")
    return tensors, record


def _found(path: Path) -> str:
    """Return what an unreadable file seems to be.

    A safetensors file begins with the length of its header and the header itself: JSON that says
    where each tensor ends.
    """
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        if len(content) < 8 or (content[8:9] == b"{" and len(content) < 8 + length):
            return f"one cut short, to {len(content)} bytes"
        tensors = json.loads(content[8 : 8 + length])
        ends = [
            entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"
        ]
        whole = 8 + length + max(ends)
        if len(content) < whole:
            return f"one cut short, to {len(content)} bytes of {whole}"
        return "one that was altered"
    except Exception:  # nothing can be relied on in such a file
        return "a file that is none"


def _digest(tensors: Mapping[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
