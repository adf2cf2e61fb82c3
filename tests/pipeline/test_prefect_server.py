"""A clean install starts a Prefect server that lists runs, and on which a schedule fires."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.child import end_group
from tests.loopback import free_port, wait_for
from tests.pipeline.project import Project, Trained

SERVED_FLOW = """
from prefect import flow

@flow
def tick() -> str:
    return "tock"

if __name__ == "__main__":
    tick.serve(name="every-minute", cron="* * * * *")
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server on loopback, in a home of its own, and stop it."""
    folder, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = Project(folder).environment(
        PREFECT_HOME=str(folder), PREFECT_SERVER_ANALYTICS_ENABLED="false", DO_NOT_TRACK="true"
    )
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / command[0]), *command[1:]],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        wait_for(lambda: httpx.get(f"{url}/health").is_success, 90, "the server's start")
        yield url
    finally:
        end_group(server)


def flow_runs(api: str, flow: str) -> list[dict[str, Any]]:
    """Return the runs of a flow as the API lists them."""
    answer = httpx.post(f"{api}/flow_runs/filter", json={"flows": {"name": {"any_": [flow]}}})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def test_a_retrain_is_listed_with_its_stages(api: str, trained: Trained) -> None:
    done = trained.project.retrain(PREFECT_API_URL=api)
    assert done.returncode == 0, done.stderr
    (run,) = flow_runs(api, "retrain")
    assert run["state_type"] == "COMPLETED"
    query = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    tasks = httpx.post(f"{api}/task_runs/filter", json=query).json()
    states = {task["name"]: task["state_name"] for task in tasks}
    assert states["train_head@resnet18"] == states["export"] == "Cached"


def test_a_cron_schedule_fires(api: str, tmp_path: Path) -> None:
    program = tmp_path / "tick.py"
    program.write_text(SERVED_FLOW)
    environment = Project(tmp_path).environment(PREFECT_HOME=str(tmp_path), PREFECT_API_URL=api)
    served = subprocess.Popen(
        [sys.executable, str(program)], env=environment, start_new_session=True
    )
    try:
        completed = wait_for(
            lambda: [r for r in flow_runs(api, "tick") if r["state_type"] == "COMPLETED"],
            150,
            "a scheduled run",
        )
        assert completed[0]["auto_scheduled"]
    finally:
        end_group(served)
