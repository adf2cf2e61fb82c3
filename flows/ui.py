"""The MLflow and Prefect pages on this machine, on loopback only; Ctrl-C ends both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from flows import services
from flows.child import end_group

SERVERS = {
    "MLflow  http://127.0.0.1:5000": [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1"),
        *("--backend-store-uri", "sqlite:///mlflow.db"),
    ],
    "Prefect http://127.0.0.1:4200": [
        *("python", "-m", "flows.prefect_server", "--host", "127.0.0.1", "--port", "4200"),
    ],
}


def main() -> None:
    """Start both servers and wait until one ends or Ctrl-C."""
    programs = Path(sys.executable).parent
    # MLflow would start seven processes for jobs that this project has none of.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    running = {
        # A group of its own each: MLflow's workers outlive their parent's end otherwise.
        name: subprocess.Popen(
            [str(programs / command[0]), *command[1:]], start_new_session=True, env=environment
        )
        for name, command in SERVERS.items()
        # `make up` has a Prefect server of its own.
        if not name.startswith("Prefect") or services.running("server") is None
    }
    print("\n".join(running))
    try:
        while all(server.poll() is None for server in running.values()):
            time.sleep(0.5)
        ended = [name for name, server in running.items() if server.poll() is not None]
        sys.exit(f"ended by itself: {', '.join(ended)}")
    except KeyboardInterrupt:
        print("ending")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave one behind
        for server in running.values():
            end_group(server)


if __name__ == "__main__":
    main()
