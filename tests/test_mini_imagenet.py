"""Mini-ImageNet as users have it: made-up photographs in three layouts, their faults, the cache."""

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reptile_core.datasets import DataError, Unavailable, mini_imagenet
from reptile_core.datasets.common import ColourImages
from reptile_core.datasets.mini_imagenet import Resampling

# The names are out of alphabetical order, so that sorting shows.
CLASSES = {"train": ["n03", "n01", "n02"], "val": ["n05"], "test": ["n07", "n04"]}
WIDTH, HEIGHT = 100, 90  # no centre of the 84 pixels falls on a border between these


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg")
    return buffer.getvalue()


def photograph(rng: np.random.Generator) -> bytes:
    return jpeg(Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)))


def nearest(pixels: np.ndarray) -> np.ndarray:
    """Return the oracle's image: the source pixels under the centres of 84×84 pixels."""
    rows, columns = (((np.arange(84) + 0.5) * size / 84).astype(int) for size in pixels.shape[:2])
    return pixels[rows][:, columns]


def canonical(images: list[np.ndarray]) -> np.ndarray:
    return np.array(sorted(images, key=lambda image: hashlib.sha256(image.tobytes()).hexdigest()))


RNG = np.random.default_rng(0)
PHOTOGRAPHS = {
    name: [photograph(RNG) for _ in range(3)] for names in CLASSES.values() for name in names
}
EXPECTED = {
    split: np.array(
        [
            canonical([nearest(np.asarray(Image.open(io.BytesIO(p)))) for p in PHOTOGRAPHS[n]])
            for n in sorted(names)
        ]
    )
    for split, names in CLASSES.items()
}


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def folders(root: Path) -> None:
    for split, names in CLASSES.items():
        for name in names:
            for i, content in enumerate(PHOTOGRAPHS[name]):
                write(root / split / name / f"{name}_{i}.JPEG", content)
            write(root / split / name / "._hidden.JPEG", b"of macOS")
            write(root / split / name / "notes.txt", b"no image")
        write(root / split / ".DS_Store", b"x")


def tables(root: Path) -> None:
    for split, names in CLASSES.items():
        lines = ["filename,label"]
        for name in names:
            # The order is reversed, so that no image has its name from the folders.
            for i, content in enumerate(reversed(PHOTOGRAPHS[name])):
                lines.append(f"{name}{i:08}.jpg,{name}")
                write(root / "images" / f"{name}{i:08}.jpg", content)
        write(root / f"{split}.csv", "\r\n".join(lines).encode())


def lists(root: Path, *, images: bool = False) -> None:
    """Write folders of all classes and one more, and lists of the classes or of their images.

    With `images`, each class has an image that is not in the list.
    """
    for split, names in CLASSES.items():
        chosen = [f"{name}/{name}_{i}.JPEG" for name in names for i in range(3)]
        write(root / f"{split}.txt", "\n".join(chosen if images else names).encode() + b"\n")
        for name in names:
            for i, content in enumerate(PHOTOGRAPHS[name]):
                write(root / name / f"{name}_{i}.JPEG", content)
            if images:
                write(root / name / "other.JPEG", PHOTOGRAPHS["n01"][0])
    write(root / "n99" / "n99_0.JPEG", b"no image, and not asked for")


def lists_of_images(root: Path) -> None:
    lists(root, images=True)


LAYOUTS: list[Callable[[Path], None]] = [folders, tables, lists, lists_of_images]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's data from tests that don't ask for them."""
    monkeypatch.delenv("REPTILE_DATA", raising=False)


def get(data: Path | None, tmp_path: Path, resampling: Resampling = "nearest") -> ColourImages:
    return mini_imagenet.load(
        data=data, cache=tmp_path / "cache", quiet=True, resampling=resampling
    )


def assert_expected(found: ColourImages) -> None:
    for split, images in zip(EXPECTED, (found.train, found.validation, found.test), strict=True):
        np.testing.assert_array_equal(images, EXPECTED[split])
        assert not images.flags.writeable
    # Three images of six classes are not the whole data set.
    assert (found.name, found.real) == ("mini_imagenet", False)


def no_decoding(*_: object, **__: object) -> None:
    pytest.fail("an image was decoded")


# ---- where the data are


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("below", ["", "mini_imagenet", "miniimagenet", "mini-imagenet"])
def test_all_layouts_give_the_same_bits(
    tmp_path: Path, below: str, layout: Callable[[Path], None]
) -> None:
    layout(tmp_path / "data" / below)
    found = get(tmp_path / "data", tmp_path)
    assert_expected(found)
    shapes = str([[6, 3, 84, 84, 3], [3, 1, 2]]).encode()
    assert (
        found.content
        == hashlib.sha256(shapes + b"".join(i.tobytes() for i in EXPECTED.values())).hexdigest()
    )
    assert found.source == str(tmp_path / "data" / below)


def test_a_whole_layout_goes_before_a_part_of_another(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    tables(tmp_path / "data")
    assert_expected(get(tmp_path / "data", tmp_path))


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(tmp_path / "data" / "mini_imagenet")
    with pytest.raises(
        Unavailable, match=r"^mini_imagenet: expected train/, .* found none; it is not downloaded"
    ):
        get(None, tmp_path)
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path / "data"))
    assert_expected(get(None, tmp_path))
    monkeypatch.setenv("REPTILE_DATA", str(tmp_path / "cache"))
    with pytest.raises(Unavailable):
        get(None, tmp_path)


def test_real_is_said_of_the_published_classes_and_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders(tmp_path / "data")
    names = "\n".join(["test/n04", "test/n07", "train/n01", "train/n02", "train/n03", "val/n05"])
    monkeypatch.setattr(mini_imagenet, "CLASSES", hashlib.sha256(names.encode()).hexdigest())
    for images in (600, 3):
        monkeypatch.setattr(mini_imagenet, "IMAGES", images)
        assert get(tmp_path / "data", tmp_path).real == (images == 3)
    (tmp_path / "data" / "val" / "n05").rename(tmp_path / "data" / "val" / "n06")
    assert not get(tmp_path / "data", tmp_path).real


# ---- resizing


def test_bicubic_is_another_set(tmp_path: Path) -> None:
    folders(tmp_path)
    nearest, bicubic = get(tmp_path, tmp_path), get(tmp_path, tmp_path, "bicubic")
    # PIL's default is bicubic.
    expected = [np.asarray(Image.open(io.BytesIO(p)).resize((84, 84))) for p in PHOTOGRAPHS["n05"]]
    np.testing.assert_array_equal(bicubic.validation[0], canonical(expected))
    assert nearest.content != bicubic.content
    with pytest.raises(
        DataError, match=r"^resampling: expected one of nearest, bicubic, found 'lanczos'"
    ):
        get(tmp_path, tmp_path, "lanczos")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_photographs_of_any_mode_come_out_as_the_authors_code_has_them(
    tmp_path: Path, mode: str
) -> None:
    """Photographs of any mode come out as the authors' code has them.

    ImageNet has some grey and some CMYK photographs, and a PNG that is called JPEG.
    """
    folders(tmp_path)
    odd = Image.open(io.BytesIO(PHOTOGRAPHS["n05"][0])).convert(mode)
    odd.save(tmp_path / "val" / "n05" / "n05_0.JPEG", "png" if mode in ("RGBA", "P") else "jpeg")
    again = Image.open(tmp_path / "val" / "n05" / "n05_0.JPEG")
    expected = np.array(again.resize((84, 84), Image.Resampling.NEAREST).convert("RGB"))
    assert any(np.array_equal(image, expected) for image in get(tmp_path, tmp_path).validation[0])


@pytest.mark.parametrize("kind", ["mark", "semicolons", "tabs", "capitals", "blank lines"])
def test_tables_as_other_programs_leave_them(tmp_path: Path, kind: str) -> None:
    tables(tmp_path)
    for split in CLASSES:
        path = tmp_path / f"{split}.csv"
        text = path.read_text()
        changed = {
            "mark": "\ufeff" + text,
            "semicolons": text.replace(",", ";"),
            "tabs": text.replace(",", "\t"),
            "capitals": text.replace("filename,label", "Filename, Label"),
            "blank lines": text.replace("label\n", "label\n\n") + "\n\n,\n",
        }
        path.write_bytes(changed[kind].encode())
    np.testing.assert_array_equal(get(tmp_path, tmp_path).train, EXPECTED["train"])


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    """Sixteen bits are scaled to eight.

    Pillow clips them at 255, so that all but the darkest pixels became white.
    """
    folders(tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (84, 84), np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(
        tmp_path / "val" / "n05" / "n05_0.JPEG", "png"
    )
    expected = np.repeat(grey[..., None], 3, -1)
    assert any(np.array_equal(image, expected) for image in get(tmp_path, tmp_path).validation[0])


def test_palettes_are_interpolated_between_their_colours(tmp_path: Path) -> None:
    folders(tmp_path)
    odd = Image.open(io.BytesIO(PHOTOGRAPHS["n05"][0])).quantize(256)
    odd.save(tmp_path / "val" / "n05" / "n05_0.JPEG", "png")
    expected = np.asarray(odd.convert("RGB").resize((84, 84), Image.Resampling.BICUBIC))
    assert any(
        np.array_equal(image, expected)
        for image in get(tmp_path, tmp_path, "bicubic").validation[0]
    )


# ---- faults


def huge_png() -> bytes:
    """Return a PNG whose header promises 9,000×9,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(9))
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


GOOD = PHOTOGRAPHS["n01"][0]
N01 = "train/n01/n01_0.JPEG"
# For each fault: the layout, a file, its new content (None: missing), and the message.
Fault = tuple[Callable[[Path], None], str, bytes | None, str]
FAULTS: dict[str, Fault] = {
    "no image": (folders, N01, b"GIF89a", "n01_0.JPEG: cannot be read: UnidentifiedImageError"),
    "cut image": (folders, N01, GOOD[:-2000], "n01_0.JPEG: cannot be read: OSError"),
    "huge image": (folders, N01, huge_png(), "expected at most 67108864 pixels, found 9000×9000"),
    "image missing": (
        folders,
        N01,
        None,
        "equally many images of every class, found 2 of train/n01 and 3 of ",
    ),
    "image too many": (
        folders,
        "val/n05/more.png",
        GOOD,
        "found 3 of .* and 4 of val/n05 .*as class/file",
    ),
    "split missing": (folders, "val", None, r"expected val next to .*train and .*test, found none"),
    "class twice": (folders, "val/n01/a.jpg", GOOD, "equally many"),
    "empty class": (folders, "val/n06/a.txt", b"", "found 0 of val/n06 and 3 of"),
    "no classes": (folders, "val/n05", None, "expected classes in val, found none"),
    "table missing": (
        tables,
        "test.csv",
        None,
        r"expected test.csv next to .*train.csv and .*val.csv, found none",
    ),
    "table's header": (
        tables,
        "val.csv",
        b"name,class\n",
        "val.csv: expected the columns filename and label",
    ),
    "table's rows": (
        tables,
        "val.csv",
        b"filename,label\na.jpg\n",
        "val.csv: expected the columns filename and",
    ),
    "table empty": (tables, "val.csv", b"", "val.csv: expected the columns filename and label"),
    "table without rows": (
        tables,
        "val.csv",
        b"filename,label\n",
        "expected classes in val.csv, found none",
    ),
    "table no text": (tables, "val.csv", b"\xff\xfe", "cannot be read: UnicodeDecodeError"),
    "table climbs out": (
        tables,
        "val.csv",
        b"filename,label\n../a.jpg,n05\n",
        r"next to it, found '\.\./a.jpg'",
    ),
    "image not there": (
        tables,
        "images/n0500000000.jpg",
        None,
        "cannot be read: FileNotFoundError: .*n0500000000",
    ),
    "images not there": (tables, "images", None, "cannot be read: FileNotFoundError"),
    "image twice": (
        tables,
        "val.csv",
        b"filename,label\n" + b"n0500000000.jpg,n05\n" * 3,
        "expected every image once, found some of val/n05 twice",
    ),
    "list missing": (
        lists,
        "train.txt",
        None,
        r"expected train.txt next to .*val.txt and .*test.txt, found none",
    ),
    "list climbs out": (
        lists,
        "val.txt",
        b"..",
        r"val.txt: expected the names of files .* found '\.\.'",
    ),
    "list absolute": (
        lists,
        "val.txt",
        b"/etc",
        "val.txt: expected the names of files and folders next to it, found ''",
    ),
    "list too deep": (lists, "val.txt", b"n05/a/b.jpg", "found 'a/b.jpg'"),
    "list heavy": (
        lists,
        "val.txt",
        b"n05\n" * 2_200_000,
        "val.txt: expected at most 8388608 bytes, found more",
    ),
    "class not there": (lists, "n05", None, "cannot be read: FileNotFoundError: .*n05"),
    "class in two": (
        lists,
        "val.txt",
        b"n01",
        "expected every class once, found 'n01' in train and val",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path: Path, fault: str) -> None:
    layout, name, content, message = FAULTS[fault]
    root = tmp_path / "data"
    layout(root)
    get(root, tmp_path)  # the cache of the intact data must not hide the fault
    if content is None:
        (root / name).rename(tmp_path / "elsewhere")
    else:
        write(root / name, content)
    with pytest.raises(DataError, match=message) as caught:
        get(root, tmp_path)
    assert str(caught.value).startswith(str(root)) and "\n" not in str(caught.value)
    assert not isinstance(caught.value, Unavailable)


def test_a_heavy_file_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(tmp_path)
    monkeypatch.setattr(mini_imagenet, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="expected at most 100 bytes, found more"):
        get(tmp_path, tmp_path)


def test_named_but_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data: expected a directory, found none at .*nowhere"):
        get(tmp_path / "nowhere", tmp_path)
    with pytest.raises(
        DataError, match=r"^data: expected train/, val/, test/ with .* found none"
    ) as caught:
        get(tmp_path, tmp_path)
    assert not isinstance(caught.value, Unavailable)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8)), max_size=4),
    junk=st.none() | st.binary(max_size=200),
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's warnings about damaged images
def test_no_image_raises_anything_else(
    tmp_path: Path, cuts: list[tuple[float, int, bytes]], junk: bytes | None
) -> None:
    content = bytearray(GOOD if junk is None else junk)
    for place, length, replacement in cuts:
        at = int(place * len(content))
        content[at : at + length] = replacement
    damaged = tmp_path / "damaged.JPEG"
    damaged.write_bytes(content)
    try:
        image = mini_imagenet._decode(str(damaged), "nearest")
    except DataError as error:
        assert str(error).startswith(str(damaged)) and "\n" not in str(error)
    else:
        assert image.shape == (84, 84, 3) and image.dtype == np.uint8


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@pytest.mark.parametrize("layout, suffix", [(tables, ".csv"), (lists, ".txt")])
def test_no_list_raises_anything_else(
    tmp_path: Path, layout: Callable[[Path], None], suffix: str, content: bytes
) -> None:
    root = tmp_path / "data"
    if not root.exists():
        layout(root)
    header = b"filename,label\n" if suffix == ".csv" else b""
    write(root / f"val{suffix}", header + content)
    try:
        get(root, tmp_path)
    except DataError as error:
        assert str(error).startswith(str(root)) and "\n" not in str(error)


# ---- the cache


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_second_start_decodes_nothing_until_a_file_changes(
    tmp_path: Path, layout: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    layout(root)
    first = get(root, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(mini_imagenet, "_decode", no_decoding)
        again = get(root, tmp_path)
        assert_expected(again)
        assert again.content == first.content
    changed = next(
        path
        for path in sorted(root.rglob("*"))
        if path.name.endswith(("n05_0.JPEG", "n0500000000.jpg"))
    )
    changed.write_bytes(photograph(np.random.default_rng(1)))
    assert get(root, tmp_path).content != first.content
    os.utime(changed, ns=(1, 1))
    monkeypatch.setattr(mini_imagenet, "_decode", no_decoding)
    with pytest.raises(pytest.fail.Exception):
        get(root, tmp_path)


def test_a_table_that_changes_is_read_again(tmp_path: Path) -> None:
    tables(tmp_path)
    first = get(tmp_path, tmp_path)
    for split, other in (("val", "n01"), ("train", "n05")):  # the two classes change places
        table = (tmp_path / f"{split}.csv").read_text()
        old = {"val": "n05", "train": "n01"}[split]
        (tmp_path / f"{split}.csv").write_text(table.replace(old, other))
    assert get(tmp_path, tmp_path).content != first.content


def test_a_damaged_cache_is_named_and_rebuilt(tmp_path: Path) -> None:
    folders(tmp_path / "data")
    get(tmp_path / "data", tmp_path)
    (path,) = (tmp_path / "cache").glob("*.rgb")
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged and will be rebuilt"):
        assert_expected(get(tmp_path / "data", tmp_path))
    assert path.read_bytes() == good
