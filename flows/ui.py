"""The MLflow and Prefect pages on this machine, on loopback only; Ctrl-C ends both."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SERVERS = {
    "MLflow  http://127.0.0.1:5000": [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1"),
        *("--backend-store-uri", "sqlite:///mlflow.db"),
    ],
    "Prefect http://127.0.0.1:4200": [
        *("prefect", "server", "start", "--host", "127.0.0.1", "--port", "4200"),
    ],
}


def main() -> None:
    """Start both servers and wait until one ends or Ctrl-C."""
    programs = Path(sys.executable).parent
    running = {
        name: subprocess.Popen([str(programs / command[0]), *command[1:]])
        for name, command in SERVERS.items()
    }
    print("\n".join(SERVERS))
    try:
        while all(server.poll() is None for server in running.values()):
            time.sleep(0.5)
        ended = [name for name, server in running.items() if server.poll() is not None]
        sys.exit(f"ended by itself: {', '.join(ended)}")
    except KeyboardInterrupt:
        print("ending")
    finally:
        for server in running.values():
            server.terminate()
        for server in running.values():
            server.wait()


if __name__ == "__main__":
    main()
