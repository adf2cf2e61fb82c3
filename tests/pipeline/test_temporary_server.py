"""A retrain's own Prefect server: started where none is named, and gone when the retrain is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from flows import temporary_server
from flows.child import end_group
from tests.pipeline.project import ROOT, Project

# As `flows.retrain` begins, and then a retrain that takes long.
OWNER = """
import time
from flows import temporary_server
server = temporary_server.start()
server.wait()
print(server.address, flush=True)
time.sleep(600)
"""


def start(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Start an owner in an empty folder."""
    return subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=folder,
        env=Project(folder).environment(PYTHONPATH=str(ROOT), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run one, and end it."""
    with start(tmp_path) as process:
        yield process
        end_group(process)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_answers_and_ends_however_its_owner_does(
    owner: subprocess.Popen[bytes], ending: signal.Signals
) -> None:
    assert owner.stdout is not None
    address = owner.stdout.readline().decode().strip()
    assert httpx.get(f"{address}/api/health").json() is True
    family = psutil.Process(owner.pid).children(recursive=True)
    assert any("uvicorn" in process.cmdline() for process in family)
    owner.send_signal(ending)
    owner.wait()
    assert psutil.wait_procs(family, 20)[1] == []


def test_a_server_that_does_not_come_up_is_an_error_for_people(tmp_path: Path) -> None:
    # Its database is a folder.
    address = f"sqlite+aiosqlite:///{tmp_path}"
    with start(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=address) as owner:
        _, said = owner.communicate(timeout=120)
    assert owner.returncode == 1
    last = said.decode().strip().splitlines()[-1]
    assert last.startswith("retrain: no Prefect server came up at http://127.0.0.1:")
    assert "PREFECT_API_URL" in last


def test_prefect_s_own_settings_are_left_to_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / ".prefect"
    home.mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(home))
    project = tmp_path / "pyproject.toml"
    project.write_bytes((ROOT / "pyproject.toml").read_bytes())
    assert not temporary_server.is_configured()
    for name in temporary_server.VARIABLES:
        with monkeypatch.context() as only:
            only.setenv(name, "anything")
            assert temporary_server.is_configured(), name
            assert temporary_server.start() is None
    for file in (home / "profiles.toml", tmp_path / "prefect.toml", tmp_path / ".env"):
        file.touch()
        assert temporary_server.is_configured(), file
        file.unlink()
    project.write_text('[tool.prefect.api]\nurl = "http://127.0.0.1:4200/api"\n')
    assert temporary_server.is_configured()
    project.unlink()
    assert not temporary_server.is_configured()
