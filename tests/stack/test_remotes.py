"""DVC's remotes for real: a folder, SSH and S3; what was pushed is all that is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline.project import Project, make_project
from tests.stack import s3, sshd


@dataclass(frozen=True)
class Remote:
    """A place to push to.

    Attributes:
        url: for `dvc remote add`.
        environment: all that gives access to it.
        secret: what must be written down nowhere.
    """

    url: str
    environment: Mapping[str, str]
    secret: str


@contextmanager
def a_folder(folder: Path) -> Iterator[Remote]:
    yield Remote(str(folder / "remote"), {}, "")


@contextmanager
def over_ssh(folder: Path) -> Iterator[Remote]:
    with sshd.running(folder, folder / "sshd.log") as server:
        url = f"ssh://{server.user}@127.0.0.1:{server.port}{server.folder}"
        yield Remote(url, server.environment(), server.private)


@contextmanager
def in_s3(folder: Path) -> Iterator[Remote]:
    with s3.running(folder / "s3.log", "dvc") as server:
        environment = {**server.environment(), "AWS_ENDPOINT_URL": server.url}
        yield Remote("s3://dvc/refit", environment, server.secret)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a version of its data and the results of one stage."""
    project = make_project(tmp_path_factory.mktemp("remotes") / "project", each=12)
    project.ok("dvc", "add", "--quiet", "data/raw")
    project.ok("dvc", "repro", "--quiet", "weights@mobilenet_v2")
    return project


@pytest.mark.parametrize("place", [a_folder, over_ssh, in_s3])
def test_what_was_pushed_comes_back(
    place: Callable[[Path], AbstractContextManager[Remote]], pictures: Project, tmp_path: Path
) -> None:
    project = pictures.copy(tmp_path / "project")
    before = contents(project.path("data/raw"))
    weights = project.path("data/weights/mobilenet_v2.safetensors").read_bytes()
    with place(tmp_path) as remote:
        project.ok("dvc", "remote", "add", "--default", "store", remote.url)
        said = project.ok("dvc", "push", "--verbose", **remote.environment)
        project.remove(".dvc/cache", "data/raw", "data/weights")
        asked = project.run("dvc", "status", "-c", "--json", **remote.environment)
        lost = json.loads(asked.stdout)
        assert lost, "nothing was missing"
        assert set(lost.values()) == {"deleted"}
        said += project.ok("dvc", "pull", "--verbose", "--allow-missing", **remote.environment)
        said += project.ok("dvc", "status", "-c", **remote.environment)
        assert "Cache and remote 'store' are in sync" in said
        assert contents(project.path("data/raw")) == before
        assert project.path("data/weights/mobilenet_v2.safetensors").read_bytes() == weights
        if remote.secret:
            written = [path for path in tmp_path.rglob("*") if path.is_file()]
            assert remote.secret not in said
            assert not [p for p in written if remote.secret.encode() in p.read_bytes()]
            stranger = {**remote.environment, "AWS_SECRET_ACCESS_KEY": "no", "SSH_AUTH_SOCK": ""}
            project.remove(".dvc/cache")
            assert project.run("dvc", "fetch", **stranger).returncode != 0
