"""The disk is full, or a stage is killed, while it writes: nothing is damaged, and on it goes."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.project import Project, make_project
from tests.stack import small_disk
from tests.stack.processes import wait_for
from tests.stack.small_disk import SmallDisk

NAME = "mobilenet_v2"


def one_candidate(params: dict[str, Any]) -> None:
    params["candidates"] = {NAME: params["candidates"][NAME]}
    params["fine_tune"]["epochs"] = 5


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that was trained on a disk with room."""
    project = make_project(tmp_path_factory.mktemp("full") / "reference", each=40)
    project.change_params(one_candidate)
    resume = project.path("tasks/vision/resume.py")
    text = resume.read_text()
    assert "SECONDS = 30.0" in text
    resume.write_text(text.replace("SECONDS = 30.0", "SECONDS = 0.0"))  # a checkpoint every epoch
    project.ok("dvc", "add", "--quiet", "data/raw")
    project.ok("dvc", "repro")
    return project


@pytest.fixture
def disk(reference: Project, tmp_path: Path) -> Iterator[SmallDisk]:
    """The same project, trained, on a small disk."""
    with small_disk.holding(reference, tmp_path / "disk", "200m") as found:
        yield found


def contents(project: Project, *names: str) -> dict[str, str]:
    """Return the hash of every file below some paths, temporary ones too."""
    found = {}
    for name in names:
        root = project.path(name)
        for path in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
            relative = f"{name}/{path.relative_to(root)}"
            found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def refused(disk: SmallDisk, *command: str) -> str:
    """Run a program that finds no room; return the one line that it says so in."""
    done = disk.run(*command)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in line
    assert f"the disk at {disk.root} has" in line
    return line


def test_while_a_shard_is_packed(reference: Project, disk: SmallDisk) -> None:
    disk.remove("data/packed")
    disk.fill(100_000)
    line = refused(disk, sys.executable, "-m", "tasks.prepare")
    assert line.startswith("error: data/packed/")
    assert contents(disk, "data/packed") == {}
    disk.empty()
    disk.ok(sys.executable, "-m", "tasks.prepare")
    assert contents(disk, "data/packed") == contents(reference, "data/packed")


def test_while_features_are_stored(reference: Project, disk: SmallDisk) -> None:
    disk.remove("data/features")
    before = contents(disk, "data/models", "data/packed")
    disk.fill(20_000)
    line = refused(disk, sys.executable, "-m", "tasks.train_head", NAME)
    assert line.startswith("error: data/features/")
    assert [name for name in contents(disk, "data/features") if not name.endswith(".npz")] == []
    assert contents(disk, "data/models", "data/packed") == before
    disk.empty()
    disk.ok(sys.executable, "-m", "tasks.train_head", NAME)
    for names in ("data/models", "data/features"):
        assert contents(disk, names) == contents(reference, names)


def test_while_a_checkpoint_is_written(reference: Project, disk: SmallDisk) -> None:
    trained = contents(disk, "data/models")
    disk.fill(1_000_000)
    line = refused(disk, sys.executable, "-m", "tasks.fine_tune", NAME)
    assert line.startswith("error: data/checkpoints/fine_tune/")
    assert contents(disk, "data/models") == trained
    assert list(disk.path("data/checkpoints").rglob("*.tmp")) == []
    disk.empty()
    disk.ok(sys.executable, "-m", "tasks.fine_tune", NAME)
    assert contents(disk, "data/models") == contents(reference, "data/models")


def test_while_dvc_keeps_a_result(reference: Project, disk: SmallDisk, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "prefect")  # its database has to have room to tell of it
    disk.remove(".dvc/cache")
    for left in (100_000, 3_000_000):  # for hardly a picture, for all of them and no more
        disk.fill(left)
        full = disk.retrain(PREFECT_HOME=elsewhere)
        said = full.stdout + full.stderr
        assert full.returncode == 1, said
        assert "No space left on device" in full.stderr
        assert f"{disk.root}/.dvc/cache/files" in full.stderr
        assert "Traceback" not in said
    disk.empty()
    again = disk.retrain(PREFECT_HOME=elsewhere)
    assert again.returncode == 0, again.stdout + again.stderr
    assert disk.started(again.stdout + again.stderr) == []
    assert disk.path("dvc.lock").read_bytes() == reference.path("dvc.lock").read_bytes()
    disk.remove("data/packed", "data/models", "data/raw")
    disk.ok("dvc", "checkout")
    for name in ("data/packed", "data/models", "data/raw"):
        assert contents(disk, name) == contents(reference, name)


def test_a_stage_that_is_killed_in_an_epoch(reference: Project, tmp_path: Path) -> None:
    project = reference.copy(tmp_path / "project")
    project.remove(".dvc/cache", "data/models", "data/checkpoints")
    place = project.path(f"data/checkpoints/fine_tune/{NAME}")

    def epochs() -> int:
        live = place / "live.jsonl"
        return len(live.read_text().splitlines()) if live.exists() else 0

    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.retrain"],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: epochs() >= 2 and list(place.glob("*/*.safetensors")), 300, "an epoch")
        (stage,) = [
            child
            for child in psutil.Process(flow.pid).children(recursive=True)
            if child.cmdline()[:3] == ["python", "-m", "tasks.fine_tune"]
        ]
        os.kill(stage.pid, signal.SIGKILL)
        said, _ = flow.communicate(timeout=120)
    finally:
        flow.kill()
        flow.wait()
    assert flow.returncode == 1, said
    assert f"fine_tune@{NAME} failed" in said
    assert 2 <= epochs() <= 5
    assert not project.path(f"data/models/{NAME}/model.safetensors").exists()
    again = project.retrain()
    output = again.stdout + again.stderr
    assert again.returncode == 0, output
    assert re.search(r"resumed in epoch \d+, after step [1-9]", output), output
    assert project.path("dvc.lock").read_bytes() == reference.path("dvc.lock").read_bytes()
    assert contents(project, "data/models") == contents(reference, "data/models")
