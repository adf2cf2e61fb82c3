"""Start what scheduled retraining needs on this machine; what runs already is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx

from flows import deployments, services

START = 120.0  # seconds for the server's first answer
PORT = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
PAGE = f"http://127.0.0.1:{PORT}"


def healthy() -> bool:
    """Whether a Prefect server answers."""
    try:
        return httpx.get(f"{PAGE}/api/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def start_server() -> bool:
    """Start the server and wait for it; return whether it was started.

    Raises:
        SystemExit: it ended, or somebody else's answers at its address.
    """
    if services.running("server") is None and healthy():
        sys.exit(
            f"up: another Prefect server answers at {PAGE} (`make ui`?): end it, or choose "
            "another port with PREFECT_SERVER_API_PORT"
        )
    command = ["python", "-m", "flows.prefect_server", "--host", "127.0.0.1", "--port", PORT]
    started = services.start("server", command)
    deadline = time.monotonic() + START
    while not healthy():
        if services.running("server") is None or time.monotonic() > deadline:
            sys.exit(f"up: the server does not answer: read {services.log_file('server')}")
        time.sleep(0.2)
    return started


def main() -> None:
    """Bring up server, pool, deployments, automations and worker."""
    say = {True: "started", False: "runs already"}
    print(f"server   {say[start_server()]}: {PAGE}")
    os.environ["PREFECT_API_URL"] = f"{PAGE}/api"
    if code := subprocess.run(
        [sys.executable, "-m", "flows.deployments", "--here"], check=False
    ).returncode:
        sys.exit(f"up: the deployments could not be made (exit code {code})")
    pool = deployments.shipped()["deployments"][0]["work_pool"]["name"]
    worker = ["python", "-m", "flows.keep", "prefect", "worker", "start", "--pool", pool]
    started = services.start("worker", worker)
    print(f"worker   {say[started]}: {services.log_file('worker')}")
    print("retrain now: `prefect deployment run retrain/nightly`; end all of it: `make down`")


if __name__ == "__main__":
    main()
