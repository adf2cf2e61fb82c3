"""Bring back the data and models of a registered version, in a folder beside the present ones."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from tasks import files, params, program, runs, tracking
from tasks.vision.errors import RefitError


def dvc(*command: str, at: Path | None = None) -> str:
    """Run DVC and return what it printed.

    Raises:
        RefitError: it failed; the message is its own.
    """
    done = subprocess.run(
        ["dvc", *command],  # noqa: S607 - this environment's own
        cwd=at,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RefitError(f"`dvc {' '.join(command)}`: {done.stderr.strip()}")
    return done.stdout.strip()


def lay_out(folder: Path, origin: Path) -> None:
    """Make a DVC project of a version's files; its cache is the present project's."""
    for path in runs.ORIGIN:
        # Manifest and classes are outputs: DVC brings them.
        if (origin / path.name).exists() and path not in (files.MANIFEST, files.CLASSES):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin / path.name, folder / path)
    (folder / ".dvc").mkdir()
    for name in ("config", "config.local"):
        present = Path(".dvc", name)
        if present.exists():
            shutil.copy(present, folder / ".dvc" / name)
    dvc("config", "--local", "core.no_scm", "true", at=folder)
    dvc("config", "--local", "cache.dir", dvc("cache", "dir"), at=folder)


def fill(folder: Path, origin: Path) -> None:
    """Bring back all that a version's files name.

    Nothing is copied twice, and nothing here is touched.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RefitError(f"{folder} is not empty: name another folder with --into")
    lay_out(folder, origin)
    try:
        dvc("checkout", at=folder)
    except RefitError:
        dvc("pull", at=folder)  # what this machine no longer has, the remote may


def main() -> None:
    """Restore one version and prove that its model is the registered one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="a version's number, or an alias such as champion")
    parser.add_argument("--into", type=Path, help="a new folder; default data/restored/VERSION")
    arguments = parser.parse_args()
    register = params.load().register_
    with tracking.session(register.experiment) as (client, _):
        version = tracking.find(client, register.model_name, arguments.version)
        origin = tracking.read_artifact(version.tags["run_id"], runs.ORIGIN_FOLDER)
    folder = arguments.into or Path("data/restored") / str(version.version)
    fill(folder, origin)
    model = folder / files.BEST / "model.onnx"
    if files.sha256_file(model) != version.tags["onnx_sha256"]:
        raise RefitError(f"{model} is not the file of {version.name} version {version.version}")
    print(
        f"{version.name} version {version.version} (data version {version.tags['data_version']}, "
        f"git commit {version.tags['git_commit']}) is back in {folder}: data/raw, every stage's "
        "outputs, params.yaml; data/best/model.onnx is the registered file"
    )


if __name__ == "__main__":
    program.run(main)
