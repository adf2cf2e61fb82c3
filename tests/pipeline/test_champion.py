"""The champion gate end to end: promoted, rejected when damaged, rolled back, restored, traced."""

from __future__ import annotations

import json
import sqlite3
import sys
from typing import Any

import pytest
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

    make_visible(made)
    made.change_params(one_candidate)
    made.ok("git", "commit", "-qam", "state")
    first = made.retrain()
    assert first.returncode == 0, first.stdout + first.stderr
    made.ok("git", "commit", "-qam", "state")
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
