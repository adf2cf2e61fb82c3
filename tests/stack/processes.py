"""Real servers as child processes: on loopback, on free ports, ended with the test."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.child import end_group

NOBODY = "nobody"  # who runs what refuses to be run by root


def needed(program: str, package: str, *folders: str) -> str:
    """Return a program's path, or fail in one line that names the package to install."""
    path = os.pathsep.join([*folders, os.environ["PATH"], "/usr/sbin"])
    if found := shutil.which(program, path=path):
        return found
    pytest.fail(f"no {program} here: `.ci/install-servers` installs {package}", pytrace=False)


def unprivileged() -> dict[str, Any]:
    """Return what makes `Popen` drop root's rights; nothing where there are none to drop."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": pwd.getpwnam(NOBODY).pw_gid, "extra_groups": []}


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yield a folder of the unprivileged user, who may not pass through root's `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="refit-stack-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, NOBODY)
        yield Path(name)


@contextmanager
def running(
    command: Sequence[str],
    ready: Callable[[], Any],
    log: Path,
    environment: Mapping[str, str],
    seconds: float = 120,
    **options: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own until the block ends, however it ends.

    Args:
        command: program and arguments.
        ready: is asked until it answers with something true; an OSError is a no.
        log: gets all that the server says.
        environment: all of it.
        seconds: until it has to be ready.
        options: for `Popen`.
    """
    with log.open("ab") as out:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=dict(environment),
            start_new_session=True,
            **options,
        )
    try:
        wait_for(ready, seconds, f"{Path(command[0]).name}'s start", server, log)
        yield server
    finally:
        end_group(server)


def wait_for(
    asked: Callable[[], Any],
    seconds: float,
    what: str,
    server: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> Any:
    """Ask until the answer is true; fail after `seconds`, or when `server` ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (server is None or server.poll() is None):
        try:
            if answer := asked():
                return answer
        except OSError:  # nobody listens yet; requests' errors are of this kind too
            pass
        time.sleep(0.1)
    said = f":\n{log.read_text(errors='replace')[-3000:]}" if log and log.exists() else ""
    raise AssertionError(f"{what} did not happen within {seconds:g} s{said}")


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port of loopback."""
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
