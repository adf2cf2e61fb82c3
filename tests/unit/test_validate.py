"""The stage as a whole: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

import csv
import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks import files, validate
from tasks.gate import findings, frames, store, suites
from tasks.gate.expectations import Check
from tasks.vision.errors import RefitError
from tests.unit import hostile
from tests.unit.gate_data import fill, picture, put, write_params

REPOSITORY = Path(__file__).parents[2]
COLUMNS = (
    "path label split group sha256 bytes width height mode format orientation phash mean std "
    "sharpness decodable message"
).split()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of 60 good pictures, and the place to be."""
    write_params(tmp_path)
    fill(tmp_path / "data/raw", each=30)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest() -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in pq.read_table(files.MANIFEST).to_pylist()}


def outputs(project: Path) -> dict[str, str]:
    """Return path -> hash of everything that the stage gives to DVC."""
    outs = [project / files.MANIFEST, project / files.CLASSES]
    outs += [p for p in (project / files.VALIDATION).rglob("*") if p.is_file()]
    return {str(p.relative_to(project)): files.sha256_file(p) for p in outs}


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
    assert len(paths) == 60
    assert set(table["split"].to_pylist()) == {"train", "val", "test"}
    row = manifest()["ant/007.jpg"]
    content = (project / "data/raw/ant/007.jpg").read_bytes()
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert (row["label"], row["width"], row["height"]) == ("ant", 64, 48)
    assert json.loads(files.CLASSES.read_text()) == ["ant", "bee"]
    page = (files.VALIDATION / "index.html").read_text()
    assert '<h1 class="tone">Accepted</h1>' in page
    assert (files.VALIDATION / "data_docs/index.html").exists()
    assert (files.VALIDATION / "quarantine.csv").read_text() == "path,reason\n"
    assert capsys.readouterr().out == (
        "Accepted: 60 pictures of 2 classes, 0 bad files left out; 60 of 60 files were read, "
        "60 decoded, the others were known\n"
    )
    before = outputs(project)
    validate.main()
    assert outputs(project) == before
    assert "0 of 60 files were read, 0 decoded" in capsys.readouterr().out


def test_the_same_pictures_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    running = []
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "quite/another")):
        folder.mkdir(parents=True)
        write_params(folder)
        fill(folder / "data/raw", each=30)
        put(folder / "data/raw/bee/copy.jpg", picture(3))  # so that there is something to show
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-m", "tasks.validate"]
        running.append((folder, subprocess.Popen(command, cwd=folder, env=environment)))
    assert [process.wait(timeout=120) for _, process in running] == [1, 1]
    (one, _), (another, _) = running
    for folder in (one, another):
        write_params(folder, {"label_conflicts": "warn"})
        command = [sys.executable, "-m", "tasks.validate"]
...
