"""The retrain flow: data version, stages, registration, and what a person reads at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows import graph, loopback, report
from flows.stages import Outcome, run_child, run_stages, unchanged
from tasks import files, params, results
from tasks.vision.errors import RefitError


def registered(names: Iterable[str]) -> bool:
    """Whether MLflow was told of the models as they lie in `data/` now."""
    if not files.SUMMARY.exists():
        return False
    known = files.read_json(files.SUMMARY)
    here = os.environ.get("MLFLOW_TRACKING_URI", known.get("tracking_uri"))
    return bool(
        known.get("tracking_uri") == here
        and known.get("retrain") == results.retrain_key(results.validated(names))
    )


def register_best(names: Iterable[str], outcome: Outcome) -> State:
    """Log the candidates, register the best and compare it with the champion."""
    if registered(names):
        return unchanged("register", return_state=True)
    stages = {"seconds": outcome.seconds, "failed": outcome.failed_candidates()}
    command = [sys.executable, "-m", "tasks.register", "--stages", json.dumps(stages)]
    return run_child("register", command, return_state=True)


def missing_data() -> str | None:
    """Return what to do when there are no pictures, or None."""
    if files.RAW.is_dir():
        return None
    if Path(graph.DATA).exists():
        return f"{files.RAW} is not here, its version is: `dvc pull` fetches it"
    return f"{files.RAW} is not here: put pictures into {files.RAW}/<class>/, or try `make demo`"


@flow(name="retrain")
def retrain() -> State:
    """Bring everything up to date with what is in data/raw; compute only what is new."""
    logger = get_run_logger()
    try:
        candidates = params.load().candidates
        if absent := missing_data():
            return Failed(message=absent)
        found = graph.ask()
    except (RefitError, graph.GraphError) as error:
        return Failed(message=str(error))
    if found.new_data:
        versioned = run_child("version_data", ["dvc", "add", "data/raw"], return_state=True)
        if not versioned.is_completed():
            return versioned
    outcome = run_stages(found)
    for stage, reason in outcome.skipped.items():
        logger.warning("%s was not run: %s", stage, reason)
    if "export" in (outcome.failed | outcome.skipped):
        failures = [f"{stage} failed: {reason}" for stage, reason in outcome.failed.items()]
        return Failed(message="\n".join(failures))
    state = register_best(candidates, outcome)
    if not state.is_completed():
        return Failed(message=f"register: {state.message}")
    report.show(files.read_json(files.SUMMARY), outcome)
    return Completed(message="nothing had changed" if not outcome.seconds else "compared")


if __name__ == "__main__":
    loopback.ensure()
    final = retrain(return_state=True)
    if not final.is_completed():
        sys.exit(f"retrain: {final.message}")
