"""The retrain flow: data version, stages, registration, and what a person reads at the end."""

from __future__ import annotations

from flows import temporary_server

if __name__ == "__main__":
    # Both take seconds: the server, and the imports below.
    server = temporary_server.start()

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from flows import artifacts, engine_log, graph, orphan, report, workspace
from flows.stages import CACHED, Outcome, run_child, run_stages, transfer, unchanged
from tasks import files, params, results
from tasks.vision.errors import RefitError


def registered(names: Iterable[str], promote: bool) -> bool:
    """Whether MLflow was told of the models as they lie in `data/` now."""
    if not files.SUMMARY.exists():
        return False
    known = files.read_json(files.SUMMARY)
    if promote and known.get("withheld"):
        return False
    here = os.environ.get("MLFLOW_TRACKING_URI", known.get("tracking_uri"))
    return bool(
        known.get("tracking_uri") == here
        and known.get("retrain") == results.retrain_key(results.validated(names))
    )


def register_best(names: Iterable[str], outcome: Outcome, promote: bool) -> State:
    """Log the candidates, register the best and compare it with the champion."""
    if registered(names, promote):
        return unchanged("register", return_state=True)
    stages = {"seconds": outcome.seconds, "failed": outcome.failed_candidates()}
    command = [sys.executable, "-m", "tasks.register", "--stages", json.dumps(stages)]
    command += [] if promote else ["--no-promote"]
    return run_child("register", command, return_state=True)


def missing_data() -> str | None:
    """Return what to do when there are no pictures, or None."""
    if files.RAW.is_dir():
        return None
    if Path(graph.DATA).exists():
        return f"{files.RAW} is not here, its version is: `dvc pull` fetches it"
    return f"{files.RAW} is not here: put pictures into {files.RAW}/<class>/, or try `make demo`"


IfBusy = Literal["refuse", "wait", "skip"]


@flow(name="retrain")
def retrain(
    candidates: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    pull: bool = False,
    push: bool = False,
    promote: bool = True,
    if_busy: IfBusy = "refuse",
) -> State:
    """Bring everything up to date with what is in data/raw; compute only what is new.

    Args:
        candidates: those of params.yaml to compare; all, if not given.
        overrides: figures for this run alone, by dotted name: `{"fine_tune.epochs": 5}`.
        pull: fetch data and results from the DVC remote first.
        push: send them there at the end.
        promote: whether a challenger that passes the gate becomes champion; the next run with
            true makes up for it.
        if_busy: while another retrain holds this workspace: fail, wait for it, or end Cancelled.
    """
    orphan.end_with_parent()
    engine_log.say_failures_once()
    logger = get_run_logger()
    try:
        with (
            workspace.claimed(wait=if_busy == "wait", told=logger.warning),
            workspace.laid_over(candidates or [], overrides or {}),
        ):
            return up_to_date(pull, push, promote)
    except workspace.BusyError as error:
        return (Cancelled if if_busy == "skip" else Failed)(message=str(error))
    except (RefitError, graph.GraphError) as error:
        return Failed(message=str(error))


def completed(step: str, state: State) -> State:
    """Return the state of a step that has to complete.

    Raises:
        RefitError: it did not; the message is its own.
    """
    if not state.is_completed():
        raise RefitError(f"{step}: {state.message}")
    return state


def up_to_date(pull: bool, push: bool, promote: bool) -> State:
    """Do what `retrain` says, in a workspace that is this run's alone.

    Raises:
        RefitError: params.yaml cannot be used, or a step failed that all need.
        graph.GraphError: DVC cannot read the project.
    """
    names = params.load().candidates
    if pull:
        fetch()
    if absent := missing_data():
        raise RefitError(absent)
    found = graph.ask()
    artifacts.name_run(why := artifacts.reason(found))
    if found.new_data:
        add = ["dvc", "add", "data/raw"]
        completed("version_data", run_child("version_data", add, return_state=True))
    outcome = run_stages(found, artifacts.Progress(found.needs))
    if "validate" in outcome.seconds:
        artifacts.name_run(why)  # the accepted data's version is known only now
    raise_if_nothing_to_compare(outcome)
    tell(completed("register", register_best(names, outcome, promote)), outcome)
    if push:
        completed("push", transfer("push", ["dvc", "push"], return_state=True))
    return Completed(message="nothing had changed" if not outcome.seconds else "compared")


def fetch() -> None:
    """Bring the data and the results of earlier runs from the DVC remote.

    A result that nobody has pushed is computed anew. Pictures are another thing: with some of them
    missing, the rest would pass for a new version of the data.

    Raises:
        RefitError: the data could not be brought whole.
    """
    if Path(graph.DATA).exists():
        data = ["dvc", "pull", graph.DATA]
        completed("pull data", transfer("pull data", data, return_state=True))
    results_too = ["dvc", "pull", "--allow-missing"]
    completed("pull results", transfer("pull results", results_too, return_state=True))


def raise_if_nothing_to_compare(outcome: Outcome) -> None:
    """Log which stages were not run.

    Raises:
        RefitError: the export is one of them, or failed; the message holds every failure.
    """
    for stage, reason in outcome.skipped.items():
        get_run_logger().warning("%s was not run: %s", stage, reason)
    if "export" in (outcome.failed | outcome.skipped):
        failures = [f"{stage} failed: {reason}" for stage, reason in outcome.failed.items()]
        raise RefitError("\n".join(failures))


def tell(registered: State, outcome: Outcome) -> None:
    """Show what came out: in the report, on the terminal, in Prefect and to who listens there."""
    summary = files.read_json(files.SUMMARY)
    if new := registered.name != CACHED:
        artifacts.announce(summary)
    if new and summary["verdict"] == "PROMOTE" and params.load().export.variants:
        made = run_child("variants", [sys.executable, "-m", "tasks.variants"], return_state=True)
        if not made.is_completed():
            get_run_logger().warning("no smaller variants: %s", made.message)
        files.REPORT.unlink(missing_ok=True)  # the one that `register` wrote knows none of them
    if not files.REPORT.exists():
        page = run_child("report", [sys.executable, "-m", "tasks.report"], return_state=True)
        if not page.is_completed():
            get_run_logger().warning("the report was not written: %s", page.message)
    report.show(summary, outcome)
    artifacts.candidates(summary, outcome)
    artifacts.verdict(summary)


if __name__ == "__main__":
    if server:
        server.wait()
    final = retrain(return_state=True)
    if not final.is_completed():
        sys.exit(f"retrain: {final.message}")
