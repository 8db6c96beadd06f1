"""CIFAR-FS found, verified and cached.

Both layouts and their faults are tested on a few made-up images, then the real data.
"""

import hashlib
import io
import os
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reptile_core.datasets import DataError, Unavailable, cifar_fs
from reptile_core.datasets.cifar_fs import Edition
from reptile_core.datasets.common import ColourImages
from reptile_core.datasets.split import split_images
from reptile_core.tasks import Examples, ImagePool
from tests.helpers.data import zipped

# The names are out of alphabetical order, so that sorting shows.
CLASSES = {"train": ["bee", "ant", "cat"], "val": ["dog"], "test": ["fox", "elk"]}
ROWS, COLUMNS = 2, 3
Files = dict[str, bytes]
stored = partial(zipped, kind=zipfile.ZIP_STORED)


def picture(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def webp(pixels: np.ndarray) -> bytes:
    return picture(pixels, "webp", lossless=True, exact=True)


def sheet(images: np.ndarray) -> np.ndarray:
    return np.vstack([np.hstack(list(row)) for row in images.reshape(ROWS, COLUMNS, 32, 32, 3)])


def canonical(images: np.ndarray) -> np.ndarray:
    """Return the images in order of their digests: the oracle."""
    return np.array(sorted(images, key=lambda image: hashlib.sha256(image.tobytes()).hexdigest()))


def path(split: str, name: str) -> str:
    return f"cifar_fs/images/{split}/{name}.webp"


RNG = np.random.default_rng(0)
PIXELS = {
    name: RNG.integers(0, 256, (6, 32, 32, 3), np.uint8)
    for names in CLASSES.values()
    for name in names
}
EXPECTED = {
    split: np.array([canonical(PIXELS[n]) for n in sorted(names)])
    for split, names in CLASSES.items()
}
SHEETS = {
    path(split, name): webp(sheet(PIXELS[name]))
    for split, names in CLASSES.items()
    for name in names
}
LISTS = {
    f"cifar_fs/splits/{split}.txt": "\n".join(names).encode() for split, names in CLASSES.items()
}
ZIP = stored(SHEETS | LISTS)
CONTENT = hashlib.sha256(
    b"[[6, 6, 32, 32, 3], [3, 1, 2]]" + b"".join(images.tobytes() for images in EXPECTED.values())
).hexdigest()
EDITION = Edition((3, 1, 2), ROWS, COLUMNS, CONTENT)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's data from tests that don't ask for them."""
    monkeypatch.delenv("REPTILE_DATA", raising=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with the made-up zip."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cifar_fs.zip").write_bytes(ZIP)
    return folder


def folders(root: Path, *, images: str = "data") -> Path:
    """Write the authors' layout, and return its folder.

    Files have other names and another order than in the zip's sheets.
    """
    (root / "splits" / "bertinetto").mkdir(parents=True)
    for split, names in CLASSES.items():
        (root / "splits" / "bertinetto" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (root / images / name).mkdir(parents=True)
            for i, pixels in enumerate(PIXELS[name][::-1]):
                (root / images / name / f"{name}_s_{i:06}.png").write_bytes(picture(pixels, "png"))
    return root


def get(data: Path | None, tmp_path: Path) -> ColourImages:
    return cifar_fs.load(data=data, cache=tmp_path / "cache", quiet=True, edition=EDITION)


def assert_expected(found: ColourImages) -> None:
    for split, images in zip(EXPECTED, (found.train, found.validation, found.test), strict=True):
        np.testing.assert_array_equal(images, EXPECTED[split])
        assert not images.flags.writeable
    assert (found.name, found.content, found.real) == ("cifar_fs", CONTENT, True)


def no_decoding(*_: object) -> None:
    pytest.fail("an image was decoded")


# ---- where the data are


@pytest.mark.parametrize("below", ["", "cifar_fs", "cifar100"])
@pytest.mark.parametrize("images", [None, "data", "images"])
def test_both_layouts_give_the_same_bits(tmp_path: Path, below: str, images: str | None) -> None:
    root = tmp_path / "data" / below
    if images:
        folders(root, images=images)
    else:
        root.mkdir(parents=True)
        (root / "cifar_fs.zip").write_bytes(ZIP)
    found = get(tmp_path / "data", tmp_path)
    assert_expected(found)
    assert str(root) in found.source


def test_environment_is_second_and_the_cache_third(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path / "other"))
    with pytest.raises(
        Unavailable, match=r"^cifar_fs: expected cifar_fs.zip, or data/ .* found neither; it is not"
    ):
        get(None, tmp_path)
    monkeypatch.setenv("REPTILE_DATA", str(data))
    assert_expected(get(None, tmp_path))
    monkeypatch.delenv("REPTILE_DATA")
    assert_expected(get(None, tmp_path))  # from the cache


def test_named_but_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data: expected a directory, found none at .*nowhere"):
        get(tmp_path / "nowhere", tmp_path)
    with pytest.raises(
        DataError, match=r"^data: expected cifar_fs.zip, or data/ .* found neither"
    ) as caught:
        get(tmp_path, tmp_path)
    assert not isinstance(caught.value, Unavailable)


# ---- faults


def without(name: str) -> Files:
    return {path: content for path, content in SHEETS.items() if path != name}


ANT = path("train", "ant")
BLANK = np.zeros((64, 96, 3), np.uint8)
FAULTS: dict[str, tuple[bytes, str]] = {
    "not a zip": (b"<html>log in first</html>", "expected a whole zip"),
    "truncated": (ZIP[:-300], "expected a whole zip, found a truncated one"),
    "climbs out": (
        stored(SHEETS | {"../a.webp": b"x"}),
        r"found '\.\./a.webp', which points elsewhere",
    ),
    "absolute": (stored(SHEETS | {"/a.txt": b"x"}), "which points elsewhere"),
    "class missing": (
        stored(without(ANT)),
        "expected 3 train, 1 val, 2 test classes, found 2 train, 1 val, 2 test",
    ),
    "class too many": (
        stored(SHEETS | {path("val", "gnu"): SHEETS[ANT]}),
        "found 3 train, 2 val, 2 test",
    ),
    "class twice": (
        stored(SHEETS | {path("test", "ant"): SHEETS[ANT]}),
        "every class once, found 'ant' in train and",
    ),
    "wrong split": (
        stored(without(ANT) | {path("val", "ant"): SHEETS[ANT]}),
        "found 2 train, 2 val, 2 test",
    ),
    "wrong name": (
        stored(without(ANT) | {path("train", "zebra"): SHEETS[ANT]}),
        "content is not as published",
    ),
    "no such split": (
        stored(SHEETS | {"images/extra/ant.webp": b"x"}),
        "found 'images/extra/ant.webp'",
    ),
    "wrong class": (
        stored(SHEETS | {ANT: SHEETS[path("val", "dog")]}),
        "content is not as published: expected SHA",
    ),
    "wrong size": (
        stored(SHEETS | {ANT: webp(BLANK[:32])}),
        "expected mode 'RGB', 96×64, found mode 'RGB', 96×32",
    ),
    "no sheet": (
        stored(SHEETS | {ANT: b"GIF89a"}),
        "ant.webp: cannot be read: UnidentifiedImageError",
    ),
    "cut sheet": (stored(SHEETS | {ANT: SHEETS[ANT][:-99]}), "ant.webp: cannot be read"),
    "large sheet": (
        stored(SHEETS | {ANT: webp(np.zeros((3000, 3000, 3), np.uint8))}),
        "found mode 'RGB', 3000×3000",
    ),
    "bomb": (
        zipped(SHEETS | {ANT: bytes(10**7)}),
        "compressed 16-fold at most",
    ),
    "many members": (stored(SHEETS | {f"{i}": b"" for i in range(2000)}), "at most 1144 files"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_zip(tmp_path: Path, data: Path, fault: str) -> None:
    archive, message = FAULTS[fault]
    (data / "cifar_fs.zip").write_bytes(archive)
    with pytest.raises(DataError, match=message) as caught:
        get(data, tmp_path)
    assert str(caught.value).startswith(str(data)) and "\n" not in str(caught.value)
    assert not isinstance(caught.value, Unavailable) and not (tmp_path / "cache").exists()


LISTED = "splits/bertinetto/val.txt"
# For each fault: a file, its new content (None: missing), and the message.
FOLDER_FAULTS: dict[str, tuple[str, bytes | None, str]] = {
    "image missing": ("data/ant/ant_s_000000.png", None, "ant: expected 6 PNG files, found 5"),
    "image altered": (
        "data/ant/ant_s_000000.png",
        picture(BLANK[:32, :32], "png"),
        "content is not as published",
    ),
    "image grey": (
        "data/ant/ant_s_000000.png",
        picture(BLANK[:32, :32, 0], "png"),
        "found mode 'L', 32×32",
    ),
    "image small": (
        "data/ant/ant_s_000000.png",
        picture(BLANK[:9, :8], "png"),
        "'RGB', 32×32, found mode 'RGB', 8×9",
    ),
    "image heavy": (
        "data/ant/ant_s_000000.png",
        bytes(9000),
        "expected at most 8192 bytes, found more",
    ),
    "image cut": (
        "data/ant/ant_s_000000.png",
        picture(BLANK[:32, :32], "png")[:60],
        "png: cannot be read: ",
    ),
    "class missing": ("data/ant", None, "ant: cannot be read: FileNotFoundError"),
    "images missing": (
        "data",
        None,
        "expected data/ or images/ next to splits/bertinetto/, found neither",
    ),
    "list missing": (LISTED, None, "cannot be read: FileNotFoundError: .*val.txt"),
    "list climbs out": (
        LISTED,
        b"../dog",
        "val.txt: expected names of classes, one a line, found something else",
    ),
    "list heavy": (LISTED, b"dog\n" * 9000, "val.txt: expected names of classes"),
    "list no text": (LISTED, b"\xff", "cannot be read: UnicodeDecodeError"),
    "list empty": (LISTED, b"", "found 3 train, 0 val, 2 test"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_faults_of_folders(tmp_path: Path, fault: str) -> None:
    root = folders(tmp_path / "data")
    get(root, tmp_path)  # the cache of the intact data must not hide the fault
    name, content, message = FOLDER_FAULTS[fault]
    if content is None:
        (root / name).rename(tmp_path / "elsewhere")
    else:
        (root / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        get(root, tmp_path)
    assert str(caught.value).startswith(str(root)) and "\n" not in str(caught.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4
    )
)
def test_no_bytes_raise_anything_else(tmp_path: Path, cuts: list[tuple[float, int, bytes]]) -> None:
    archive = bytearray(ZIP)
    for place, length, replacement in cuts:
        at = int(place * len(archive))
        archive[at : at + length] = replacement
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(archive)
    try:
        found = cifar_fs._read(damaged, EDITION, True)
    except DataError:
        return
    assert found.content == CONTENT  # the change did not touch the content


# ---- the cache


def test_second_start_decodes_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(data, tmp_path)
    monkeypatch.setattr(cifar_fs, "_pixels", no_decoding)
    assert_expected(get(data, tmp_path))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".json", ".rgb"}


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "directory"])
def test_a_damaged_cache_is_named_and_rebuilt(tmp_path: Path, data: Path, damage: str) -> None:
    get(data, tmp_path)
    (path,) = (tmp_path / "cache").glob("*.rgb")
    good = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    else:
        path.write_bytes(
            {"bit": good[:-1] + bytes([good[-1] ^ 1]), "cut": good[:-9], "empty": b""}[damage]
        )
    with pytest.warns(UserWarning) as warned:
        assert_expected(get(data, tmp_path))
    assert str(path) in str(warned[0].message) and "damaged" in str(warned[0].message)
    if damage != "directory":
        assert path.read_bytes() == good


@pytest.mark.parametrize(
    "record", [b"", b"[]", b"{}", b'{"shape": 1, "counts": [], "content": ""}']
)
def test_a_damaged_record_is_ignored(tmp_path: Path, data: Path, record: bytes) -> None:
    get(data, tmp_path)
    (path,) = (tmp_path / "cache").glob("*.json")
    path.write_bytes(record)
    assert_expected(get(data, tmp_path))
    assert path.read_bytes() != record


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path, data: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.warns(UserWarning, match="cache: cannot write"):
        assert_expected(get(data, tmp_path))


# ---- into training


def test_into_a_pool(tmp_path: Path, data: Path) -> None:
    """The pool has the training and test classes, scaled as the authors do: bytes / 255.

    They are not copied.
    """
    get(data, tmp_path)
    images = get(data, tmp_path)  # mapped
    split = split_images(images)
    assert split.train.shape == (3, 6, 32, 32, 3) and split.test.shape == (2, 6, 32, 32, 3)
    assert split.train.data_ptr() == images.train.ctypes.data
    pool = ImagePool(split.test, white=split.white)
    x = pool.minibatch(Examples(torch.tensor([0, 7]), torch.tensor([0, 1]))).x
    expected = EXPECTED["test"].reshape(-1, 32, 32, 3)[[0, 7]].astype("float32") / 0xFF
    np.testing.assert_array_equal(x.numpy(), expected)


# ---- the real data


@pytest.fixture(scope="module")
def real() -> Path:
    directory = os.environ.get("REPTILE_DATA")
    if not directory or not cifar_fs._locate(Path(directory)):
        pytest.skip("$REPTILE_DATA is unset or holds no CIFAR-FS")
    return Path(directory)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "cache"


@pytest.fixture(scope="module")
def loaded(real: Path, real_cache: Path) -> ColourImages:
    return cifar_fs.load(data=real, cache=real_cache, quiet=True)


def test_real_content(loaded: ColourImages) -> None:
    shapes = [images.shape for images in (loaded.train, loaded.validation, loaded.test)]
    assert shapes == [(classes, 600, 32, 32, 3) for classes in (64, 16, 20)]
    assert loaded.content == cifar_fs.PUBLISHED.content and loaded.real
    pixels = np.concatenate([loaded.train, loaded.validation, loaded.test])
    distinct = {hashlib.sha256(image).digest() for image in pixels.reshape(-1, 32 * 32 * 3)}
    assert len(distinct) == 59_974  # CIFAR-100 has 26 pictures twice


def test_real_pixels_are_as_published(loaded: ColourImages, real: Path) -> None:
    """Real images are the published pixels, read here from the zip.

    A class's images are the same up to their order.
    The whole has the digest that is published for pixels in order of classes and tiles.
    """
    source = cifar_fs._locate(real)
    assert source is not None
    if source.is_dir():
        pytest.skip("$REPTILE_DATA holds folders")
    with zipfile.ZipFile(source) as archive:
        paths = {Path(name).stem: name for name in archive.namelist() if name.endswith(".webp")}
        hasher, met = hashlib.sha256(), 0
        for label in sorted(paths):
            with Image.open(io.BytesIO(archive.read(paths[label]))) as image:
                sheet = np.asarray(image)
            tiles = (
                sheet.reshape(24, 32, 25, 32, 3).transpose(0, 2, 1, 3, 4).reshape(600, 32, 32, 3)
            )
            hasher.update(tiles.tobytes())
            split = Path(paths[label]).parent.name
            if label in ("apple", "shark", "worm"):
                images = {"train": loaded.train, "val": loaded.validation, "test": loaded.test}[
                    split
                ]
                place = sorted(
                    name for name in paths if Path(paths[name]).parent.name == split
                ).index(label)
                np.testing.assert_array_equal(images[place], canonical(tiles))
                met += 1
    assert met == 3
    assert hasher.hexdigest() == "682b7c378f39a1faff96dc177c26fa719cf2288bbc3d25281834c6b9881ebb8d"


def test_real_second_start(
    loaded: ColourImages, real: Path, real_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_fs, "_pixels", no_decoding)
    start = time.monotonic()
    again = cifar_fs.load(data=real, cache=real_cache)
    assert time.monotonic() - start < 1
    np.testing.assert_array_equal(again.test, loaded.test)
