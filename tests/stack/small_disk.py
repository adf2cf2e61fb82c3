"""A disk that is full when a test wants it to be: a tmpfs in a mount namespace of its own.

It needs no root where the system lets its users make user namespaces (`unshare --user`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.child import end_group
from tests.pipeline.project import Project
from tests.stack.processes import needed

HOLD = 'mount -t tmpfs -o size="$0" tmpfs "$1" && echo mounted && exec sleep infinity'


@dataclass(frozen=True)
class SmallDisk(Project):
    """A project on a disk of its own; `root` is where its programs see it.

    Attributes:
        holder: the process whose namespace has the disk mounted.
    """

    holder: int

    def inside(self, *command: str) -> tuple[str, ...]:
        """Return a command as one that sees the disk."""
        return (
            "nsenter",
            "--preserve-credentials",
            f"--target={self.holder}",
            "--user",
            "--mount",
            f"--wdns={self.root}",
            *command,
        )

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program on the disk."""
        return subprocess.run(
            self.inside(*command),
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def path(self, name: str) -> Path:
        """Return a path as this process, which does not see the disk, gets there."""
        return Path(f"/proc/{self.holder}/root{self.root}", name)

    def fill(self, left: int) -> None:
        """Fill the disk up to some bytes."""
        self.empty()
        free = os.statvfs(self.path("."))
        with self.path("ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, free.f_bavail * free.f_frsize - left)

    def empty(self) -> None:
        """Make room again."""
        self.path("ballast").unlink(missing_ok=True)

    def free(self) -> int:
        """Return how many bytes are left."""
        found = os.statvfs(self.path("."))
        return found.f_bavail * found.f_frsize


@contextmanager
def holding(project: Project, mount: Path, size: str) -> Iterator[SmallDisk]:
    """Copy a project to a small disk at `mount`; the disk is gone when the block ends."""
    mount.mkdir()
    unshare = needed("unshare", "util-linux")
    with subprocess.Popen(
        [unshare, "--user", "--map-root-user", "--mount", "sh", "-c", HOLD, size, str(mount)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as holder:
        try:
            assert holder.stdout is not None
            if (said := holder.stdout.readline()) != b"mounted\n":
                pytest.fail(f"no disk can be mounted here: {said.decode()}", pytrace=False)
            disk = SmallDisk(mount, holder.pid)
            subprocess.run(disk.inside("cp", "-a", f"{project.root}/.", "."), check=True)
            yield disk
        finally:
            end_group(holder)
