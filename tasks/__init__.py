"""One program a stage: `python -m tasks.<stage> [candidate]`; typed params in, files out."""

import importlib.util
import os
import sys

if importlib.util.find_spec("pydantic") is None:
    sys.exit(
        f"{sys.executable} has none of this project's packages: "
        "run `make setup`, then `. .venv/bin/activate`."
    )

# No library that the project ships reports home, whoever starts the stage.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}.items():
    os.environ.setdefault(_name, _value)
