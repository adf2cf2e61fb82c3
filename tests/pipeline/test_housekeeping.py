"""`make gc` on a project with several versions: what is kept is kept whole, however gc ends."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import relocate
from tests.pipeline.project import Project, Trained

KEPT = {"1": "champion", "2": "previous", "4": "in the workspace"}
SET_PREVIOUS = """
from tasks import tracking
with tracking.session('refit') as (client, _):
    client.set_registered_model_alias('refit', 'previous', '2')
"""
FETCHED = """
import sys
from tasks import files, tracking
for version in sys.argv[1:]:
    print(version, files.sha256_file(tracking.fetch(f'models:/refit/{version}')))
"""


def gc(project: Project, *arguments: str) -> str:
    return project.ok(sys.executable, "-m", "flows.gc", "--keep", "1", *arguments)


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def registered_files(project: Project) -> str:
    return project.ok(sys.executable, "-c", FETCHED, *KEPT)


@pytest.fixture(scope="module")
def versions(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with four registered versions, of which nobody needs the third."""
    project = trained.project.copy(tmp_path_factory.mktemp("gc") / "project")
    # The artifacts lie where the first project was; what is removed here must not be removed there.
    relocate.relocate(project.root)
    for licence in ("MIT", "BSD", "Apache"):
        project.change_params(lambda params, name=licence: params["export"].update(licence=name))  # type: ignore[misc]
        project.ok("dvc", "repro", "--quiet", "--single-item", "export")
        project.ok(sys.executable, "-m", "tasks.register")
    project.ok(sys.executable, "-c", SET_PREVIOUS)
    return project


def test_first_it_only_shows(versions: Project) -> None:
    before = bytes_in(versions.path("mlruns")), bytes_in(versions.path(".dvc/cache/files"))
    said = gc(versions)
    for number, reason in KEPT.items():
        assert f"kept: refit version {number}, {reason}" in said
    assert re.search(r"1 +0\.0 MB  registered versions\n", said)
    assert "Nothing was removed" in said
    assert before == (
        bytes_in(versions.path("mlruns")),
        bytes_in(versions.path(".dvc/cache/files")),
    )


def test_what_is_kept_works_even_after_an_interruption(versions: Project, tmp_path: Path) -> None:
    files = registered_files(versions)
    lock = versions.path("dvc.lock").read_bytes()
    cache, artifacts = versions.path(".dvc/cache/files"), versions.path("mlruns")
    before = bytes_in(cache), bytes_in(artifacts)
    model = versions.path("data/best/model.onnx").stat().st_size

    command = [sys.executable, "-m", "flows.gc", "--keep", "1", "--apply"]
    with subprocess.Popen(
        command, cwd=versions.root, env=versions.environment(), stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        while not killed.stdout.readline().startswith("removed: registered versions"):
            assert killed.poll() is None
        killed.kill()
    assert registered_files(versions) == files

    said = gc(versions, "--apply")
    assert "removed: files in DVC's cache" in said
    assert registered_files(versions) == files
    # One version's file is gone from both places, and little else.
    for old, now in zip(before, (bytes_in(cache), bytes_in(artifacts)), strict=True):
        assert model <= old - now < 1.2 * model
    for number in KEPT:
        into = tmp_path / number
        versions.ok(sys.executable, "-m", "flows.restore", number, "--into", str(into))
        assert (into / "data/raw").is_dir()
        shutil.rmtree(into)
    gone = versions.run(sys.executable, "-m", "flows.restore", "3")
    assert "no version '3'" in gone.stderr
    assert versions.stale() == set()
    assert versions.path("dvc.lock").read_bytes() == lock
    assert "removed:" not in gc(versions, "--apply")


def test_a_version_whose_origin_is_lost_stops_it(versions: Project) -> None:
    summary = json.loads(versions.path("data/reports/summary.json").read_text())
    (origin,) = versions.path("mlruns").glob(f"*/{summary['run_id']}/artifacts/origin")
    origin.rename(versions.path("elsewhere"))
    done = versions.run(sys.executable, "-m", "flows.gc", "--apply")
    assert done.returncode == 1
    assert "version 4, which is kept" in done.stderr
    assert "nothing was removed" in done.stderr
    assert "Traceback" not in done.stderr
