"""A process worker of a Prefect server, and flow runs on it, as a deployment makes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.pipeline.project import Project
from tests.stack import processes
from tests.stack.servers import Service

POOL = "refit"
LINES = 200


class Deployment:
    """The retrain flow of one project, deployed to a work pool.

    Args:
        server: Prefect's.
        project: where the flow runs.
    """

    def __init__(self, server: Service, project: Project) -> None:
        self._server = server
        self._ask("work_pools/", name=POOL, type="process")
        directory = {"directory": str(project.root)}
        made = self._ask(
            "deployments/",
            name=project.root.name,
            flow_id=self._ask("flows/", name="retrain")["id"],
            entrypoint="flows/retrain.py:retrain",
            work_pool_name=POOL,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": directory}],
        )
        self._id = made["id"]

    def _ask(self, path: str, **content: Any) -> Any:
        auth = ("refit", self._server.secrets[0])
        call = requests.post if content else requests.get
        answer = call(f"{self._server.url}/{path}", json=content or None, auth=auth, timeout=20)
        assert answer.ok, answer.text
        return answer.json()

    def trigger(self) -> str:
        """Ask for a run; return its id."""
        found = self._ask(f"deployments/{self._id}/create_flow_run", state={"type": "SCHEDULED"})
        return str(found["id"])

    def ended(self, run: str, seconds: float = 500) -> dict[str, Any]:
        """Wait for a run's end and return its state."""

        def state() -> dict[str, Any] | None:
            found: dict[str, Any] = self._ask(f"flow_runs/{run}")["state"]
            return found if found["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        final: dict[str, Any] = processes.wait_for(state, seconds, f"the end of flow run {run}")
        return final

    def run(self) -> dict[str, Any]:
        """Run the flow and return its final state."""
        return self.ended(self.trigger())

    def logged(self, run: str) -> str:
        """Return what the server has of a run's log, the oldest line first."""
        return "\n".join(line["message"] for line in self._lines(run))

    def _lines(self, run: str) -> list[dict[str, Any]]:
        wanted = {"flow_run_id": {"any_": [run]}}
        found: list[dict[str, Any]] = []
        while True:  # the server gives so many lines at a time
            page = self._ask(
                "logs/filter", logs=wanted, sort="TIMESTAMP_ASC", offset=len(found), limit=LINES
            )
            found += page
            if len(page) < LINES:
                return found

    def told(self, run: str) -> str:
        """Return the whole log of a run that has ended; its last lines come after its state."""

        def is_whole() -> bool:
            own = [line["message"] for line in self._lines(run) if not line["task_run_id"]]
            return any(message.startswith("Finished in state") for message in own)

        processes.wait_for(is_whole, 30, f"the last line of flow run {run}")
        return self.logged(run)


@contextmanager
def worker(server: Service, log: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a process worker until the block ends."""
    command = [str(Path(sys.executable).with_name("prefect")), "worker", "start", "--pool", POOL]

    def ready() -> bool:
        return "Worker" in log.read_text() and "started!" in log.read_text()

    environment = {**environment, "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with processes.running(command, ready, log, environment, cwd=log.parent):
        yield
