"""Omniglot found, verified and cached.

Faults are tested on made-up zips of a few characters, then the real data.
"""

import http.server
import io
import os
import socket
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import reptile_core.datasets as datasets
from reptile_core.datasets import DataError, Unavailable, archives, download, omniglot
from reptile_core.datasets.common import Characters, images_digest
from tests.helpers.omniglot import (
    BACKGROUND,
    EDITION,
    FIRST,
    IMAGES,
    PNGS,
    ZIPS,
    Pngs,
    nearest,
    png,
    zipped,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's data and the network from tests that don't ask for them."""

    def refuse(url: str, **_: object) -> None:
        raise Unavailable(f"{url}: there is no network")

    monkeypatch.delenv("REPTILE_DATA", raising=False)
    monkeypatch.setattr(omniglot, "download", refuse)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with the made-up zips."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, archive in ZIPS.items():
        (folder / f"{name}.zip").write_bytes(archive)
    return folder


def get(data: Path | None, tmp_path: Path) -> Characters:
    return omniglot.load(data=data, cache=tmp_path / "cache", quiet=True, edition=EDITION)


def unpack(pngs: Pngs, folder: Path) -> None:
    for name, drawing in pngs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(drawing)


def no_decoding(*_: object) -> None:
    pytest.fail("a drawing was decoded")


# ---- where the data are


@pytest.mark.parametrize("below", ["", "omniglot", "python", "omniglot/python"])
@pytest.mark.parametrize("folders", [(), ("images_evaluation",), tuple(PNGS)], ids=len)
def test_zips_and_folders_anywhere(tmp_path: Path, below: str, folders: tuple[str, ...]) -> None:
    root = tmp_path / "data" / below
    root.mkdir(parents=True)
    for name in PNGS:
        if name in folders:
            unpack(PNGS[name], root)
        else:
            (root / f"{name}.zip").write_bytes(ZIPS[name])
    characters = get(tmp_path / "data", tmp_path)
    np.testing.assert_array_equal(characters.images, IMAGES)
    assert (
        characters.real and characters.name == "omniglot" and characters.content == EDITION.decoded
    )


def test_what_is_no_drawing_is_ignored(tmp_path: Path, data: Path) -> None:
    mac = "images_background/Zulu/character01/._0001_01.png"
    extra = {"images_background/": b"", ".DS_Store": b"x", "__MACOSX/" + FIRST: b"x", mac: b"x"}
    (data / "images_background.zip").write_bytes(zipped(BACKGROUND | extra))
    np.testing.assert_array_equal(get(data, tmp_path).images, IMAGES)


def test_named_but_not_there(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^data: expected a directory, found none at .*nowhere"):
        datasets.load("auto", data=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"^data: expected images_background.zip .* found neither"):
        datasets.load("auto", data=tmp_path)
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"^\$REPTILE_DATA: expected a directory"):
        datasets.load("auto", cache=tmp_path / "cache")
    (data / "images_evaluation.zip").unlink()
    with pytest.raises(
        DataError, match=r"expected images_evaluation.zip or .* next to .*, found none"
    ):
        datasets.load("auto", data=data)


def test_environment_is_second_and_may_hold_other_data(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path / "other"))
    with pytest.raises(Unavailable):  # the search went on to the network
        get(None, tmp_path)
    np.testing.assert_array_equal(get(data, tmp_path).images, IMAGES)
    monkeypatch.setenv("REPTILE_DATA", str(data))
    assert str(data) in get(None, tmp_path).source


# ---- faults


def encrypted() -> bytes:
    """Return a zip with the encryption flag set in each header, local and central."""
    archive = bytearray(zipped(BACKGROUND))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = archive.find(signature)
        while at >= 0:
            archive[at + offset] |= 1
            at = archive.find(signature, at + 4)
    return bytes(archive)


def linked() -> bytes:
    buffer = io.BytesIO(zipped(BACKGROUND))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("images_background/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "elsewhere")
    return buffer.getvalue()


def without(*names: str) -> Pngs:
    return {name: drawing for name, drawing in BACKGROUND.items() if name not in names}


def corrupt() -> bytes:
    """Return a zip with one bit of a stored drawing flipped, as its own checksum notices."""
    archive = bytearray(zipped(BACKGROUND, zipfile.ZIP_STORED))
    archive[archive.find(b"IDAT") + 20] ^= 1
    return bytes(archive)


OTHER = np.zeros((105, 105), bool)
FAULTS: dict[str, tuple[bytes, str]] = {
    "not a zip": (
        b"<html>log in first</html>",
        "expected a whole zip, found a truncated one or none",
    ),
    "empty": (b"", "expected a whole zip"),
    "truncated": (ZIPS["images_background"][:-500], "expected a whole zip, found a truncated one"),
    "corrupt": (corrupt(), "0001_01.png: cannot be read: BadZipFile: Bad CRC"),
    "climbs out": (
        zipped(BACKGROUND | {"../a.png": b"x"}),
        r"found '\.\./a.png', which points elsewhere",
    ),
    "absolute": (zipped(BACKGROUND | {"/evil": b"x"}), "found '/evil', which points elsewhere"),
    "drive": (zipped(BACKGROUND | {"C:evil": b"x"}), "found 'C:evil', which points elsewhere"),
    "backslash": (zipped(BACKGROUND | {"..\\evil": b"x"}), "which points elsewhere"),
    "link": (linked(), "found 'images_background/link', which points elsewhere"),
    "encrypted": (encrypted(), "expected plain members, found .* encrypted"),
    "big member": (zipped(BACKGROUND | {FIRST: os.urandom(9000)}), "at most 8192 .* found .* 9000"),
    "dense member": (zipped(BACKGROUND | {FIRST: bytes(8000)}), "compressed 16-fold at most"),
    "bzip2": (zipped(BACKGROUND, zipfile.ZIP_BZIP2), "of another method"),
    "many members": (zipped(BACKGROUND | {f"{i}": b"" for i in range(2000)}), "at most 1160 files"),
    "missing": (
        zipped(without(FIRST)),
        "0001 to 0002 in images_background/, found missing 1: '0001_01'",
    ),
    "too many": (zipped(BACKGROUND | {"images_background/A.png": b"x"}), "too many 1: .*A.png"),
    "stranger": (
        zipped(BACKGROUND | {FIRST.replace("0001", "0007"): b"x"}),
        "too many 1: .*0007_01",
    ),
    "twice": (zipped(BACKGROUND | {FIRST.replace("Zulu", "Yoke"): b"x"}), "too many 1: .*Yoke"),
    "no drawings": (zipped({}), "missing 40: '0001_01', '0001_02', '0001_03', …"),
    "wrong size": (zipped(BACKGROUND | {FIRST: png(OTHER[:28, :28])}), "found mode '1', 28×28"),
    "wrong mode": (zipped(BACKGROUND | {FIRST: png(OTHER, "L")}), "found mode 'L', 105×105"),
    "no PNG": (zipped(BACKGROUND | {FIRST: b"GIF89a"}), "cannot be read: UnidentifiedImageError"),
    "cut PNG": (
        zipped(BACKGROUND | {FIRST: BACKGROUND[FIRST][:99]}),
        "0001_01.png: cannot be read",
    ),
    "altered": (
        zipped(BACKGROUND | {FIRST: png(OTHER)}),
        "content is not as published: expected SHA-256",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_zip(tmp_path: Path, data: Path, fault: str) -> None:
    archive, message = FAULTS[fault]
    (data / "images_background.zip").write_bytes(archive)
    with pytest.raises(DataError, match=message) as caught:
        get(data, tmp_path)
    assert str(caught.value).startswith(str(data)) and "\n" not in str(caught.value)
    # "auto" would go on to the next source if it were Unavailable.
    assert not isinstance(caught.value, Unavailable)


def test_faults_of_a_folder(tmp_path: Path, data: Path) -> None:
    (data / "images_background.zip").unlink()
    unpack(without(FIRST), data)
    with pytest.raises(DataError, match="found missing 1: '0001_01'"):
        get(data, tmp_path)
    unpack({FIRST: bytes(10**6)}, data)
    with pytest.raises(DataError, match="expected a PNG of at most 8192 bytes, found more"):
        get(data, tmp_path)


def test_a_large_file_is_not_opened(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "PNGS", replace(archives.PNGS, zip_bytes=100))
    with pytest.raises(DataError, match="expected a zip of at most 100 bytes"):
        get(data, tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4),
    junk=st.none() | st.binary(max_size=200),
)
def test_no_bytes_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[tuple[float, int, bytes]],
    junk: bytes | None,
) -> None:
    archive = bytearray(ZIPS["images_evaluation"]) if junk is None else bytearray(junk)
    for place, length, replacement in cuts:
        at = int(place * len(archive))
        archive[at : at + length] = replacement
    try:
        part = EDITION.parts[1]
        images = omniglot._read_part(io.BytesIO(archive), part, 3, lambda: None)
    except DataError:
        return
    np.testing.assert_array_equal(images, IMAGES[2:])  # the change did not touch the content


# ---- the cache


def test_second_start_decodes_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get(data, tmp_path)
    monkeypatch.setattr(omniglot, "_decode", no_decoding)
    for again in (get(data, tmp_path), get(None, tmp_path)):
        np.testing.assert_array_equal(again.images, first.images)
        assert again.content == first.content
    assert {path.name[:9] for path in (tmp_path / "cache").iterdir()} == {"omniglot-", "verified-"}


@pytest.mark.parametrize("folder", [False, True])
def test_a_changed_source_is_verified_again(tmp_path: Path, data: Path, folder: bool) -> None:
    changed = data / "images_background.zip"
    if folder:
        changed.unlink()
        unpack(BACKGROUND, data)
        changed = data / FIRST
    get(data, tmp_path)
    os.utime(changed, ns=(1, 1))
    assert get(data, tmp_path).content == EDITION.decoded  # touched, but the same
    changed.write_bytes(b"something else")
    with pytest.raises(DataError):
        get(data, tmp_path)


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "junk", "pickle", "directory"])
def test_a_damaged_cache_is_named_and_rebuilt(tmp_path: Path, data: Path, damage: str) -> None:
    get(data, tmp_path)
    (path,) = (tmp_path / "cache").glob("*.npy")
    good = path.read_bytes()
    if damage == "directory":
        path.unlink()
        path.mkdir()
    elif damage == "pickle":
        buffer = io.BytesIO()
        np.save(buffer, np.array([print], object), allow_pickle=True)
        path.write_bytes(buffer.getvalue())
    else:
        bit = good[:-1] + bytes([good[-1] ^ 1])
        path.write_bytes(
            {"bit": bit, "cut": good[:-9], "empty": b"", "junk": os.urandom(999)}[damage]
        )
    with pytest.warns(UserWarning) as warned:
        np.testing.assert_array_equal(get(data, tmp_path).images, IMAGES)
    assert str(path) in str(warned[0].message) and "damaged" in str(warned[0].message)
    if damage != "directory":
        assert path.read_bytes() == good
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            get(data, tmp_path)


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, data: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.warns(UserWarning) as warned:
        np.testing.assert_array_equal(get(data, tmp_path).images, IMAGES)
    assert any("cache: cannot write" in str(warning.message) for warning in warned)


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left"):
        get(data, tmp_path)
    assert not list((tmp_path / "cache").iterdir())


# ---- the network


def served(zips: dict[str, bytes]) -> Callable[..., io.BytesIO]:
    return lambda url, **_: io.BytesIO(zips[url.rpartition("/")[2].removesuffix(".zip")])


def test_downloaded_once_and_kept_once_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "download", served(ZIPS | {"images_evaluation": b"<html>"}))
    with pytest.raises(
        Unavailable, match=r"what was downloaded is not Omniglot: images_evaluation\.zip"
    ):
        get(None, tmp_path)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(omniglot, "download", served(ZIPS))
    assert get(None, tmp_path).source == omniglot.URL
    monkeypatch.setattr(omniglot, "download", no_decoding)
    (cached,) = (tmp_path / "cache").glob("*.npy")
    cached.unlink()
    # The zips that were kept are enough.
    np.testing.assert_array_equal(get(None, tmp_path).images, IMAGES)
    cached.unlink()
    (tmp_path / "cache" / "images_background.zip").write_bytes(b"damaged")
    monkeypatch.setattr(omniglot, "download", served(ZIPS))
    with pytest.warns(UserWarning, match="a downloaded zip is damaged"):
        assert get(None, tmp_path).source == omniglot.URL


def test_auto_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    characters = datasets.load("auto", cache=tmp_path / "cache", quiet=True)
    assert (characters.name, characters.real) == ("glyphs", False)
    notice = capsys.readouterr().err
    for words in ("NOT OMNIGLOT", "there is no network", "--data DIR", "REPTILE_DATA"):
        assert words in notice
    with pytest.raises(Unavailable, match="there is no network"):
        datasets.load("omniglot", cache=tmp_path / "cache")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the address of a real HTTP server on the loopback interface, with the made-up zips."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(omniglot, "download", download.download)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(data))
    ) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


def test_a_real_download(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "URL", server)
    np.testing.assert_array_equal(get(None, tmp_path).images, IMAGES)
    with pytest.raises(Unavailable, match="expected at most 100 bytes, found more"):
        download.download(f"{server}images_background.zip", limit=100, quiet=True)
    with pytest.raises(Unavailable, match=r"cannot be downloaded: 404"):
        download.download(f"{server}nothing.zip", limit=100, quiet=True)


@pytest.mark.parametrize("behaviour", ["refuses", "is silent"])
def test_no_network_is_noticed_quickly(monkeypatch: pytest.MonkeyPatch, behaviour: str) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "ANSWER_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # held but not listened to: connections are refused
        if behaviour == "is silent":
            server.listen()
        start = time.monotonic()
        message = {"refuses": "refused", "is silent": "no answer within 0.5 seconds"}[behaviour]
        with pytest.raises(Unavailable, match=message):
            download.download(
                f"http://127.0.0.1:{server.getsockname()[1]}/a.zip", limit=10, quiet=True
            )
        assert time.monotonic() - start < 3


# ---- the real data


@pytest.fixture(scope="module")
def real() -> Path:
    directory = os.environ.get("REPTILE_DATA")
    if not directory or not omniglot._locate(Path(directory), omniglot.PUBLISHED):
        pytest.skip("$REPTILE_DATA is unset or holds no Omniglot")
    return Path(directory)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "cache"


@pytest.fixture(scope="module")
def loaded(real: Path, real_cache: Path) -> Characters:
    return datasets.load("omniglot", data=real, cache=real_cache, quiet=True)


def test_real_content(loaded: Characters) -> None:
    assert loaded.images.shape == (1623, 20, 28, 28) and loaded.images.dtype == np.uint8
    assert loaded.content == images_digest(loaded.images) == omniglot.PUBLISHED.decoded
    assert set(np.unique(loaded.images)) == {0, 1}
    # The share of paper in the verified originals.
    assert loaded.images.mean() == pytest.approx(0.9195, abs=1e-4)
    assert loaded.real


def test_real_second_start(
    loaded: Characters, real: Path, real_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(omniglot, "_decode", no_decoding)
    start = time.process_time()
    again = datasets.load("auto", data=real, cache=real_cache)
    assert time.process_time() - start < 0.5
    np.testing.assert_array_equal(again.images, loaded.images)


def test_real_drawings_are_resized_as_by_hand(loaded: Characters, real: Path) -> None:
    """Real drawings are resized as by hand, compared with files read here by their number.

    These are the first, the last, those at the border of the two parts, and two that are alike.
    """
    sources = omniglot._locate(real, omniglot.PUBLISHED)
    wanted = {"0001_01", "0192_03", "0192_19", "0964_20", "0965_01", "1623_20"}
    seen = set()
    for part in omniglot.PUBLISHED.parts:
        with archives.members(
            sources[part.name], archives.PNGS, limit=part.limit, where=""
        ) as listing:
            for name, read in listing:
                if (address := name[-11:-4]) in wanted:
                    drawing = np.asarray(Image.open(io.BytesIO(read())))
                    found = loaded.images[int(address[:4]) - 1, int(address[5:]) - 1]
                    np.testing.assert_array_equal(found, nearest(drawing))
                    seen.add(address)
    assert seen == wanted


def test_real_folders_give_the_same(
    loaded: Characters, real: Path, real_cache: Path, tmp_path: Path
) -> None:
    for part, source in omniglot._locate(real, omniglot.PUBLISHED).items():
        if source.is_dir():
            pytest.skip("$REPTILE_DATA holds folders already")
        with zipfile.ZipFile(source) as archive:
            archive.extractall(tmp_path)  # safe to extract, as the content was verified above
        assert (tmp_path / part).is_dir()
    folders = datasets.load("omniglot", data=tmp_path, cache=tmp_path / "cache", quiet=True)
    np.testing.assert_array_equal(folders.images, loaded.images)
    start = time.process_time()
    datasets.load("omniglot", data=tmp_path, cache=tmp_path / "cache", quiet=True)
    assert time.process_time() - start < 1.5  # 32,460 files are looked at, none read
