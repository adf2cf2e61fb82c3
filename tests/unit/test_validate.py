"""The stage as a whole: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks import files, validate
from tasks.gate import frames, history, suites
from tasks.gate.expectations import Check
from tasks.vision.errors import RefitError
from tests.unit.gate_data import EACH, fill, outputs, picture, pictured, put, reasons, write_params

REPOSITORY = Path(__file__).parents[2]
COLUMNS = [
    "path",
    "label",
    "split",
    "group",
    "sha256",
    "bytes",
    "width",
    "height",
    "mode",
    "format",
    "orientation",
    "phash",
    "mean",
    "std",
    "sharpness",
    "decodable",
    "message",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 120 good pictures, and the place to be."""
    write_params(tmp_path)
    fill(tmp_path / "data/raw", each=EACH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest() -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in pq.read_table(files.MANIFEST).to_pylist()}


def refusal() -> str:
    with pytest.raises(RefitError) as error:
        validate.main()
    return str(error.value)


def test_good_pictures_give_a_manifest_classes_and_a_page(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validate.main()
    table = pq.read_table(files.MANIFEST)
    assert table.column_names == COLUMNS
    paths = table["path"].to_pylist()
    assert paths == sorted(paths)
    assert len(paths) == 120
    assert set(table["split"].to_pylist()) == {"train", "val", "test"}
    row = manifest()["ant/007.jpg"]
    content = (project / "data/raw/ant/007.jpg").read_bytes()
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert (row["label"], row["width"], row["height"]) == ("ant", 64, 48)
    assert files.read_json(files.CLASSES) == ["ant", "bee"]
    page = (files.VALIDATION / "index.html").read_text()
    assert '<h1 class="tone">Accepted</h1>' in page
    assert (files.VALIDATION / "data_docs/index.html").exists()
    assert (files.VALIDATION / "quarantine.csv").read_text() == "path,reason\n"
    assert capsys.readouterr().out == (
        "Accepted: 120 pictures of 2 classes, 0 bad files left out; 120 of 120 files were read, "
        "120 decoded, the others were known\n"
    )
    before = outputs(project)
    validate.main()
    assert outputs(project) == before
    assert "0 of 120 files were read, 0 decoded" in capsys.readouterr().out


def test_too_much_quarantine_fails_anyway(project: Path) -> None:
    for number in range(3):
        put(Path(f"data/raw/ant/bad{number}.jpg"), b"x")
    write_params(project, on_bad_file="quarantine", max_quarantined_share=0.02)
    message = refusal()
    assert (
        "failed max_quarantined_share: 3 files\n  expected: at most 2.00% of the files" in message
    )
    assert "decodable" not in message
    write_params(project, on_bad_file="quarantine", max_quarantined_share=0.025)
    validate.main()
    assert len(manifest()) == 120
    assert list(reasons(project)) == [f"ant/bad{number}.jpg" for number in range(3)]


def test_a_refused_folder_leaves_what_was_accepted(project: Path) -> None:
    validate.main()
    before = {path: path.read_bytes() for path in (files.MANIFEST, files.CLASSES)}
    put(Path("data/raw/cow/1.jpg"), picture(1))
    message = refusal()
    assert "failed min_per_class: 1 class\n" in message
    assert "cow: 1 pictures: 1 train, 0 val, 0 test" in message
    assert re.search(
        r"class 'cow' has 0 of its 1 pictures in val and needs 3: add about 20", message
    )
    assert before == {path: path.read_bytes() for path in before}
    assert "Refused" in (files.VALIDATION / "index.html").read_text()


def test_class_order_never_shifts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_json(files.CLASSES, ["bee", "ant"])
    fill(project / "data/raw", each=EACH, classes=("aardvark",))
    validate.main()
    assert files.read_json(files.CLASSES) == ["bee", "ant", "aardvark"]
    assert "new, at the end of data/classes.json: aardvark\n" in capsys.readouterr().out
    (project / "data/raw/bee").rename(project / "bee")
    message = refusal()
    assert "bee: 0 pictures: 0 train, 0 val, 0 test" in message
    assert files.read_json(files.CLASSES) == ["bee", "ant", "aardvark"]


def test_adding_pictures_moves_none(project: Path) -> None:
    put(Path("data/raw/ant/large.jpg"), picture(3, (640, 480)))
    validate.main()
    before = {path: row["split"] for path, row in manifest().items()}
    fill(project / "data/raw", each=20, first=EACH)
    put(Path("data/raw/ant/a copy.jpg"), picture(3, (640, 480)).resize((600, 450)))
    validate.main()
    after = {path: row["split"] for path, row in manifest().items()}
    assert len(after) == 162
    assert {path: after[path] for path in before} == before
    assert after["ant/a copy.jpg"] == before["ant/large.jpg"]
    assert manifest()["ant/a copy.jpg"]["group"] == manifest()["ant/large.jpg"]["group"]


def test_a_picture_under_two_labels_is_refused(project: Path) -> None:
    put(Path("data/raw/bee/again.jpg"), pictured("ant", 5))
    message = refusal()
    assert "failed label_conflicts: 2 pictures\n" in message
    assert re.search(
        r"ant/005.jpg: ant, (\w+); like bee/again.jpg\n.*bee/again.jpg: bee, \1;", message
    )
    page = (files.VALIDATION / "index.html").read_text()
    assert re.search(
        r'<li><img alt="" src="data:image/jpeg;base64,[^"]+">\s*<b>ant/005.jpg</b>', page
    )
    write_params(project, {"label_conflicts": "warn"})
    validate.main()
    assert len(manifest()) == 121


def test_near_duplicates_across_given_splits_are_refused(project: Path) -> None:
    for name in ("ant", "bee"):
        (project / "data/raw/train").mkdir(exist_ok=True)
        (project / "data/raw" / name).rename(project / "data/raw/train" / name)
        fill(project / "data/raw/test", each=5, classes=(name,), first=500)
    large = picture(5, (640, 480))
    put(Path("data/raw/train/ant/far.jpg"), large)
    near = put(Path("data/raw/test/ant/near.jpg"), large.resize((600, 450)), quality=60)
    message = refusal()
    assert "failed near_duplicates_across_splits: 2 pictures\n" in message
    assert "train/ant/far.jpg: ant, train; like test/ant/near.jpg" in message
    near.unlink()
    validate.main()
    splits = {row["split"] for path, row in manifest().items() if path.startswith("train")}
    assert splits == {"train", "val"}  # val was not given and is carved from train
    assert {r["split"] for p, r in manifest().items() if p.startswith("test")} == {"test"}


def test_a_group_of_the_table_stays_in_one_split(project: Path) -> None:
    rows = [
        f"{p.relative_to('data/raw')},{p.parent.name},g{i % 8}"
        for i, p in enumerate(sorted(Path("data/raw").rglob("*.jpg")))
    ]
    put(Path("data/raw/labels.csv"), "\n".join(["path,label,group", *rows]).encode())
    write_params(project, min_per_class_and_split=0)
    validate.main()
    of_group: dict[str, set[str]] = {}
    for row in manifest().values():
        of_group.setdefault(row["group"], set()).add(row["split"])
    assert of_group.keys() == {f"g{i}" for i in range(8)}
    assert all(len(splits) == 1 for splits in of_group.values())


def test_what_stands_out_is_a_remark(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 48), "black").save("data/raw/ant/black.png")
    put(Path("data/raw/ant/copy.jpg"), pictured("ant", 7))
    fill(project / "data/raw", each=3, classes=("few",), first=900)
    write_params(project, min_per_class=3, min_per_class_and_split=0, max_imbalance_ratio=5)
    validate.main()
    errors = capsys.readouterr().err
    for words in (
        "warning min_contrast: 1 file\n",
        "warning exact_duplicates: 2 pictures\n",
        "warning brightness_outliers: 1 picture\n",
        "warning sharpness_outliers: 1 picture\n",
        "warning max_imbalance_ratio: 1 class\n",
    ):
        assert words in errors
    assert "Accepted, with 5 remarks" in (files.VALIDATION / "index.html").read_text()
    write_params(
        project,
        {
            "min_contrast": "off",
            "exact_duplicates": "off",
            "brightness_outliers": "error",
            "sharpness_outliers": "off",
            "max_imbalance_ratio": "off",
        },
        min_per_class=3,
        min_per_class_and_split=0,
    )
    message = refusal()
    assert "failed brightness_outliers: 1 picture" in message
    assert "ant/black.png: ant, " in message
    assert "warning" not in capsys.readouterr().err


def test_formats_and_modes_that_are_not_allowed_are_refused(project: Path) -> None:
    picture(1).convert("L").save("data/raw/ant/grey.png")
    write_params(project, allowed_formats=["JPEG"], allowed_modes=["RGB"])
    message = refusal()
    assert "failed allowed_formats: 1 file\n" in message
    assert "ant/grey.png: format PNG" in message
    assert "failed allowed_modes: 1 file\n" in message
    assert reasons(project) == {
        "ant/grey.png": "allowed_formats: format PNG; allowed_modes: mode L"
    }


def test_new_pictures_unlike_the_old_ones_are_drift(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validate.main()
    fill(project / "data/raw", each=10, first=200)
    validate.main()
    assert "drift" not in capsys.readouterr().err
    for number in range(20):
        dark = picture(400 + number, (128, 96)).point(lambda level: level // 3)
        put(Path(f"data/raw/ant/dark{number}.png"), dark)
    write_params(project, {"drift": "error"})
    message = refusal()
    found = re.search(r"failed drift: (\d) columns\n", message)
    assert found
    for column in ("width", "height", "mean", "std", "format"):
        assert re.search(rf"  {column}: statistic [\d.]+", message), column
    write_params(project)
    validate.main()
    assert "warning drift" in capsys.readouterr().err


def test_one_class_is_not_enough(project: Path) -> None:
    (project / "data/raw/bee").rename(project / "bee")
    assert "failed min_classes: found 1\n" in refusal()


def test_nothing_that_decodes_is_an_error_with_the_first_reasons(project: Path) -> None:
    for path in Path("data/raw").rglob("*.jpg"):
        put(path, b"x")
    message = refusal()
    assert message.startswith("data/raw holds no picture that decodes\n  ant/000.jpg: not a JPEG")
    assert message.endswith("… and 100 more")


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        (files.MANIFEST, b"PAR1 no parquet", "manifest.parquet cannot be read"),
        (files.CLASSES, b"{", "classes.json is no JSON list of names"),
        (files.CLASSES, b"3", "classes.json is no JSON list of names"),
    ],
)
def test_a_damaged_output_is_not_overwritten(
    project: Path, path: Path, content: bytes, words: str
) -> None:
    put(path, content)
    assert words in refusal()
    assert path.read_bytes() == content


def test_distinct_counts_the_values_of_a_key() -> None:
    key, value = np.array([0, 0, 1, 2, 2, 2]), np.array([4, 4, 0, 0, 1, 1])
    assert frames.distinct(key, value).tolist() == [1, 1, 1, 2, 2, 2]


def test_robust_z_is_not_moved_by_the_outlier() -> None:
    z = frames.robust_z(np.array([1.0, 2.0, 3.0, 4.0, 1000.0]))
    # Median 3, median absolute deviation 1, which is 0.6745 standard deviations of a normal.
    np.testing.assert_allclose(z, np.array([-2, -1, 0, 1, 997]) * 0.67449, rtol=1e-4)
    assert frames.robust_z(np.array([5.0, 5.0, 5.0, 9.0])).tolist() == [0, 0, 0, 0]


def test_drift_is_the_textbook_distance(tmp_path: Path) -> None:
    def table(values: list[float], mode: list[str]) -> pa.Table:
        numbers = dict.fromkeys(frames.NUMBERS, values)
        names = {"format": ["PNG"] * len(values), "mode": mode, "split": ["train"] * len(values)}
        return pa.table({"sha256": [f"{v}" for v in values], **numbers, **names})

    last = table([1.0, 2.0, 3.0, 4.0], ["L", "L", "RGB", "RGB"])
    new = table([1.0, 3.5, 5.0, 6.0], ["L", "RGB", "RGB", "RGB"])  # 1.0 is not new
    pq.write_table(last, tmp_path / "last.parquet")
    accepted = history.last_accepted(tmp_path / "last.parquet")
    frame = frames.drift_frame(new, accepted)
    # New 3.5, 5, 6 against 1, 2, 3, 4: the distribution functions are furthest apart at 3.
    assert frame.at["mean", "statistic"] == pytest.approx(0.75)
    assert (frame.at["format", "statistic"], frame.at["format", "p_value"]) == (0, 1)
    # Cramer's V of [[0, 3], [2, 2]]: chi squared 2.1 over 7 pictures.
    assert frame.at["mode", "statistic"] == pytest.approx((2.1 / 7) ** 0.5)
    assert frames.drift_frame(new, None).empty
    assert frames.drift_frame(last, accepted).empty


def test_an_expectation_that_cannot_be_evaluated_is_not_a_pass(tmp_path: Path) -> None:
    check = Check(
        "x", "files", "ExpectColumnValuesToBeBetween", {"column": "none", "min_value": 1}, "", ""
    )
    with pytest.raises(RuntimeError, match="x: "):
        suites.Suites(tmp_path).run("files", pd.DataFrame({"a": [1]}), [check])
