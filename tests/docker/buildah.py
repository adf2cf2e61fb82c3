"""Images and containers without an engine: Debian's buildah, in a store of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.child import end_group

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker/Dockerfile"
BUILDAH = shutil.which("buildah") or "buildah"
SUITE = "bookworm"  # of the Dockerfile's base
# What names a package index or the way to it; a build gets it as a secret.
INDEX = re.compile(r"(UV|PIP)_(\w*INDEX\w*|TRUSTED_HOST|INSECURE_HOST)|(HTTPS?|NO)_PROXY", re.I)


def argument(name: str) -> str:
    """Return the default of one of the Dockerfile's build arguments."""
    found = re.search(rf"^ARG {name}=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found, f"docker/Dockerfile has no ARG {name}"
    return found[1]


@dataclass(frozen=True)
class Store:
    """Images and containers in one folder, which can be removed as a whole.

    Attributes:
        folder: holds all of it, temporary files and logs too.
    """

    folder: Path

    @property
    def storage(self) -> Path:
        """Where images and containers are kept."""
        return self.folder / "storage"

    def environment(self) -> dict[str, str]:
        """Return the environment of buildah's commands."""
        config, temporary = self.folder / "storage.conf", self.folder / "tmp"
        if not config.exists():
            temporary.mkdir()
            config.write_text(
                f'[storage]\ndriver = "overlay"\ngraphroot = "{self.storage}"\n'
                f'runroot = "{self.folder}/run"\n'
            )
        return {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(config),
            "TMPDIR": str(temporary),
            "BUILDAH_ISOLATION": "chroot",
        }

    def run(self, *arguments: str) -> str:
        """Run a buildah command that must succeed; return what it printed."""
        done = subprocess.run(
            [BUILDAH, *arguments],
            env=self.environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"buildah {arguments}\n{done.stdout[-4000:]}{done.stderr}"
        return done.stdout.strip()

    def make_base(self) -> None:
        """Make Debian's minimal system under the name of the Dockerfile's base image."""
        root = self.folder / "base"
        with (self.folder / "debootstrap.log").open("wb") as log:
            command = ["debootstrap", "--variant=minbase", SUITE, str(root)]
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, (self.folder / "debootstrap.log").read_text()[-2000:]
        # The published image has no lists and packages of apt in it either.
        for left in (*root.glob("var/lib/apt/lists/*_*"), *root.glob("var/cache/apt/**/*.*")):
            left.unlink()
        container = self.run("from", "scratch")
        self.run("add", "--quiet", container, str(root), "/")
        self.run("commit", "--quiet", "--rm", container, argument("BASE"))
        shutil.rmtree(root)

    def build(self, target: str, secret: str, **arguments: str) -> Image:
        """Build a target of the Dockerfile.

        Args:
            target: its stage.
            secret: stands in the secret that tells of the package index.
            arguments: for its ARGs.
        """
        index = self.folder / "index.env"
        lines = [f"{name}='{value}'" for name, value in os.environ.items() if INDEX.fullmatch(name)]
        index.write_text("\n".join([*lines, f"REFIT_TEST_PASSWORD={secret}", ""]))
        given = [f"--secret=id=index,src={index}"]
        if bundle := os.environ.get("SSL_CERT_FILE"):
            given.append(f"--secret=id=ca,src={bundle}")
        # The local base has the name, and not the digest, of the published one.
        for name, value in {**arguments, "BASE_DIGEST": ""}.items():
            given.append(f"--build-arg={name}={value}")
        name = f"refit-{target}"
        # The docker format, because OCI's has no health checks.
        form = ["--format=docker", f"--target={target}", f"--tag={name}"]
        self.run("bud", *form, *given, f"--file={DOCKERFILE}", str(ROOT))
        return Image(self, name)

    def empty(self) -> None:
        """Unmount and remove everything."""
        for command in (("rm", "--all"), ("rmi", "--all", "--force")):
            subprocess.run([BUILDAH, *command], env=self.environment(), check=False)


@dataclass(frozen=True)
class Image:
    """An image of a store."""

    store: Store
    name: str

    def about(self) -> dict[str, Any]:
        """Return what the image says of itself."""
        found: dict[str, Any] = json.loads(self.store.run("inspect", "--type=image", self.name))
        return found

    def config(self) -> dict[str, Any]:
        """Return user, command, health check and so on."""
        found: dict[str, Any] = self.about()["Docker"]["config"]
        return found

    def layers(self) -> list[Path]:
        """Return the folders of its layers, each with what that layer brought."""
        storage = self.store.storage
        known = json.loads((storage / "overlay-layers/layers.json").read_text())
        # A container's own layer has no digest.
        ids = {layer.get("diff-digest"): layer["id"] for layer in known}
        digests = self.about()["OCIv1"]["rootfs"]["diff_ids"]
        return [storage / "overlay" / ids[digest] / "diff" for digest in digests]

    def size(self) -> str:
        """Return the size as buildah says it."""
        return self.store.run("images", "--format={{.Size}}", self.name)

    def container(self, *volumes: str) -> Container:
        """Return a new container with `HOST:CONTAINER` folders mounted."""
        return Container(self, self.store.run("from", self.name), volumes)


@dataclass(frozen=True)
class Container:
    """A container: commands run in it as the image's user, in this machine's network."""

    image: Image
    name: str
    volumes: tuple[str, ...] = ()

    def files(self) -> Path:
        """Mount it and return where."""
        return Path(self.image.store.run("mount", self.name))

    def _command(self, command: Sequence[str], environment: dict[str, str]) -> list[str]:
        given = [f"--volume={volume}" for volume in self.volumes]
        given += [f"--env={name}={value}" for name, value in environment.items()]
        return [BUILDAH, "run", *given, self.name, "--", *command]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(command, environment),
            env=self.image.store.environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def ok(self, *command: str, **environment: str) -> str:
        """Run a command that must succeed; return all that it printed."""
        done = self.run(*command, **environment)
        assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    @contextmanager
    def running(
        self, command: Sequence[str], ready: Callable[[], bool], **environment: str
    ) -> Iterator[None]:
        """Run a server until the block ends."""
        log = self.image.store.folder / f"{self.name}.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                self._command(command, environment),
                env=self.image.store.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            ends = time.monotonic() + 240
            while not ready():
                assert server.poll() is None, f"it ended: {command}\n{log.read_text()[-4000:]}"
                assert time.monotonic() < ends, f"not ready: {command}\n{log.read_text()[-4000:]}"
                time.sleep(0.3)
            yield
        finally:
            end_group(server)

    def healthy(self, port: int) -> bool:
        """Run the image's own health check, at another port than its own."""
        kind, *command = self.image.config()["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*moved(command, port)).returncode == 0


def moved(command: Sequence[str], port: int) -> list[str]:
    """Return a command that uses loopback and a port that is free here, for its own."""
    here = [re.sub(r"--host=\S+", "--host=127.0.0.1", word) for word in command]
    return [re.sub(r"(--port=|127\.0\.0\.1:)\d+", rf"\g<1>{port}", word) for word in here]
