"""Checkpoints: tensors and a JSON record in one file, whole or absent.

The format is safetensors, which holds no code. A digest of both goes with them, so that a damaged file is named
instead of used.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
    """Read what `save_checkpoint` wrote. FileNotFoundError where there is none, CheckpointError where it is damaged."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned into memory aligned as torch's own: a matrix product may round otherwise where the file put them.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        text = metadata["record"]
        record = json.loads(text)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint, found a file that cannot be read ({error})") from error
    if metadata.get("digest") != _digest(tensors, text):
        raise CheckpointError(f"{path}: expected a content with the digest noted in it, found another")
    return tensors, record


def _digest(tensors: Mapping[str, Tensor], record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
