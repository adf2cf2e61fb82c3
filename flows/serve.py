"""Both deployments in one process, without pool and worker: `python -m flows.serve`.

It runs them in this folder, and on the server that PREFECT_API_URL names. Ctrl-C or SIGTERM ends
it and what it runs.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import construct_schedule
from prefect.deployments.runner import EntrypointType, RunnerDeployment

from flows import deployments
from flows.retrain import retrain


def schedule(entry: dict[str, Any]) -> Any:
    """Return a schedule of prefect.yaml as Prefect computes it."""
    seconds = entry.get("interval")
    return construct_schedule(
        cron=entry.get("cron"),
        interval=timedelta(seconds=seconds) if seconds else None,
        timezone=entry.get("timezone"),
    )


def deployment(entry: dict[str, Any]) -> RunnerDeployment:
    """Return a deployment of prefect.yaml for `serve`."""
    made = retrain.to_deployment(
        name=entry["name"],
        description=entry["description"],
        tags=entry["tags"],
        parameters=entry["parameters"],
        schedules=[schedule(found) for found in entry["schedules"]],
        concurrency_limit=ConcurrencyLimitConfig(**entry["concurrency_limit"]),
        # By a file's path, Prefect would look for the code where a worker's deployment of the same
        # name said that it is: nowhere.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return cast(RunnerDeployment, made)


def main() -> None:
    """Serve until told to end."""
    deployments.require_server("serve")
    serve(*map(deployment, deployments.here()["deployments"]))


if __name__ == "__main__":
    main()
