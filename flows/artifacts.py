"""What a run shows in Prefect's pages, beside its tasks and their logs.

All of it is for people to look at, so none of it may end a retrain: a server that is away costs a
warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows import report
from flows.graph import Graph
from flows.stages import Outcome
from tasks import files

MLFLOW_PAGE = "http://127.0.0.1:5000"  # where `make ui` shows the embedded database


class _BestEffort(AbstractContextManager[None]):
    """Make a warning of whatever goes wrong in the block."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        first = (str(error).splitlines() or [""])[0]
        get_run_logger().warning("not shown in Prefect: %s: %s", type(error).__name__, first)
        return True


def reason(graph: Graph) -> str:
    """Return in few words why this run has something to do, or that it has not."""
    if graph.new_data:
        return "new data"
    stale = [stage for stage in graph.needs if stage in graph.stale]
    if not stale:
        return "nothing changed"
    more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
    return f"stale {stale[0]}{more}"


def name_run(why: str) -> None:
    """Name the run after the accepted data's version and the reason."""
    version = files.data_version() if files.MANIFEST.exists() else "first"
    with _BestEffort(), get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.get_id()), name=f"{version} {why}")


class Progress:
    """A bar over the stages of one run; it appears with the first stage that really runs."""

    def __init__(self, stages: Iterable[str]) -> None:
        self._order = list(stages)
        self._id: UUID | None = None

    def __call__(self, stage: str, ended: bool) -> None:
        """Move the bar: a stage starts, or it ended."""
        share = 100 * (self._order.index(stage) + ended) / len(self._order)
        text = f"{stage} {'ended' if ended else 'runs'}"
        with _BestEffort():
            if self._id is None:
                made: Any = create_progress_artifact(share, key="progress", description=text)
                self._id = made
            else:
                update_progress_artifact(self._id, share, description=text)


def candidates(summary: dict[str, Any], outcome: Outcome) -> None:
    """Show the candidates side by side."""
    columns, rows = report.rows(summary, outcome)
    with _BestEffort():
        create_table_artifact(
            [dict(zip(columns, row, strict=True)) for row in rows],
            key="candidates",
            description=f"* is the best by validation; data version {summary['data_version']}",
        )


def verdict_markdown(summary: dict[str, Any]) -> str:
    """Return the verdict, its reasons, and where everything is."""
    server = summary["tracking_uri"]
    page = server if server.startswith("http") else MLFLOW_PAGE
    run = f"{page.rstrip('/')}/#/runs/{summary['run_id']}"
    hint = "" if page == server else " (start it with `make ui`)"
    lines = [
        f"# {summary['verdict']}: {summary['model']} version {summary['registered_version']}",
        "",
        *(f"- {reason}" for reason in summary["decision"]["reasons"]),
        "",
        "| | |",
        "|---|---|",
        f"| champion | version {summary['champion']} |",
        f"| best candidate | {summary['best']} |",
        f"| data version | {summary['data_version']} |",
        f"| git commit | {summary['git_commit']} |",
        f"| MLflow run | [{summary['run_id']}]({run}){hint} |",
        f"| report | `{files.REPORT.absolute()}`, and an artifact of the MLflow run |",
        f"| model | `{(files.BEST / 'model.onnx').absolute()}` |",
    ]
    return "\n".join(lines)


def verdict(summary: dict[str, Any]) -> None:
    """Show the verdict with its links."""
    with _BestEffort():
        create_markdown_artifact(
            verdict_markdown(summary),
            key="verdict",
            description=f"{summary['verdict']}: {summary['reason']}",
        )


def announce(summary: dict[str, Any]) -> None:
    """Tell Prefect's automations what became of a challenger (`flows/automations.py`)."""
    promoted = summary["verdict"] == "PROMOTE"
    with _BestEffort():
        emit_event(
            event="refit.promoted" if promoted else "refit.refused",
            resource={
                "prefect.resource.id": f"refit.model.{summary['model']}",
                "prefect.resource.name": summary["model"],
            },
            payload={
                "text": f"{summary['verdict']}: {summary['model']} version "
                f"{summary['registered_version']}: {summary['reason']}",
            },
        )
