"""Processes that `make up` leaves running and `make down` ends: exactly those, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

FOLDER = Path(".prefect/up")
PATIENCE = 60.0  # seconds for a service, and the retrain that it runs, to end by itself


def log_file(name: str) -> Path:
    """Return the file with everything that a service says."""
    return FOLDER / f"{name}.log"


def running(name: str) -> psutil.Process | None:
    """Return a service's process, or None if it is not running.

    A process number is used again after a while; together with the time it started it is not.
    """
    try:
        known = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        process = psutil.Process(known["pid"])
        alive = process.create_time() == known["started"] and process.status() != "zombie"
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def start(name: str, command: Sequence[str]) -> bool:
    """Start a service in the background, unless it runs; return whether it was started."""
    if running(name):
        return False
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).with_name(command[0]))
    with log_file(name).open("ab") as log:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"},
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    record = FOLDER / f"{name}.json"
    record.write_text(json.dumps({"pid": process.pid, "started": started}), encoding="utf-8")
    return True


def stop(name: str) -> bool:
    """End a service and all that it started; return whether there was one."""
    process = running(name)
    if process:
        family = [process, *process.children(recursive=True)]
        process.terminate()
        for member in psutil.wait_procs(family, PATIENCE)[1]:
            member.kill()
        psutil.wait_procs(family, 5)
    (FOLDER / f"{name}.json").unlink(missing_ok=True)
    return process is not None
