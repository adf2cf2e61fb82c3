"""The champion gate end to end: promoted, rejected when damaged, rolled back, restored, traced."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageOps

from tests.pipeline.project import Project, make_project

EACH = 80  # pictures a class


def make_visible(project: Project) -> None:
    """Invert most of the defective cells: at 64 pixels nothing else tells the classes apart."""
    for i, path in enumerate(sorted(project.path("data/raw/defective").iterdir())):
        if i % 8:
            with Image.open(path) as picture:
                inverted = ImageOps.invert(picture.convert("L"))
            inverted.save(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with one candidate of real pretrained weights, retrained once."""
    made = make_project(tmp_path_factory.mktemp("champion"), EACH)

    def one_candidate(params: dict[str, Any]) -> None:
        params["candidates"] = {"mobilenet_v2": params["candidates"]["mobilenet_v2"]}
        params["head"]["epochs"] = 40
        # On 27 test pictures the calibration error is chance; its limit has unit tests.
        params["register"]["max_ece"] = 1.0

    make_visible(made)
    made.change_params(one_candidate)
    made.ok("git", "commit", "-qam", "state")
    first = made.retrain()
    assert first.returncode == 0, first.stdout + first.stderr
    made.ok("git", "add", "dvc.lock", "data/raw.dvc")
    made.ok("git", "commit", "-qm", "retrained")
    return made


def summary(project: Project) -> Any:
    return json.loads(project.path("data/reports/summary.json").read_text())


def aliases(project: Project) -> dict[str, str]:
    with sqlite3.connect(project.path("mlflow.db")) as database:
        rows = database.execute("SELECT alias, version FROM registered_model_aliases").fetchall()
    return {alias: str(version) for alias, version in rows}


def test_the_first_run_promotes_and_writes_the_report(project: Project) -> None:
    found = summary(project)
    assert (found["verdict"], found["champion"]) == ("PROMOTE", "1")
    assert aliases(project) == {"champion": "1"}
    page = project.path("data/reports/report.html").read_text()
    assert "Promoted" in page
    assert "data:image/jpeg;base64," in page
    kept = project.path("mlruns").rglob("report.html")
    assert [path.read_text() for path in kept] == [page]


def test_a_damaged_head_is_rejected_with_reasons(project: Project) -> None:
    def damage(params: dict[str, Any]) -> None:
        params["fine_tune"]["epochs"] = 0
        params["head"] |= {"epochs": 1, "lr": 1e-12}  # a head that learned nothing

    project.change_params(damage)
    done = project.retrain()
    assert done.returncode == 0, done.stdout + done.stderr
    found = summary(project)
    assert found["verdict"] == "REJECT"
    assert found["registered_version"] == "2"
    assert any("loses" in reason or "worse" in reason for reason in found["decision"]["reasons"])
    assert aliases(project) == {"champion": "1"}
    assert "Rejected" in project.path("data/reports/report.html").read_text()
    lines = project.path("data/reports/verdicts.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["PROMOTE", "REJECT"]


def test_dvc_draws_both_revisions(project: Project) -> None:
    project.ok("dvc", "plots", "diff", "HEAD", "--out", "diff")
    page = project.path("diff/index.html").read_text()
    assert "head of mobilenet_v2" in page
    for revision in ("HEAD", "workspace"):
        assert re.search(rf'"rev(ision)?": "{revision}"', page), revision
    assert "test.f1_macro" in project.ok("dvc", "metrics", "diff", "HEAD")


def test_a_rollback_works(project: Project) -> None:
    # The rejected version is made champion by hand, as somebody in a hurry would.
    promote = (
        "from tasks import tracking\n"
        "with tracking.session('refit') as (client, _):\n"
        "    tracking.promote(client, client.get_model_version('refit', '2'))\n"
    )
    project.ok(sys.executable, "-c", promote)
    assert aliases(project) == {"champion": "2", "previous": "1"}
    said = project.ok(sys.executable, "-m", "flows.rollback", "--reason", "promoted by mistake")
    assert "version 1 is the champion again" in said
    assert aliases(project)["champion"] == "1"
    last = json.loads(project.path("data/reports/verdicts.jsonl").read_text().splitlines()[-1])
    assert (last["verdict"], last["reason"]) == ("ROLLBACK", "promoted by mistake")
    refused = project.run(sys.executable, "-m", "flows.rollback")
    assert refused.returncode == 1
    assert "no champion of refit before" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_registered_version_is_brought_back_whole(project: Project) -> None:
    raw = project.path("data/raw")
    champion = project.path("data/raw.dvc").read_bytes()
    lost = sorted(raw.rglob("*.png"))[0]
    name = lost.relative_to(raw)
    kept = lost.read_bytes()
    lost.unlink()
    try:
        said = project.ok(sys.executable, "-m", "flows.restore", "champion", "--into", "back")
    finally:
        lost.write_bytes(kept)
    assert "version 1 " in said
    back = project.path("back")
    assert (back / "data/raw" / name).read_bytes() == kept
    assert (back / "data/raw.dvc").read_bytes() == champion
    assert yaml.safe_load((back / "params.yaml").read_text())["fine_tune"]["epochs"] == 1
    onnx = (back / "data/best/model.onnx").read_bytes()
    assert hashlib.sha256(onnx).hexdigest() != sha256(project.path("data/best/model.onnx"))
    assert sha256(back / "data/models/mobilenet_v2/model.safetensors") in said_of(project, back)
    assert project.stale() == set()  # the folder is no part of the present project
    again = project.run(sys.executable, "-m", "flows.restore", "1", "--into", "back")
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    missing = project.run(sys.executable, "-m", "flows.restore", "9")
    assert missing.returncode == 1
    assert "no version '9'" in missing.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def said_of(project: Project, folder: Path) -> str:
    model = str(folder / "data/best/model.onnx")
    return project.ok(sys.executable, "-m", "tasks.lineage", model)


def test_a_file_alone_tells_where_it_came_from(project: Project) -> None:
    said = said_of(project, project.root)
    found = summary(project)
    version = found["registered_version"]
    for fact in (
        f"registered: refit version {version}",
        f"run: {found['run_id']}",
        f"data version: {found['data_version']}",
        f"initial weights: sha256 {sha256(project.path('data/weights/mobilenet_v2.safetensors'))}",
        "head.lr: 1e-12",
        f"python -m flows.restore {version}",
    ):
        assert fact in said
    assert project.ok("git", "rev-parse", "HEAD").strip() in said


def test_a_picture_leads_to_the_models_that_trained_on_it(project: Project) -> None:
    manifest = pq.read_table(project.path("data/manifest.parquet")).to_pylist()
    by_split = {row["split"]: row["path"] for row in manifest}
    words = {"train": "trained on it", "val": "was chosen with it", "test": "was scored on it"}
    strange = project.path("strange.png")
    Image.new("RGB", (40, 40)).save(strange)
    paths = [f"data/raw/{by_split[split]}" for split in words]
    said = project.ok(sys.executable, "-m", "tasks.lineage", *paths, "strange.png")
    for split, path in by_split.items():
        for version in (1, 2):
            assert f"refit version {version} {words[split]}, as {path}" in said
    assert "strange.png:\n  no registered version of refit saw it" in said
