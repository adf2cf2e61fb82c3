"""Eight processes meet a new SQLite file at the same moment."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow

from tests.pipeline.project import ROOT, Project

# They fork, so that nothing but the file is left to do when they start together.
PROGRAM = """
import os, sys, traceback
from tasks import tracking
ready, go = os.pipe()
children = []
for number in range(8):
    child = os.fork()
    if child == 0:
        try:
            os.close(go)
            os.read(ready, 1)
            with tracking.session("refit") as (client, experiment):
                with tracking.run(client, experiment, f"run-{number}", {}) as run:
                    client.log_param(run, "number", number)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    children.append(child)
os.close(go)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(f"{codes}" if any(codes) else 0)
"""


def test_eight_processes_start_the_embedded_store(tmp_path: Path) -> None:
    Project(tmp_path).ok(sys.executable, "-c", PROGRAM, PYTHONPATH=str(ROOT))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'refit'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.params["number"] for run in runs) == [str(n) for n in range(8)]
    assert {run.info.status for run in runs} == {"FINISHED"}
