"""What the tests start natively is what docker/compose.yaml starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.project import ROOT
from tests.stack import servers
from tests.stack.postgres import Postgres
from tests.stack.s3 import S3

COMPOSE = ROOT / "docker/compose.yaml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


def reads(compose: dict[str, Any], service: str) -> dict[str, str]:
    """Return a service's environment; YAML has merged the shared blocks into it."""
    found: dict[str, str] = compose["services"][service]["environment"]
    return found


def test_mlflow(compose: dict[str, Any]) -> None:
    assert compose["services"]["mlflow"]["command"] == servers.MLFLOW
    made = servers.mlflow_environment(Postgres(1, ""), S3("", "", ""), Path("auth"), "", "")
    assert reads(compose, "mlflow").keys() == made.keys() - {"PGPORT"}
    assert compose["configs"]["mlflow_auth"]["content"] == servers.AUTH


def test_prefect(compose: dict[str, Any]) -> None:
    assert compose["services"]["prefect"]["command"] == servers.PREFECT
    made = servers.prefect_environment(Path("home"), Postgres(1, ""), "")
    here = {"PGPORT", "PREFECT_HOME"}
    assert reads(compose, "prefect").keys() - {"PREFECT_SERVER_UI_API_URL"} == made.keys() - here
    name = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    assert reads(compose, "prefect")[name] == made[name]


def test_worker(compose: dict[str, Any]) -> None:
    needed = {
        *S3("", "", "").environment(),
        "AWS_ENDPOINT_URL",
        *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD",
        *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"),
    }
    checkout = {"REFIT_REPOSITORY", "REFIT_WORKSPACE"}
    assert reads(compose, "worker").keys() - servers.TELEMETRY.keys() - checkout == needed
