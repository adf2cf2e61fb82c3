"""Every layout, and everything that may lie in a folder of pictures."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from tasks.gate.layout import Aside, Picture, find
from tasks.vision.errors import RefitError
from tests.unit.gate_data import put


def found(root: Path) -> tuple[dict[str, Picture], Aside]:
    aside = Aside()
    return {picture.path: picture for picture in find(root, aside)}, aside


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        put(root / path, b"x")


def test_a_class_is_a_folder_and_all_below_it(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.jpg", "ant/deep/er/2.PNG", "two words/ü ✓.webp", "bee/line\nbreak.tiff")
    pictures, aside = found(tmp_path)
    assert {path: p.label for path, p in pictures.items()} == {
        "ant/1.jpg": "ant",
        "ant/deep/er/2.PNG": "ant",
        "bee/line\nbreak.tiff": "bee",
        "two words/ü ✓.webp": "two words",
    }
    assert {p.split for p in pictures.values()} == {""}
    assert not aside.bad
    assert pictures["ant/1.jpg"].size == 1


def test_split_folders_are_honoured(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/1.jpg", "train/bee/x/2.jpg", "test/ant/3.jpg")
    pictures, _ = found(tmp_path)
    assert {p: (x.split, x.label) for p, x in pictures.items()} == {
        "train/ant/1.jpg": ("train", "ant"),
        "train/bee/x/2.jpg": ("train", "bee"),
        "test/ant/3.jpg": ("test", "ant"),
    }


def test_split_folders_beside_others_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/1.jpg", "valid/ant/2.jpg")
    with pytest.raises(RefitError, match=r"mixes split folders \(train\) with others \(valid\)"):
        found(tmp_path)


@pytest.mark.parametrize("make", [False, True])
def test_nothing_there_is_an_error_that_says_what_to_do(tmp_path: Path, make: bool) -> None:
    root = tmp_path / "raw"
    if make:
        root.mkdir()
    with pytest.raises(RefitError, match="one folder a class"):
        found(root)


def test_a_table_names_label_split_and_group(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "2 3.png", "a/spare.jpg")
    rows = "\ufeffpath,label,split,group,remark\na/1.jpg, ant ,train,g1,x\n./2 3.png,bee,,,\n"
    put(tmp_path / "labels.csv", rows.encode())
    pictures, aside = found(tmp_path)
    assert {p: (x.label, x.split, x.group) for p, x in pictures.items()} == {
        "a/1.jpg": ("ant", "train", "g1"),
        "2 3.png": ("bee", "", ""),
    }
    assert aside.names == {
        "not a picture: .csv": ["labels.csv"],
        "not in labels.csv": ["a/spare.jpg"],
    }
    assert not aside.bad


def test_bad_rows_of_a_table_are_named_with_their_line(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "folder/x.jpg")
    put(tmp_path.parent / "outside.jpg", b"x")
    (tmp_path / "link.jpg").symlink_to("../outside.jpg")
    lines = (
        "1.jpg,ant,train",
        "1.jpg,bee,train",
        "2.jpg,,train",
        "3.jpg,ant,valid",
        "missing.jpg,ant,",
        "../outside.jpg,ant,",
        "/etc/passwd,ant,",
        "link.jpg,ant,",
        "folder,ant,",
        ",ant,",
    )
    put(tmp_path / "labels.csv", "\n".join(["path,label,split", *lines]).encode())
    pictures, aside = found(tmp_path)
    assert list(pictures) == ["1.jpg"]
    assert aside.bad == {
        "1.jpg": "labels.csv line 3: listed in line 2 already",
        "2.jpg": "labels.csv line 4: no label",
        "3.jpg": "labels.csv line 5: split 'valid' is none of train, val, test",
        "missing.jpg": "labels.csv line 6: no such file",
        "../outside.jpg": "labels.csv line 7: path leads out of the data folder",
        "/etc/passwd": "labels.csv line 8: path leads out of the data folder",
        "link.jpg": "labels.csv line 9: symbolic link to a place outside the data folder: "
        "copy the file in",
        "folder": "labels.csv line 10: is a folder",
        "labels.csv line 11": "labels.csv line 11: no path",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,label\n1.jpg,ant\n", "has no column path"),
        (b"", "has no column label and path"),
        (b"path,label\n\xff.jpg,ant\n", "not a UTF-8 CSV file"),
        (b"path,label\n" + b"x" * 200_000 + b",ant\n", "not a UTF-8 CSV file"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    put(tmp_path / "labels.csv", content)
    with pytest.raises(RefitError, match=message):
        found(tmp_path)


def test_links_stay_inside_and_never_run_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    touch(root, "ant/1.jpg", "ant/more/2.jpg", ".store/3.jpg")
    touch(tmp_path, "outside/4.jpg")
    for link, target in {
        "ant/again.jpg": "1.jpg",
        "ant/up": "..",
        "ant/self.jpg": "self.jpg",
        "ant/gone.jpg": "nowhere.jpg",
        "ant/out.jpg": "../../outside/4.jpg",
        "ant/out": "../../outside",
        "bee": ".store",
        "zebra": "ant",
    }.items():
        (root / link).symlink_to(target)
    pictures, aside = found(root)
    assert {p: x.label for p, x in pictures.items()} == {
        "ant/1.jpg": "ant",
        "ant/again.jpg": "ant",
        "ant/more/2.jpg": "ant",
        "bee/3.jpg": "bee",
    }
    outside = "symbolic link to a place outside the data folder: copy the file in"
    assert aside.bad == {
        "ant/gone.jpg": "broken symbolic link",
        "ant/out": outside,
        "ant/out.jpg": outside,
        "ant/self.jpg": "cannot be read: Too many levels of symbolic links",
        "ant/up": "leads to a folder that is read already: .",
        "zebra": "leads to a folder that is read already: ant",
    }


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "disk/ant/1.jpg")
    (tmp_path / "raw").symlink_to("disk")
    assert list(found(tmp_path / "raw")[0]) == ["ant/1.jpg"]


def test_what_is_no_picture_is_counted_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.jpg", "ant/.DS_Store", "ant/.cache/2.jpg", "ant/Thumbs.db", "README")
    touch(tmp_path, *(f"ant/{i:02}.HEIC" for i in range(25)), "stray.png")
    os.mkfifo(tmp_path / "ant/pipe.jpg")
    (tmp_path / os.fsdecode(b"ant/caf\xe9.jpg")).write_bytes(b"x")
    pictures, aside = found(tmp_path)
    assert list(pictures) == ["ant/1.jpg"]
    assert aside.ignored == {
        "hidden": 2,
        "not a picture: .db": 1,
        "not a picture: .heic": 25,
        "not a picture: no suffix": 1,
    }
    assert aside.names["hidden"] == ["ant/.DS_Store", "ant/.cache"]
    assert aside.names["not a picture: .heic"] == [f"ant/{i:02}.HEIC" for i in range(20)]
    assert aside.bad == {
        "ant/caf\\xe9.jpg": "its name is not UTF-8: rename it",
        "ant/pipe.jpg": "is neither a file nor a folder",
        "stray.png": "lies in no class's folder, so it has no label",
    }


def test_accents_written_in_two_ways_are_one_class(tmp_path: Path) -> None:
    touch(
        tmp_path, *(f"{unicodedata.normalize(form, 'café')}/{form}.jpg" for form in ("NFC", "NFD"))
    )
    pictures, aside = found(tmp_path)
    assert {p.label for p in pictures.values()} == {"café"}
    assert aside.classes == {"café"}


def test_an_empty_folder_is_a_class_without_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "train/ant/1.jpg")
    (tmp_path / "val/bee").mkdir(parents=True)
    assert found(tmp_path)[1].classes == {"ant", "bee"}
