"""What `make setup` installs, what it says when it cannot, and that nothing reports home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

MAKE = str(shutil.which("make"))
LOCK = Path("requirements.lock").read_text()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder that holds the Makefile and the lock, and no .venv."""
    for name in ("Makefile", "requirements.lock"):
        shutil.copy2(name, folder)
    return subprocess.run(
        [MAKE, *arguments],
        cwd=folder,
        env=outside_make(),
        capture_output=True,
        text=True,
        check=False,
    )


def outside_make() -> dict[str, str]:
    """Return the environment of a shell, also when `make test` runs this: an inner make talks."""
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    return {name: value for name, value in os.environ.items() if name not in inherited}


def fake_python(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines that are the Makefile's own, not make's last word."""
    assert done.returncode != 0
    return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


def test_targets_are_listed() -> None:
    listed = subprocess.run(
        [MAKE], env=outside_make(), capture_output=True, text=True, check=True
    ).stdout
    for target in [
        "setup",
        "demo",
        "retrain",
        "test",
        "test-stack",
        "up",
        "down",
        "lint",
        "ui",
        "clean",
        "lock",
    ]:
        assert re.search(rf"^  make {target} +\S", listed, re.MULTILINE)


def test_no_python_is_one_line(tmp_path: Path) -> None:
    (line,) = said(make(tmp_path, "setup", "PYTHON=no-such-python"))
    assert "no no-such-python found: install Python 3.11" in line


def test_an_old_python_is_one_line(tmp_path: Path) -> None:
    old = fake_python(tmp_path, 'case "$1" in --version) echo Python 3.9.1;; *) exit 1;; esac')
    (line,) = said(make(tmp_path, "setup", f"PYTHON={old}"))
    assert "Python 3.9.1 is not 3.11 to 3.13" in line


def test_no_venv_module_is_one_line(tmp_path: Path) -> None:
    bare = fake_python(tmp_path, 'case "$2" in venv) exit 1;; *) exit 0;; esac')
    (line,) = said(make(tmp_path, "setup", f"PYTHON={bare}"))
    assert "apt install python3-venv" in line


def test_setup_makes_the_database_of_prefect_s_runs_once(tmp_path: Path) -> None:
    # A .venv that is there already, whose `prefect` writes down what it was asked.
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    recorder = programs / "prefect"
    recorder.write_text(
        '#!/bin/sh\nmkdir -p "$PREFECT_HOME"\n'
        'echo "$@ $PREFECT_SERVER_DATABASE_CONNECTION_URL" >>"$PREFECT_HOME/prefect.db"\n'
    )
    recorder.chmod(0o755)
    (tmp_path / ".venv/.synced").touch()
    for _ in range(2):
        done = make(tmp_path, "setup")
        assert done.returncode == 0, done.stderr
    asked = (tmp_path / ".prefect/prefect.db").read_text()
    assert asked.splitlines() == ["server database upgrade --yes "]


def test_the_lock_pins_every_package_by_hash_and_names_no_host() -> None:
    assert "://" not in LOCK
    assert "--index-url" not in LOCK
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK.strip(), flags=re.IGNORECASE)
    for block in blocks:
        assert re.match(r"[\w.-]+==[\w.+!-]+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]


def test_the_lock_holds_what_the_project_asks_for() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["demo"]]
    for requirement in wanted + project["dependency-groups"]["dev"]:
        name = re.match(r"[\w-]+", requirement)
        assert name is not None
        assert re.search(rf"^{name[0]}==", LOCK, re.MULTILINE | re.IGNORECASE), requirement


def test_torch_and_torchvision_are_built_for_one_cuda() -> None:
    import torch
    import torchvision

    assert torch.version.cuda is not None
    major, minor = map(int, torch.version.cuda.split("."))
    # torchvision writes it as CUDA's own header does.
    assert torchvision.version.cuda == major * 1000 + minor * 10
    assert hasattr(torch.ops.torchvision, "nms")


@pytest.mark.parametrize("module", ["flows", "tasks"])
def test_telemetry_is_off_for_whoever_starts_a_program(module: str) -> None:
    names = ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    code = f"import {module}, os; print([os.environ.get(n) for n in {names}])"
    printed = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "['true', '1', 'true']"


def test_the_shipped_servers_and_tools_do_not_report_home(tmp_path: Path) -> None:
    assert "analytics = false" in Path(".dvc/config").read_text()
    bare = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "DO_NOT"))}
    code = "from prefect.settings import get_current_settings as s; print(s().server)"
    bare["PREFECT_HOME"] = str(tmp_path)
    printed = subprocess.run(
        [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
    ).stdout
    assert "analytics_enabled=False" in printed
