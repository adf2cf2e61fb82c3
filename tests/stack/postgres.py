"""A real PostgreSQL server: Debian's package, run by an unprivileged user."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.loopback import free_port
from tests.stack import processes

PACKAGE = "postgresql"
FOLDERS = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
DATABASES = ("mlflow", "prefect")


@dataclass(frozen=True)
class Postgres:
    """A running server.

    Attributes:
        port: on loopback.
        password: of the user `refit`; programs get it by `environment` alone.
    """

    port: int
    password: str

    def environment(self) -> dict[str, str]:
        """Return what tells any of PostgreSQL's clients where to go and what to say there."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "refit",
            "PGPASSWORD": self.password,
        }

    def run(self, program: str, *arguments: str, **options: object) -> bytes:
        """Run one of PostgreSQL's programs against this server and return its output."""
        done = subprocess.run(
            [processes.needed(program, PACKAGE, *FOLDERS), *arguments],
            env={**os.environ, **self.environment()},
            capture_output=True,
            check=False,
            **options,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stderr.decode()
        output: bytes = done.stdout
        return output


@contextmanager
def running(log: Path) -> Iterator[Postgres]:
    """Run a new, empty server; every connection needs the password."""
    initdb = processes.needed("initdb", PACKAGE, *FOLDERS)
    server = Postgres(free_port(), secrets.token_hex(16))
    with processes.own_folder() as folder:
        given = folder / "password"
        given.write_text(server.password)
        given.chmod(0o644)
        subprocess.run(
            [
                *(initdb, "--pgdata", str(folder / "data"), "--username", "refit", "--no-sync"),
                *("--pwfile", str(given), "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--locale", "C"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **processes.unprivileged(),
        )
        given.unlink()
        command = [
            *(processes.needed("postgres", PACKAGE, *FOLDERS), "-D", str(folder / "data")),
            *("-h", "127.0.0.1", "-p", str(server.port), "-k", str(folder)),
            "-F",  # no fsync: its state ends with the test
        ]
        with processes.running(
            command,
            lambda: processes.listens(server.port),
            log,
            {"PATH": os.environ["PATH"], "LC_ALL": "C"},
            cwd=folder,
            **processes.unprivileged(),
        ):
            for database in DATABASES:
                server.run("createdb", database)
            yield server
