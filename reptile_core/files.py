"""Files that are whole or absent: written under another name, synced, and renamed into place."""

import contextlib
import hashlib
import os
import tempfile
from itertools import chain
from pathlib import Path

SOURCES = {".py", ".c", ".h"}  # suffixes of the files that results depend on
# Suffix of a file that is being written; a writer that is killed leaves one behind.
UNFINISHED = ".part"


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, whole or not at all.

    At any moment and after any crash, a reader finds the old file or the new one. Raises
    OSError, which names the path, where it cannot write. The old file is then as it was, and no
    other file is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED
        )
    except OSError as error:
        raise _naming(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are only for their owner
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt too must leave nothing behind
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise _naming(path, error) from error
        raise
    _sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder that nobody writes to now.

    Folders in it are left alone: others may write there.
    """
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def sources_digest(root: Path, *names: str) -> str:
    """Return the SHA-256 (hex) of all sources in folders and files, by name and content.

    names: folders and files of `root`.

    The same code has the same digest wherever `root` is, in a checkout or an installation.
    """
    found = hashlib.sha256()
    paths = chain.from_iterable(_sources(root / name) for name in names)
    for path in sorted(paths):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return found.hexdigest()


def _sources(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.suffix in SOURCES]


def _naming(path: Path, error: OSError) -> OSError:
    """Return the same error with the path that was to be written.

    The error of a write that fails names no path.
    """
    return OSError(error.errno, error.strerror or str(error), str(path))


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
