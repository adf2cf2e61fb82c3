"""What Prefect, DVC and MLflow cost beyond the stages' own seconds, on the demo.

    .venv/bin/python -m tests.benchmarks.overhead              # the demo's pictures, 3 rounds
    .venv/bin/python -m tests.benchmarks.overhead --images 100 --rounds 1

A round is the retrain flow in a new project, as `make setup` and the demo's pictures leave it, with
a temporary server. dvc.yaml is changed to time each stage's own program, so that both figures are
of one run: a machine that slows down between two runs would tell nothing. The rest of the flow
(server, DVC, MLflow, registering, the report) is the overhead; smaller variants of the model, which
are work of their own, are made by nobody. It prints a JSON object a round, then a no-op retrain's
seconds with a Prefect server that runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from tests.loopback import free_port

REPOSITORY = Path(__file__).parents[2]
PARTS = (
    "flows",
    "tasks",
    "dvc.yaml",
    "params.yaml",
    "pyproject.toml",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
)
# No round of them takes part in another's: neither database, cache nor running server.
OUTSIDE = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in OUTSIDE}
# A stage's `python`, and `dvc`, are this environment's.
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SERVER_SECONDS = 60
RETRAIN = [sys.executable, "-m", "flows.retrain"]
# In a stage's place: it runs the stage, and writes down its seconds.
TIMED = """
import subprocess, sys, time
started = time.perf_counter()
code = subprocess.call([sys.executable, *sys.argv[1:]])
with open("stages.txt", "a") as file:
    print(time.perf_counter() - started, file=file)
sys.exit(code)
"""


def project(folder: Path, images: str) -> Path:
    """Make a project with the demo's pictures, as `make demo` does before it retrains."""
    for part in PARTS:
        source, target = REPOSITORY / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings["export"]["variants"] = []
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    pipeline = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(
        pipeline.replace("python -m tasks.", "python timed.py -m tasks.")
    )
    (folder / "timed.py").write_text(TIMED)
    (folder / "data").mkdir()
    shutil.copy(REPOSITORY / "data/.gitignore", folder / "data")
    git = ["git", "-c", "user.name=refit", "-c", "user.email=refit@localhost"]
    run([*git, "init", "--quiet"], folder)
    run([*git, "add", "."], folder)
    run([*git, "commit", "--quiet", "--message", "Start"], folder)
    home = str(folder / ".prefect")
    run(["prefect", "server", "database", "upgrade", "--yes"], folder, PREFECT_HOME=home)
    run([sys.executable, "-m", "tasks.demo_data"], folder, DEMO_IMAGES=images)
    run(["dvc", "add", "--quiet", "data/raw"], folder)
    return folder


def run(command: list[str], folder: Path, **more: str) -> float:
    """Run a command and return its wall seconds; what it says is shown only if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**ENVIRONMENT, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    return time.perf_counter() - started


def retrain(folder: Path) -> dict[str, float]:
    """Retrain once; return the seconds of its stages, of all of it, and the overhead's share."""
    wall = run(RETRAIN, folder)
    record = folder / "stages.txt"
    stages = sum(map(float, record.read_text().split()))
    record.unlink()
    return {
        "stages": round(stages, 1),
        "all": round(wall, 1),
        "overhead": round(wall / stages - 1, 3),
    }


@contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """Run a Prefect server on loopback and yield its address."""
    port = free_port()
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**ENVIRONMENT, "PREFECT_HOME": str(folder / ".prefect")}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            address = f"http://127.0.0.1:{port}/api"
            deadline = time.monotonic() + SERVER_SECONDS
            while True:
                try:
                    urlopen(f"{address}/health")  # noqa: S310 - our own address
                    break
                except URLError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        sys.exit("the Prefect server does not start")
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", default="500", help="as DEMO_IMAGES")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    for number in range(asked.rounds):
        with tempfile.TemporaryDirectory() as root:
            folder = project(Path(root) / "flow", asked.images)
            print(json.dumps(retrain(folder)), flush=True)
            if number == asked.rounds - 1:
                with prefect_server(folder) as address:
                    again = [run(RETRAIN, folder, PREFECT_API_URL=address) for _ in range(3)]
                print(json.dumps({"no-op with a running server": [round(s, 1) for s in again]}))


if __name__ == "__main__":
    main()
