"""The pictures in a zip or a folder, read in memory within bounds, however they were packed.

Nothing is ever unpacked to disk. What no honest zip of small pictures holds is refused by the zip's
directory alone, before a byte is decompressed.
"""

import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from reptile_core.datasets.common import DataError

MAX_RATIO = 16  # of compression: pictures are compressed already


@dataclass(frozen=True)
class FileKind:
    """A kind of file: its suffix, and how large one such file and a zip of them may be.

    The limits are ten times the published sizes, and small enough to do no harm.
    """

    suffix: str
    file_bytes: int
    zip_bytes: int

    def __contains__(self, path: str) -> bool:
        """Return whether a path is that of a picture.

        macOS adds `__MACOSX/` and `._NAME.png`, which are not pictures.
        """
        folder, _, name = path.rpartition("/")
        return (
            name.endswith(self.suffix)
            and not name.startswith(".")
            and "__MACOSX" not in folder.split("/")
        )


PNGS = FileKind(".png", 2**13, 2**26)  # Omniglot's drawings: 522 bytes, 9 MB
# CIFAR-FS, the 600 images of a class in one: 1.2 MB, 100 MB.
SHEETS = FileKind(".webp", 2**24, 2**30)

Archive = Path | IO[bytes]  # a zip, a folder, or a zip in memory
Members = list[tuple[str, Callable[[], bytes]]]  # the path of each picture, and how to read it


def _check_member(info: zipfile.ZipInfo, kind: FileKind, where: object) -> None:
    name, mode = info.orig_filename, info.external_attr >> 16
    if (
        name.startswith("/")
        or set(name) & set("\\:\0")
        or ".." in name.split("/")
        or stat.S_ISLNK(mode)
    ):
        raise DataError(
            f"{where}: expected members inside it, found {name!r}, which points elsewhere"
        )
    if name not in kind:
        return  # never read
    if info.flag_bits & 1:
        raise DataError(f"{where}: expected plain members, found {name!r} encrypted")
    # Other methods may take gigabytes.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{where}: expected members deflated or stored, found {name!r} of another method"
        )
    if info.file_size > min(kind.file_bytes, MAX_RATIO * max(info.compress_size, 1)):
        raise DataError(
            f"{where}: expected at most {kind.file_bytes} bytes a member, compressed "
            f"{MAX_RATIO}-fold at most, found {name!r} of {info.file_size} bytes in "
            f"{info.compress_size}"
        )


def _check_count(count: int, limit: int, where: object) -> None:
    """Raise DataError where `count` is above `limit`.

    This bounds the total too, as each member that is read has at most `file_bytes`.
    """
    if count > limit:
        raise DataError(
            f"{where}: expected at most {limit} files and folders, found {count} or more"
        )


def files(folder: Path, *, limit: int) -> Iterator[os.DirEntry[str]]:
    """Yield every regular file below a folder, in no order, without following links to folders."""

    def walk(path: str) -> Iterator[os.DirEntry[str]]:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from walk(entry.path)
                elif entry.is_file():
                    yield entry

    for count, entry in enumerate(walk(str(folder)), 1):
        _check_count(count, limit, folder)
        yield entry


def read_file(path: Path | str, limit: int) -> bytes:
    """Return the first bytes of a file, at most `limit` + 1 of them.

    One more than the limit shows that there are too many.
    """
    with open(path, "rb") as file:
        return file.read(limit + 1)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    with archive.open(info) as file:
        return file.read(limit + 1)  # bounded whatever the directory says


@contextmanager
def members(source: Archive, kind: FileKind, *, limit: int, where: object) -> Iterator[Members]:
    """Yield the pictures of a zip or a folder, each with a function that reads it.

    In a folder, paths begin with the folder's name. At most `limit` files are looked at. A reader
    returns at most `kind.file_bytes` + 1 bytes. Raises DataError for what `_check_member` refuses.
    A damaged zip may also make zipfile raise exceptions of its own.
    """
    if isinstance(source, Path) and source.is_dir():
        paths = {entry.path: Path(entry.path) for entry in files(source, limit=limit)}
        found: Members = []
        for text, path in paths.items():
            name = path.relative_to(source.parent).as_posix()
            if name in kind:
                found.append((name, partial(read_file, text, kind.file_bytes)))
        yield found
        return
    size = source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)
    if size > kind.zip_bytes:
        raise DataError(f"{where}: expected a zip of at most {kind.zip_bytes} bytes, found {size}")
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{where}: expected a whole zip, found a truncated one or none ({error})"
        ) from error
    with archive:
        infos = archive.infolist()
        _check_count(len(infos), limit, where)
        for info in infos:
            _check_member(info, kind, where)
        wanted = [info for info in infos if info.filename in kind]
        yield [
            (info.filename, partial(_read_member, archive, info, kind.file_bytes))
            for info in wanted
        ]
