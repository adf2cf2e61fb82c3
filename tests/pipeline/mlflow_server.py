"""A real MLflow server on loopback, which a test may kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import requests

from tests.loopback import free_port


class Server:
    """A server with its database and artifacts in a folder.

    Args:
        folder: its own; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", "sqlite:///served.db"]
        # Its seven processes for jobs of another kind take longer to start than all the rest.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log_file = self._folder / "server.log"
        with log_file.open("a") as log:
            self._running = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with suppress(requests.RequestException):
                requests.get(f"{self.uri}/health", timeout=1).raise_for_status()
                return
            time.sleep(0.2)
        self.kill()
        raise AssertionError(log_file.read_text())

    def kill(self) -> None:
        """Kill it and all that it started; harmless where nothing runs."""
        if self._running:
            with suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()
        self._running = None
