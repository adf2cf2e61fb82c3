"""A real MLflow server on loopback that goes away in the middle of a registration."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tasks import files, tracking
from tasks.vision.errors import RefitError
from tests.unit.registry import BAD, GOOD, aliases, registered, train, versions, write_pictures


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(port: int) -> subprocess.Popen[bytes]:
    """Run MLflow's server in the working folder; return it when it answers."""
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///served.db"]
    with Path("server.log").open("a") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    for _ in range(240):
        with suppress(requests.RequestException):
            requests.get(f"http://127.0.0.1:{port}/health", timeout=1).raise_for_status()
            return running
        time.sleep(0.5)
    stop(running)
    raise AssertionError(Path("server.log").read_text())


def stop(running: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def test_a_server_that_dies_midway_is_picked_up_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    files.RAW.mkdir(parents=True)
    write_pictures()
    running = start(port)
    try:
        train(BAD)
        assert registered()["verdict"] == "PROMOTE"
        train(GOOD)
        original = tracking.promote

        def die_then_promote(*args: Any) -> None:
            stop(running)
            original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(tracking, "promote", die_then_promote)
            with pytest.raises(RefitError, match="Nothing trained is lost"):
                registered()
        running = start(port)
        assert aliases() == {"champion": "1"}
        assert registered()["verdict"] == "PROMOTE"
        assert aliases() == {"champion": "2", "previous": "1"}
        assert versions() == ["1", "2"]
    finally:
        stop(running)
        tracking.mlflow.set_tracking_uri("")
