"""The servers of docker/compose.yaml without containers: the same programs and settings."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.loopback import free_port
from tests.pipeline.project import Project
from tests.stack import postgres, processes, s3
from tests.stack.postgres import Postgres

ARTIFACTS, DVC = "refit-artifacts", "refit-dvc"  # buckets
PROGRAMS = Path(sys.executable).parent
# These are docker/compose.yaml's, as they stand there; test_compose.py holds the two together.
MLFLOW = [
    *("mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=2"),
    *("--app-name=basic-auth", "--backend-store-uri=postgresql:///mlflow"),
    *("--serve-artifacts", "--artifacts-destination=s3://refit-artifacts/mlflow"),
    "--allowed-hosts=mlflow:5000,localhost:5000,127.0.0.1:5000",
]
PREFECT = ["prefect", "server", "start", "--host=0.0.0.0", "--port=4200"]
# What may be written down; the passwords come by the environment alone.
AUTH = """[mlflow]
default_permission = READ
database_uri = postgresql:///mlflow
"""
TELEMETRY = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def native(command: list[str], port: str) -> list[str]:
    """Return a service's command as it runs without a container: on loopback, on a free port."""
    program, *arguments = command
    here = {"0.0.0.0": "127.0.0.1", "5000": port, "4200": port}  # noqa: S104 - not listened on
    for name, found in here.items():
        arguments = [argument.replace(name, found) for argument in arguments]
    return [str(PROGRAMS / program), *arguments]


@dataclass(frozen=True)
class Service:
    """A running server.

    Attributes:
        url: on loopback.
        secrets: what only it and its clients may know.
        client: what a client needs in its environment.
    """

    url: str
    secrets: tuple[str, ...]
    client: Mapping[str, str]


def mlflow_environment(
    database: Postgres, store: s3.S3, auth: Path, password: str, key: str
) -> dict[str, str]:
    """Return what MLflow's server reads."""
    return {
        **TELEMETRY,
        **database.environment(),
        **store.environment(),
        "MLFLOW_S3_ENDPOINT_URL": store.url,
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_AUTH_ADMIN_USERNAME": "refit",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
        # Six processes for jobs that Refit has none of.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


@contextmanager
def mlflow(
    folder: Path, database: Postgres, store: s3.S3, before: Service | None = None
) -> Iterator[Service]:
    """Run MLflow's server with basic auth, PostgreSQL and an artifact proxy before `store`.

    Args:
        folder: gets its log.
        database: keeps runs, registry and users.
        store: keeps the artifacts; clients need no access to it.
        before: the server that is started again.
    """
    url = before.url if before else f"http://127.0.0.1:{free_port()}"
    password, key = before.secrets if before else (secrets.token_hex(16), secrets.token_hex(16))
    auth = folder / "mlflow_auth.ini"
    auth.write_text(AUTH)
    port = url.rpartition(":")[2]
    environment = {
        **Project(folder).environment(),
        **mlflow_environment(database, store, auth, password, key),
    }
    client = {
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_TRACKING_USERNAME": "refit",
        "MLFLOW_TRACKING_PASSWORD": password,
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    }

    def ready() -> bool:
        return requests.get(f"{url}/health", timeout=2).ok

    command = native(MLFLOW, port)
    with processes.running(command, ready, folder / "mlflow.log", environment, cwd=folder):
        yield Service(url, (password, key), client)


def prefect_environment(folder: Path, database: Postgres, password: str) -> dict[str, str]:
    """Return what Prefect's server reads."""
    return {
        **TELEMETRY,
        "PREFECT_HOME": str(folder / "prefect"),
        **database.environment(),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg:///prefect",
        "PREFECT_SERVER_API_AUTH_STRING": f"refit:{password}",
    }


@contextmanager
def prefect(folder: Path, database: Postgres) -> Iterator[Service]:
    """Run Prefect's server with PostgreSQL and basic auth."""
    port, password = str(free_port()), secrets.token_hex(16)
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **Project(folder).environment(),
        **prefect_environment(folder, database, password),
        "PREFECT_SERVER_UI_API_URL": url,
    }
    client = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": f"refit:{password}"}

    def ready() -> bool:
        return requests.get(f"{url}/health", timeout=2).ok

    command = native(PREFECT, port)
    with processes.running(command, ready, folder / "prefect.log", environment, cwd=folder):
        yield Service(url, (password,), client)


class Stack:
    """All servers of a deployment.

    Attributes:
        folder: holds a log of each.
        database: of both.
        store: of artifacts and of DVC.
        mlflow: runs and registry.
        prefect: flows.
    """

    def __init__(self, folder: Path, running: ExitStack) -> None:
        """Start all of them; `running` ends them."""
        self.folder = folder
        self.database = running.enter_context(postgres.running(folder / "postgres.log"))
        self.store = running.enter_context(s3.running(folder / "s3.log", ARTIFACTS, DVC))
        self._tracker = running.enter_context(ExitStack())
        # The two start together: each takes ten seconds and more.
        with ThreadPoolExecutor() as pool:
            tracker = pool.submit(
                self._tracker.enter_context, mlflow(folder, self.database, self.store)
            )
            flows = pool.submit(running.enter_context, prefect(folder, self.database))
        self.mlflow, self.prefect = tracker.result(), flows.result()

    def mlflow_down(self) -> None:
        """Stop MLflow's server."""
        self._tracker.close()

    def mlflow_up(self) -> None:
        """Start it again, with the same port, passwords and state."""
        again = mlflow(self.folder, self.database, self.store, self.mlflow)
        self._tracker.enter_context(again)

    def environment(self) -> dict[str, str]:
        """Return what a worker needs in its environment: addresses, names and secrets."""
        store = {**self.store.environment(), "AWS_ENDPOINT_URL": self.store.url}
        return {**self.mlflow.client, **self.prefect.client, **store}

    def secrets(self) -> list[str]:
        """Return everything that no log and no file may hold."""
        return [
            *(self.database.password, self.store.secret),
            *(*self.mlflow.secrets, *self.prefect.secrets),
        ]


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """Run all servers, new and empty."""
    with ExitStack() as running:
        yield Stack(folder, running)
