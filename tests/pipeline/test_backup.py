"""The README's back-up and restore, as they stand there, of a project with embedded servers."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from flows import relocate
from tests.pipeline.project import ROOT, Project


def commands(about: str) -> list[str]:
    """Return the lines of the README's block of commands that begins with a comment."""
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(rf"```sh\n# {about}.*\n((?:.+\n)+?)```", text)
    lines: list[str] = block.splitlines()
    assert lines
    return [line.partition("  #")[0] for line in lines if line != "make setup"]


def run(project: Project, lines: list[str]) -> None:
    for line in lines:
        project.ok("bash", "-ec", line.replace(".venv/bin/python", sys.executable))


def test_everything_comes_back_in_an_empty_folder(copied: Project, tmp_path: Path) -> None:
    # The copy is itself a folder that was moved.
    assert relocate.relocate(copied.root) > 0
    assert relocate.relocate(copied.root) == 0
    lock = copied.path("dvc.lock").read_bytes()
    picture = next(copied.path("data/raw").rglob("*.png")).relative_to(copied.root)
    run(copied, commands("back-up"))
    copied.root.rename(tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost")

    restored = Project(tmp_path / "restored")
    restored.root.mkdir()
    run(restored, commands("restore"))
    assert "up to date" in restored.ok("dvc", "repro")
    assert restored.path("dvc.lock").read_bytes() == lock
    again = restored.retrain()
    assert again.returncode == 0, again.stderr
    assert "Nothing had changed" in again.stdout
    served = restored.ok(
        sys.executable, "-m", "tasks.predict", "models:/refit@champion", str(picture), "--json"
    )
    mine = restored.ok(
        sys.executable, "-m", "tasks.predict", "data/best/model.onnx", str(picture), "--json"
    )
    assert json.loads(served.splitlines()[0]) == json.loads(mine.splitlines()[0])
