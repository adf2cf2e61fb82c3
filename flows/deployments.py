"""The deployments of prefect.yaml, as they are and for this folder; `python -m flows.deployments`.

The command puts the work pool, the deployments and the automations on the server that
PREFECT_API_URL names; safe to repeat.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

FILE = Path("prefect.yaml")
HERE = Path(".prefect/here.yaml")
SET_FOLDER = "prefect.deployments.steps.set_working_directory"


def shipped() -> dict[str, Any]:
    """Return prefect.yaml."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def here() -> dict[str, Any]:
    """Return prefect.yaml for runs in this folder: nothing is cloned, pulled or pushed."""
    found = shipped()
    for deployment in found["deployments"]:
        deployment["pull"] = [{SET_FOLDER: {"directory": str(Path.cwd())}}]
        deployment["parameters"] = {**deployment["parameters"], "pull": False, "push": False}
    return found


def require_server(program: str) -> None:
    """Refuse to go on without a server.

    Raises:
        SystemExit: PREFECT_API_URL is not set.
    """
    if "PREFECT_API_URL" not in os.environ:
        sys.exit(
            f"{program}: PREFECT_API_URL is not set: name a server that runs, for example "
            "http://127.0.0.1:4200/api; `make up` starts one here"
        )


def make_pool(name: str) -> None:
    """Make a work pool whose workers start processes, unless there is one of that name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", base_job_template=template)
            )
        except ObjectAlreadyExists:
            return


def main() -> None:
    """Register everything; the exit code is `prefect deploy`'s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", action="store_true", help="runs happen in this folder")
    require_server("deployments")
    file, found = FILE, shipped()
    if parser.parse_args().here:
        file, found = HERE, here()
        HERE.parent.mkdir(exist_ok=True)
        HERE.write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    for name in {deployment["work_pool"]["name"] for deployment in found["deployments"]}:
        make_pool(name)
    from flows import automations

    automations.make()
    prefect = str(Path(sys.executable).with_name("prefect"))
    command = [prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
