"""A copy of the project to run for real: the shipped dvc.yaml and params.yaml, shrunk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tasks import demo_data

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "data/.gitignore")
SIDE = 96  # pixels of the shrunk pictures


def shrink_params(params: dict[str, Any]) -> dict[str, Any]:
    """Make the shipped params small; nothing is added."""
    params["prepare"] |= {"resize": 72, "crop": 64}
    params["head"]["epochs"] = 5
    params["fine_tune"] |= {"epochs": 1, "batch_size": 8}
    del params["candidates"]["resnet18"]["fine_tune"]  # what it lays over is small now
    params["validate"] |= {"min_per_class": 10, "min_per_class_and_split": 1}
    return params


@dataclass(frozen=True)
class Project:
    """A copy of the project in a folder and git repository of its own."""

    root: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment in the project."""
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of this project's programs: nothing of the caller's servers."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "DVC_"))
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return {**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", **more}

    def ok(self, *command: str, **environment: str) -> str:
        """Run a program that must succeed; return what it printed."""
        done = self.run(*command, **environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def retrain(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the flow as `make retrain` does."""
        return self.run(sys.executable, "-m", "flows.retrain", **environment)

    def started(self, output: str) -> list[str]:
        """Return the stages that a flow's output says were really run, in order."""
        return re.findall(r"Running stage '([^']+)'", output)

    def stale(self) -> set[str]:
        """Return the stages that DVC finds stale."""
        return set(json.loads(self.ok("dvc", "status", "--json"))) - {"data/raw.dvc"}

    def copy(self, root: Path) -> Project:
        """Return a copy of the project and all it has made."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)

    def remove(self, *names: str) -> None:
        """Remove files and folders."""
        for name in names:
            path = self.path(name)
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def path(self, name: str) -> Path:
        """Return a path in the project."""
        return self.root / name

    def change_params(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Rewrite params.yaml after `change`, which changes the dict in place."""
        file = self.path("params.yaml")
        params = yaml.safe_load(file.read_text())
        change(params)
        file.write_text(yaml.safe_dump(params, sort_keys=False))

    def start_history(self) -> None:
        """Commit everything to a git repository of its own."""
        self.ok("git", "init", "-q", "-b", "main")
        self.ok("git", "config", "user.name", "test")
        self.ok("git", "config", "user.email", "test@example.invalid")
        self.ok("git", "add", "-A")
        self.ok("git", "commit", "-q", "-m", "start")

    def edit(self, name: str) -> None:
        """Change a source file without changing what it does."""
        file = self.path(name)
        file.write_text(file.read_text() + "\n# edited\n")


def small_pictures(root: Path, each: int) -> None:
    """Write real pictures, shrunk, into data/raw/<class>/."""
    for label, paths in demo_data.choose(demo_data.cells(), str(2 * each)).items():
        for path in paths:
            target = root / "data/raw" / label / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).resize((SIDE, SIDE)).save(target)


def make_project(root: Path, each: int, variants: tuple[str, ...] = ()) -> Project:
    """Copy the project to `root`, shrink its params and give it pictures."""
    for folder in ("flows", "tasks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SHIPPED, "dvc.yaml", "params.yaml", "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    project = Project(root)
    project.change_params(shrink_params)
    project.change_params(lambda params: params["export"].update(variants=list(variants)))
    small_pictures(root, each)
    project.start_history()
    return project


@dataclass(frozen=True)
class Trained:
    """A project after its first retrain, for tests that only look; others take a copy."""

    project: Project
    first: subprocess.CompletedProcess[str]
