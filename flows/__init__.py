"""When to retrain: Prefect flows that run DVC stages and then act on the outside world."""

import os
from pathlib import Path

# Prefect reads its settings when it is imported, so they stand here, before any of its imports.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # On a busy machine the embedded server takes longer to start than Prefect's 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Three that did not come, and flows/automations.py calls the run dead.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # Runs and schedules of this project stay in its folder.
    "PREFECT_HOME": str(Path.cwd() / ".prefect"),
}.items():
    os.environ.setdefault(_name, _value)
