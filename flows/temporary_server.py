"""A Prefect server for the time of one retrain, where no other is named.

Prefect would start one by itself, but only when it is imported, and would leave it running when the
flow is killed. This one starts before the seconds of imports, and `guard` ends it with the flow,
however that ends.

It imports nothing but the standard library: what it is for is not to be waited for.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

from flows import guard, loopback

# Each of them may name a server, or forbid a temporary one: then Prefect itself decides.
VARIABLES = (
    "PREFECT_API_URL",
    "PREFECT_PROFILE",
    "PREFECT_PROFILES_PATH",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    "PREFECT_SERVER_EPHEMERAL_ENABLED",
)
FILES = ("prefect.toml", ".env", "profiles.toml")  # the last in Prefect's own folder
# As Prefect runs its own: no pages, no schedules, nothing but what a run needs.
TEMPORARY = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
LOOK = 0.05  # seconds between two looks whether it answers


class Server:
    """A server that is starting, or runs."""

    def __init__(self) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        uvicorn = ["-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        where = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        self._process = subprocess.Popen(
            [sys.executable, "-S", guard.__file__, sys.executable, *uvicorn, *where],
            stdin=subprocess.PIPE,  # held open: its end tells the guard of ours
            env={**os.environ, **TEMPORARY},
            start_new_session=True,  # at a Ctrl-C the flow has still to say how it ended
        )

    def wait(self) -> None:
        """Return when it answers.

        Raises:
            SystemExit: it ended, or has not answered in time.
        """
        seconds = float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urlopen(f"{self.address}/api/health", timeout=5):  # noqa: S310 - our own
                    return
            except OSError:  # not listening yet, or not answering yet
                time.sleep(LOOK)
        sys.exit(
            f"retrain: no Prefect server came up at {self.address} within {seconds:.0f} s (what it "
            "said stands above): try again, or set PREFECT_API_URL to one that runs"
        )

    def end(self) -> None:
        """End it, and wait until it has."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.close()
        self._process.wait()


def is_configured() -> bool:
    """Whether anything but this project's own settings tells Prefect where its server is."""
    places = [Path(folder, name) for folder in (".", os.environ["PREFECT_HOME"]) for name in FILES]
    if any(name in os.environ for name in VARIABLES) or any(place.exists() for place in places):
        return True
    project = Path("pyproject.toml")
    text = project.read_text(encoding="utf-8") if project.exists() else ""
    return "api" in tomllib.loads(text).get("tool", {}).get("prefect", {})


def start() -> Server | None:
    """Start a server and let Prefect, once it is imported, use it; None where it has another.

    Raises:
        SystemExit: the loopback interface is down and cannot be brought up.
    """
    loopback.ensure()
    if is_configured():
        return None
    server = Server()
    # Before Prefect registers what it still has to tell the server at the end: last in, first out.
    atexit.register(server.end)
    print(f"starting a Prefect server for this run at {server.address}", file=sys.stderr)
    os.environ["PREFECT_API_URL"] = f"{server.address}/api"
    return server
