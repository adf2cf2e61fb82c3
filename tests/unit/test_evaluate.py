"""Evaluation reads the test split, few others may; slices; what is chosen."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import evaluate, files, packed, results

# `variants.py` releases smaller files only on what they lose on the test split.
MAY_READ_TEST = {"evaluate.py", "export.py", "register.py", "variants.py"}


def splits_read(path: Path) -> list[str]:
    """Return the splits that a module opens; each has to be named where it is opened."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "read_split":
            split = node.args[0]
            assert isinstance(split, ast.Constant), f"{path}:{node.lineno} hides which split it is"
            found.append(str(split.value))
    return found


def test_the_test_split_is_read_by_what_measures_a_finished_model_alone() -> None:
    readers = {path.name: splits_read(path) for path in Path("tasks").rglob("*.py")}
    assert {name for name, splits in readers.items() if "test" in splits} == MAY_READ_TEST
    assert {split for splits in readers.values() for split in splits} == {"train", "val", "test"}


def test_the_best_on_validation_is_chosen_and_of_equals_the_cheaper() -> None:
    scores = {
        "large": {"f1_macro": 0.9, "gflops": 15.5},
        "small": {"f1_macro": 0.9, "gflops": 0.3},
        "worse": {"f1_macro": 0.8, "gflops": 0.1},
    }
    assert results.best(scores) == "small"
    assert results.best({"large": scores["large"], "worse": scores["worse"]}) == "large"


def pictures(paths: list[str], labels: list[int]) -> packed.Pictures:
    none = np.array([], int)
    return packed.Pictures(Path(), paths, paths, np.array(labels), none.astype(str), none)


@pytest.mark.parametrize("foldered", [True, False])
def test_slices_come_from_the_manifest_row_by_row(
    foldered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = (
        ["a/x/1.png", "a/y/2.png", "b/x/3.png"] if foldered else ["a/1.png", "a/2.png", "b/3.png"]
    )
    manifest = {
        "path": paths,
        "width": [10, 20, 30],
        "height": [15, 15, 40],
        "mean": [1.0, 2.0, 3.0],
        "sharpness": [4.0, 5.0, 6.0],
        "group": ["g", "g", "h"],
    }
    files.MANIFEST.parent.mkdir()
    pq.write_table(pa.table(manifest), files.MANIFEST)
    chosen = [paths[2], paths[0]]
    columns = evaluate.slice_columns(pictures(chosen, [1, 0]), ("a", "b"))
    assert columns["class"].tolist() == ["b", "a"]
    assert columns["shorter side"].tolist() == [30, 10]
    assert columns["brightness"].tolist() == [3, 1]
    assert columns["group"].tolist() == ["h", "g"]
    assert "folder" not in columns
    if foldered:
        all_of_them = evaluate.slice_columns(pictures(paths, [0, 0, 1]), ("a", "b"))
        assert all_of_them["folder"].tolist() == ["a/x", "a/y", "b/x"]
