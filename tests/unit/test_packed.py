"""Pictures are packed once, read back as they were, and shards never change."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks import files, packed, prepare
from tasks.vision.errors import RefitError

SIDE = 256  # of the shipped params


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    files.write_json(files.CLASSES, ["cat", "dog"])
    return tmp_path


def picture(level: int, label: str, split: str) -> dict[str, str]:
    """Write a plain picture and return its row of the manifest."""
    path = files.RAW / label / f"{level}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (level, level, level)).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    name = str(path.relative_to(files.RAW))
    return {"path": name, "sha256": sha256, "label": label, "split": split}


def pack(rows: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), files.MANIFEST)
    prepare.main()


def shards() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in files.PACKED.rglob("*.npy")}


def test_pixels_come_back_in_any_order_by_split() -> None:
    pack([picture(level, "cat", "train") for level in (10, 20, 30)] + [picture(9, "dog", "test")])
    train = packed.read_split("train")
    assert train.paths == ["cat/10.png", "cat/20.png", "cat/30.png"]
    assert train.labels.tolist() == [0, 0, 0]
    got = train.pixels(np.array([2, 0]))
    assert got.shape == (2, SIDE, SIDE, 3)
    assert got.dtype == np.uint8
    assert got[0].flatten().tolist() == [30] * got[0].size
    assert got[1].flatten().tolist() == [10] * got[1].size
    assert packed.read_split("test").labels.tolist() == [1]


def test_only_new_pictures_are_packed(capsys: pytest.CaptureFixture[str]) -> None:
    old = [picture(level, "cat", "train") for level in (10, 20)]
    pack(old)
    before = shards()
    pack([*old, picture(30, "dog", "train")])
    assert "packed 1 new pictures of 3" in capsys.readouterr().out
    after = shards()
    assert before.items() < after.items()
    assert packed.read_split("train").pixels(np.array([2]))[0, 0, 0].tolist() == [30, 30, 30]


def test_the_same_picture_under_two_names_is_packed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = picture(10, "cat", "train")
    copy = files.RAW / "cat" / "copy.png"
    shutil.copy(files.RAW / first["path"], copy)
    pack([first, {**first, "path": "cat/copy.png"}])
    assert "packed 1 new pictures of 1" in capsys.readouterr().out
    assert len(packed.read_split("train")) == 2


def test_a_shard_that_no_picture_needs_goes() -> None:
    one, two = picture(10, "cat", "train"), picture(20, "cat", "train")
    pack([one])
    pack([two])
    assert len(shards()) == 1
    assert packed.read_split("train").pixels(np.array([0]))[0, 0, 0, 0] == 20


def test_another_size_packs_everything_anew(project: Path) -> None:
    rows = [picture(10, "cat", "train")]
    pack(rows)
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("resize: 256", "resize: 224"))
    pack(rows)
    assert packed.read_split("train").pixels(np.array([0])).shape == (1, 224, 224, 3)
    assert len(shards()) == 1


def test_a_picture_that_changed_since_validation_is_named() -> None:
    row = picture(10, "cat", "train")
    (files.RAW / row["path"]).write_bytes(b"no picture")
    with pytest.raises(RefitError, match=r"cat/10\.png.*readable when validated"):
        pack([row])
    assert not (files.PACKED / packed.INDEX).exists()
    assert shards() == {}


def test_an_empty_split_is_an_error() -> None:
    pack([picture(10, "cat", "train")])
    with pytest.raises(RefitError, match="no picture in split 'val'"):
        packed.read_split("val")
