"""`make up` and `make down` on this machine, and a worker that has only a git and a DVC remote."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.child import end_group
from tests.loopback import free_port, wait_for
from tests.pipeline.project import Project
from tests.stack.prefect_stack import Stack, make_project, read_json, trained


class Machine:
    """A project on a machine of its own, as far as Prefect's port goes."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.stack = Stack(project, free_port())

    def run(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run `flows.up` or `flows.down` as make does."""
        return self.project.run(
            sys.executable,
            "-m",
            program,
            PREFECT_SERVER_API_PORT=str(self.stack.port),
            PREFECT_WORKER_QUERY_SECONDS="1",
        )

    def pids(self) -> dict[str, int]:
        """Return service -> its process number."""
        found: dict[str, Any] = {
            file.stem: read_json(file) for file in self.project.path(".prefect/up").glob("*.json")
        }
        return {name: record["pid"] for name, record in found.items()}

    def healthy(self) -> bool:
        """Whether the server answers."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.stack.api}/health").is_success
        return False


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(make_project(tmp_path / "project"))
    try:
        yield made
    finally:
        for pid in made.pids().values():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                for member in [*process.children(recursive=True), process]:
                    member.kill()


def test_up_runs_a_retrain_and_down_ends_exactly_that(machine: Machine) -> None:
    assert machine.run("flows.down").stdout.count("did not run") == 2
    first = machine.run("flows.up")
    assert first.returncode == 0, first.stdout + first.stderr
    for name in ("server", "worker"):
        assert f"{name}   started: " in first.stdout
    pids = machine.pids()
    second = machine.run("flows.up")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("   runs already: ") == 2
    assert machine.pids() == pids
    family = [psutil.Process(pid) for pid in pids.values()]
    family += [child for process in family for child in process.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}

    stack = machine.stack
    assert {found["name"]: found["paused"] for found in stack.post("deployments/filter")} == {
        "nightly": False,
        "on-new-data": False,
    }
    done = stack.wait(stack.trigger("nightly"))
    assert done["state_type"] == "COMPLETED", stack.logs(done["id"])
    assert trained(machine.project) == 1
    planned = stack.post("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
    assert {run["deployment_id"] for run in planned if run["auto_scheduled"]}

    # A worker that ends by itself is started again, and ended nevertheless.
    (worker,) = psutil.Process(pids["worker"]).children()
    worker.kill()
    wait_for(
        lambda: [p for p in psutil.Process(pids["worker"]).children() if p.pid != worker.pid],
        30,
        "another worker",
    )
    family += psutil.Process(pids["worker"]).children()
    ended = machine.run("flows.down")
    assert (ended.returncode, ended.stdout.count("ended")) == (0, 2)
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert machine.run("flows.down").stdout.count("did not run") == 2


def test_up_leaves_a_server_of_somebody_else_alone(machine: Machine) -> None:
    machine.stack.start_server()
    try:
        refused = machine.run("flows.up")
        assert refused.returncode == 1
        assert f"another Prefect server answers at http://127.0.0.1:{machine.stack.port}" in (
            refused.stderr
        )
        assert machine.run("flows.down").stdout.count("did not run") == 2
        assert machine.healthy()
    finally:
        machine.stack.end()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Stack]:
    """A server, and a project whose git and DVC remotes are folders beside it."""
    project = make_project(tmp_path / "project")
    project.ok("dvc", "remote", "add", "-d", "there", str(tmp_path / "dvc-remote"))
    project.ok("dvc", "add", "data/raw")
    project.ok("dvc", "push")
    project.ok("git", "add", "-A")
    project.ok("git", "commit", "-qm", "data")
    made = Stack(project, free_port())
    try:
        made.start_server()
        yield made
    finally:
        made.end()


def test_a_worker_with_remotes_alone_trains_and_pushes(served: Stack, tmp_path: Path) -> None:
    workspace = Project(tmp_path / "elsewhere/refit")
    remotes = {"REFIT_REPOSITORY": str(served.project.root), "REFIT_WORKSPACE": str(workspace.root)}
    deployed = served.project.run(sys.executable, "-m", "flows.deployments", **served.environment())
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    served.pause()
    worker = subprocess.Popen(
        [str(Path(sys.executable).with_name("prefect")), "worker", "start", "--pool", "refit"],
        cwd=tmp_path,
        env={**served.environment(), **remotes},
        stdout=(tmp_path / "worker.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        first = served.wait(served.trigger("nightly"))
        assert first["state_type"] == "COMPLETED", served.logs(first["id"])
        assert {"pull data", "pull results", "push", "slow@one"} <= served.task_states(
            first["id"]
        ).keys()
        model = workspace.path("data/best/model.onnx").read_bytes()
        assert trained(workspace) == 1
        again = served.wait(served.trigger("nightly"))
        assert again["state_type"] == "COMPLETED", served.logs(again["id"])
        assert again["name"].endswith("nothing changed")
        assert trained(workspace) == 1
    finally:
        end_group(worker)
    pushed = [path.read_bytes() for path in (tmp_path / "dvc-remote").rglob("*") if path.is_file()]
    assert model in pushed
    assert os.fspath(workspace.root) not in {p.cwd() for p in psutil.process_iter() if readable(p)}


def readable(process: psutil.Process) -> bool:
    """Whether a process's folder can be read and is not gone."""
    with contextlib.suppress(psutil.Error):
        return bool(process.cwd())
    return False
