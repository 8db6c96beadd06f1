"""What a GPU run leaves, packed into few small files.

Tables are in one archive, and final states in up to three files.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from reptile_core.checkpoints import load_checkpoint, save_checkpoint
from reptile_core.files import write_atomically

WORK = "work"  # where the parts write, in the output folder
MAX_BYTES = 16 * 2**20
STATE_FILES = 3
RUNS = "runs"  # the folder of checkpoints, which hold many states of a run


def pack(out: Path) -> list[str]:
    """Write tables.tar.gz and states-N.safetensors, and return what did not fit.

    They hold what the parts have written. A state is phi after the last iteration of a run, and is
    named by the run's file. The record of each is kept with it.
    """
    left_out = _pack_tables(out)
    groups: list[dict[str, Tensor]] = [{}]
    records: list[dict[str, object]] = [{}]
    size = 0
    for name, phi, record in _final_states(out / WORK):
        taken = phi.numel() * phi.element_size() + 4096  # the record, and the state's name
        if size + taken > MAX_BYTES:
            if len(groups) == STATE_FILES:
                left_out.append(name)
                continue
            groups, records, size = [*groups, {}], [*records, {}], 0
        groups[-1][name], records[-1][name] = phi, record
        size += taken
    for number, (group, record) in enumerate(zip(groups, records, strict=True), 1):
        if group:
            save_checkpoint(out / f"states-{number}.safetensors", group, record)
    return left_out


def _pack_tables(out: Path) -> list[str]:
    """Archive all but the runs, smallest files first, and return what does not fit."""
    files = [
        path
        for path in (out / WORK).rglob("*")
        if path.is_file() and RUNS not in path.relative_to(out).parts
    ]
    packed, left_out = io.BytesIO(), []
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(files, key=lambda path: (path.stat().st_size, path)):
            name = str(path.relative_to(out / WORK))
            if packed.tell() + path.stat().st_size > MAX_BYTES - 2**20:
                left_out.append(name)
            else:
                archive.add(path, name)
    write_atomically(out / "tables.tar.gz", packed.getvalue())
    return left_out


def _final_states(work: Path) -> Iterator[tuple[str, Tensor, dict[str, object]]]:
    for path in sorted(work.glob(f"*/{RUNS}/*.safetensors")):
        tensors, record = load_checkpoint(path)
        yield str(path.relative_to(work)), tensors["phi"], record
