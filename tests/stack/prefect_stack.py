"""Real Prefect processes on loopback, and a project whose one stage is slow and remembers all.

The flow, DVC and Prefect are the shipped ones; only the stages are stand-ins, because a night goes
wrong in the same way whatever a stage computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows.child import end_group
from tests.loopback import free_port, wait_for
from tests.pipeline.project import ROOT, SHIPPED, Project

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}

# The stage: it starts a helper, notes every process, and lives as long as knob.txt says.
SLOW = """
import os, pathlib, subprocess, sys, time
seconds = float(pathlib.Path("knob.txt").read_text().split()[0])
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open("pids.txt", "a") as notes:
    notes.write(f"{os.getpid()} {helper.pid}\\n")
print("slow works", flush=True)
pathlib.Path("started").touch()
end = time.monotonic() + seconds
while time.monotonic() < end and not pathlib.Path("enough").exists():
    time.sleep(0.05)
helper.kill()
pathlib.Path("data/slow.txt").write_text(pathlib.Path("knob.txt").read_text())
with open("trained.txt", "a") as notes:
    notes.write("trained\\n")
"""

EXPORT = """
import pathlib, shutil
pathlib.Path("data/best").mkdir(parents=True, exist_ok=True)
shutil.copy("data/slow.txt", "data/best/model.onnx")
"""

# The step after the stages, without MLflow: the same command line, the same summary.
REGISTER = """
import argparse, json, pathlib
from tasks import files, params, results
parser = argparse.ArgumentParser()
parser.add_argument("--stages", type=json.loads)
parser.add_argument("--no-promote", action="store_true")
arguments = parser.parse_args()
found = results.validated(params.load().candidates)
verdict = pathlib.Path("knob.txt").read_text().split()[1]
if arguments.no_promote and verdict == "PROMOTE":
    verdict = "HOLD"
files.write_json(files.SUMMARY, {
    "retrain": results.retrain_key(found), "best": "none", "verdict": verdict,
    "reason": "stand-in", "model": "refit", "registered_version": "1", "champion": "1",
    "data_version": "0", "git_commit": "0", "tracking_uri": "http://127.0.0.1:1", "run_id": "42",
    "withheld": arguments.no_promote, "decision": {"reasons": ["stand-in"]},
    "candidates": {}, **arguments.stages,
})
"""

DVC_YAML = """
stages:
  slow:
    foreach: [one]
    do:
      cmd: python slow.py
      deps: [slow.py, knob.txt, data/raw]
      params: [head.epochs]
      outs: [data/slow.txt]
  export:
    cmd: python export.py
    deps: [export.py, data/slow.txt]
    outs: [data/best/model.onnx]
"""


def make_project(root: Path) -> Project:
    """Make the project with the stand-in stages, in a git repository of its own."""
    for folder in ("flows", "tasks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SHIPPED, "params.yaml", "pyproject.toml", "prefect.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    project = Project(root)
    project.path("slow.py").write_text(SLOW)
    project.path("export.py").write_text(EXPORT)
    project.path("dvc.yaml").write_text(DVC_YAML)
    project.path("tasks/register.py").write_text(REGISTER)
    project.path("tasks/report.py").write_text(
        "import pathlib; pathlib.Path('data/reports/report.html').write_text('')"
    )
    project.path("data/raw").mkdir(parents=True)
    project.path("data/raw/picture.txt").write_text("picture")
    project.change_params(lambda params: params["export"].update(variants=[]))
    set_work(project, seconds=0)
    project.start_history()
    return project


def set_work(project: Project, seconds: float, verdict: str = "PROMOTE") -> None:
    """Give the stage something new to do that takes so long, and register this verdict."""
    project.path("enough").unlink(missing_ok=True)
    project.path("started").unlink(missing_ok=True)
    project.path("knob.txt").write_text(f"{seconds} {verdict} {time.time_ns()}")


def trained(project: Project) -> int:
    """Return how often the stage ran to its end."""
    notes = project.path("trained.txt")
    return len(notes.read_text().splitlines()) if notes.exists() else 0


def descendants(project: Project) -> list[psutil.Process]:
    """Return the processes that work in the project's folder for a run, however they lost touch."""
    found = []
    notes = project.path("pids.txt")
    noted = {int(pid) for pid in notes.read_text().split()} if notes.exists() else set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            ours = process.pid in noted or any(
                word in words for word in ("dvc", "guard.py", "-m tasks.")
            )
            inside = process.cwd() == str(project.root)
            if ours and inside and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass
class Stack:
    """A server, a project, and the processes that run its flow.

    Attributes:
        project: with the stand-in stages.
        port: of the server on loopback.
        settings: more of the environment of its processes.
        processes: by name, those that this stack started.
    """

    project: Project
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def api(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}/api"

    def environment(self, **more: str) -> dict[str, str]:
        """Return what this stack's processes see: quick to look for work, slow in nothing."""
        return self.project.environment(
            PREFECT_API_URL=self.api,
            PREFECT_HOME=str(self.project.root.parent / "prefect-home"),
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS="3",
            PREFECT_WORKER_QUERY_SECONDS="2",
            PREFECT_RUNNER_POLL_FREQUENCY="1",
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30",
            **self.settings,
            **more,
        )

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process of this stack; what it says is in a file beside the project."""
        with self.log_file(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(Path(sys.executable).with_name(command[0])), *command[1:]],
                cwd=self.project.root,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def log_file(self, name: str) -> Path:
        """Return the file with what a process of this stack says."""
        return self.project.root.parent / f"{name}.log"

    def end(self) -> None:
        """End every process of this stack and what they started."""
        family = []
        for process in self.processes.values():
            with contextlib.suppress(psutil.Error):
                family += psutil.Process(process.pid).children(recursive=True)
            end_group(process)
            process.wait()
        for member in [*family, *descendants(self.project)]:
            with contextlib.suppress(psutil.Error):
                member.kill()

    def begin_server(self) -> None:
        """Start the server."""
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.start("server", "python", "-m", "flows.prefect_server", *address)

    def start_server(self) -> None:
        """Start the server and wait for its first answer."""
        self.begin_server()
        wait_for(lambda: httpx.get(f"{self.api}/health").is_success, 120, "the server's start")

    def start_worker(self) -> None:
        """Start a worker."""
        self.start("worker", "prefect", "worker", "start", "--pool", "refit", "--name", "tested")

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Ask the server; where SQLite is busy for a moment it says 503, and clients ask again."""

        def answered() -> httpx.Response | None:
            answer = httpx.request(method, f"{self.api}/{path}", timeout=30, **body)
            return None if answer.status_code == 503 else answer

        answer: httpx.Response = wait_for(answered, 30, f"an answer to {path}")
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def post(self, path: str, **body: Any) -> Any:
        """Tell or ask the server."""
        return self.ask("POST", path, json=body)

    def get(self, path: str) -> Any:
        """Ask the server."""
        return self.ask("GET", path)

    def deploy(self) -> None:
        """Make pool, deployments and automations; only what a test triggers runs."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.deployments", "--here"],
            cwd=self.project.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.pause()

    def pause(self) -> None:
        """Let no schedule start a run."""
        for deployment in self.post("deployments/filter"):
            self.post(f"deployments/{deployment['id']}/pause_deployment")

    def trigger(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment now, as the button in the pages does; return its id."""
        found = self.get(f"deployments/name/retrain/{deployment}")
        made = self.post(f"deployments/{found['id']}/create_flow_run", parameters=parameters)
        return str(made["id"])

    def run(self, flow_run: str) -> dict[str, Any]:
        """Return a run as the server knows it."""
        found: dict[str, Any] = self.get(f"flow_runs/{flow_run}")
        return found

    def wait(self, flow_run: str, states: set[str] = ENDED, seconds: float = 90) -> dict[str, Any]:
        """Return a run once it is in one of these states."""
        return_of: dict[str, Any] = wait_for(
            lambda: (found := self.run(flow_run))["state_type"] in states and found,
            seconds,
            f"run {flow_run} in {states}; worker: {self.tail('worker')}",
        )
        return return_of

    def tail(self, name: str) -> str:
        """Return the last lines that a process said."""
        file = self.log_file(name)
        return "\n".join(file.read_text().splitlines()[-40:]) if file.exists() else ""

    def work(self, deployment: str = "nightly", seconds: float = 300) -> str:
        """Start a run with work for so long, and return its id once the stage works."""
        set_work(self.project, seconds)
        flow_run = self.trigger(deployment)
        wait_for(
            self.project.path("started").exists,
            90,
            f"the stage's start; {self.tail('worker')} {self.tail('serve')}",
        )
        return flow_run

    def cancel(self, flow_run: str) -> None:
        """Cancel a run as the button in the pages does."""
        self.post(f"flow_runs/{flow_run}/set_state", state={"type": "CANCELLING"})

    def task_states(self, flow_run: str) -> dict[str, str]:
        """Return task -> the name of the state it ended in."""
        query = {"flow_runs": {"id": {"any_": [flow_run]}}}
        return {run["name"]: run["state_name"] for run in self.post("task_runs/filter", **query)}

    def logs(self, flow_run: str) -> str:
        """Return what a run and its tasks logged."""
        query = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.post("logs/filter", **query))

    def artifacts(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """Return key -> a run's artifact."""
        query = {"artifacts": {"flow_run_id": {"any_": [flow_run]}}}
        return {made["key"]: made for made in self.post("artifacts/filter", **query)}

    def next_run_completes(self) -> None:
        """Show that the slot is free and the workspace whole: the same work again, to its end."""
        before = trained(self.project)
        self.project.path("enough").touch()
        done = self.wait(self.trigger("nightly"))
        assert done["state_type"] == "COMPLETED", done["state"]
        assert trained(self.project) == before + 1

    def nothing_left(self, seconds: float = 30) -> None:
        """Wait until no process of a run is left, for the issue's 30 seconds at most."""
        wait_for(lambda: not descendants(self.project), seconds, "the end of a run's processes")


@contextlib.contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """Start a server for a new project, with its deployments; end all of it."""
    made = Stack(make_project(folder / "project"), free_port())
    try:
        made.start_server()
        made.deploy()
        yield made
    finally:
        made.end()


def kill(process: subprocess.Popen[bytes]) -> None:
    """End one process, and only it, as the kernel does when memory runs out."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, but for those that have groups of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_json(path: Path) -> Any:
    """Return a JSON file's value."""
    return json.loads(path.read_text())
