"""What Prefect, DVC and MLflow cost beyond the stages' own seconds, on the demo.

    .venv/bin/python -m tests.benchmarks.overhead              # the demo's pictures, 3 rounds
    .venv/bin/python -m tests.benchmarks.overhead --images 100 --rounds 1

In turns: the stages as plain programs, one after the other, in the order of dvc.yaml; in a project
of its own the retrain flow from nothing, which makes the databases of Prefect and MLflow; and the
flow again, its databases there and everything else to be computed anew, as on any later day. Each
time it starts a temporary server. The rest of the flow (server, DVC, registering, the report) is
the overhead; smaller variants of the model, which are work of their own, are made by nobody. It
prints a JSON object a round, then a no-op retrain's seconds with a Prefect server that runs.
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
    (folder / "data").mkdir()
    shutil.copy(REPOSITORY / "data/.gitignore", folder / "data")
    git = ["git", "-c", "user.name=refit", "-c", "user.email=refit@localhost"]
    run([*git, "init", "--quiet"], folder)
    run([*git, "add", "."], folder)
    run([*git, "commit", "--quiet", "--message", "Start"], folder)
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


def forget_results(folder: Path) -> None:
    """Let every stage be run again; pictures, databases and the champion stay."""
    for path in (folder / "data").iterdir():
        if path.is_dir() and path.name != "raw":
            shutil.rmtree(path)
    shutil.rmtree(folder / ".dvc/cache/runs")
    (folder / "dvc.lock").unlink()


def commands(folder: Path) -> list[list[str]]:
    """Return the stages' own commands, in an order that their outputs allow."""
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    candidates = yaml.safe_load((folder / "params.yaml").read_text())["candidates"]
    found = []
    for name in ("validate", "prepare", "weights", "train_head", "fine_tune", "evaluate", "export"):
        stage = pipeline[name]
        keys = candidates if "foreach" in stage else [""]
        template = stage.get("do", stage)["cmd"]
        found += [template.replace("${key}", key).split() for key in keys]
    return found


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
            plain = project(Path(root) / "plain", asked.images)
            flow = project(Path(root) / "flow", asked.images)
            own = sum(run(command, plain) for command in commands(plain))
            first = run(RETRAIN, flow)
            forget_results(flow)
            later = run(RETRAIN, flow)
            found = {"stages": own, "first": first, "later": later}
            print(json.dumps({name: round(seconds, 1) for name, seconds in found.items()}))
            shares = {name: round(found[name] / own - 1, 3) for name in ("first", "later")}
            print(json.dumps({"overhead": shares}), flush=True)
            if number == asked.rounds - 1:
                with prefect_server(flow) as address:
                    again = [run(RETRAIN, flow, PREFECT_API_URL=address) for _ in range(3)]
                print(json.dumps({"no-op with a running server": [round(s, 1) for s in again]}))


if __name__ == "__main__":
    main()
