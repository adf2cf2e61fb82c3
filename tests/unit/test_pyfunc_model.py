"""MLflow gives the file back as it was, and serves it as it stands: a JPEG in, a label out."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image

from tasks import predict, tracking
from tasks.pyfunc_model import TRAVELLING, PictureModel, copy_code
from tasks.vision.errors import RefitError
from tests.loopback import free_port
from tests.unit.colours import NAMES, write_model

ADDRESS = "models:/colours@champion"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture(scope="module")
def registry(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Register the model as champion in a folder that holds nothing else."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        with contextlib.chdir(folder):
            register(model)
        yield folder


def register(model: Path) -> None:
    with (
        tracking.session("colours") as (client, experiment),
        tracking.run(client, experiment, "run", {}) as opened,
    ):
        version = tracking.register(client, opened, model, "colours", {"a": "b"})
        tracking.promote(client, version)


def jpeg(red: int, green: int, blue: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (red, green, blue)).save(out, "JPEG")
    return out.getvalue()


RED, GREEN = jpeg(250, 0, 0), jpeg(0, 250, 0)
PIXELS = np.zeros((2, 6, 8, 3), np.uint8)
PIXELS[0, ..., 2] = PIXELS[1, ..., 1] = 255


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (RED, ["red"]),
        ([RED, GREEN], ["red", "green"]),
        (text(GREEN), ["green"]),
        ([text(RED), f"data:image/jpeg;base64,{text(GREEN)}"], ["red", "green"]),
        (np.array([text(RED), text(GREEN)]), ["red", "green"]),
        ({"image": np.array([text(GREEN)])}, ["green"]),
        (pd.DataFrame({"image": [RED, text(GREEN)]}), ["red", "green"]),
        (PIXELS, ["blue", "green"]),
        (PIXELS.astype(np.int64), ["blue", "green"]),
        (PIXELS[0], ["blue"]),
        ([PIXELS[0], PIXELS[1, :3], RED], ["blue", "green", "red"]),
        ({"image": PIXELS}, ["blue", "green"]),
    ],
    ids=lambda value: None if isinstance(value, list) else type(value).__name__,
)
def test_bytes_base64_and_arrays_are_pictures(model: Path, data: Any, labels: list[str]) -> None:
    answer = PictureModel(model).predict(data)
    assert answer["label"].tolist() == labels
    assert list(answer.columns) == ["label", "probability", *NAMES]
    np.testing.assert_array_equal(answer["probability"], answer[NAMES].max(axis=1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([RED, b"no picture"], "picture 1: not a JPEG"),
        (["%%%"], "picture 0: no base64 text"),
        (np.zeros((2, 2)), r"picture 0: float64 \[2, 2\]: send picture files"),
        (PIXELS / 255.0, r"picture 0: float64 \[2, 6, 8, 3\]: send"),
        (PIXELS.astype(np.int64) - 1, "picture 0: int64"),
        ({"a": [RED], "b": [RED]}, r"2 columns \(a, b\), not one"),
    ],
)
def test_what_is_no_picture_is_refused(model: Path, data: Any, message: str) -> None:
    with pytest.raises(RefitError, match=message):
        PictureModel(model).predict(data)


def test_the_champion_is_the_file_bit_for_bit(model: Path, registry: Path) -> None:
    assert predict.model_file(ADDRESS).read_bytes() == model.read_bytes()
    with pytest.raises(RefitError, match=r"no model models:/colours@nobody from MLflow at sqlite"):
        predict.model_file("models:/colours@nobody")


def test_predict_takes_the_champion(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = registry / "red.jpg"
    picture.write_bytes(RED)
    predict.predict(predict.parse([ADDRESS, str(picture), "--provider", "cpu"]))
    assert capsys.readouterr().out.split("\t")[:2] == [str(picture), "red"]


def test_mlflow_loads_both_flavours(registry: Path) -> None:
    import mlflow.onnx
    import mlflow.pyfunc

    answer = mlflow.pyfunc.load_model(ADDRESS).predict(PIXELS)
    assert answer["label"].tolist() == ["blue", "green"]
    assert mlflow.onnx.load_model(ADDRESS).graph.input[0].name == "image"


def test_code_travels_under_a_name_of_its_own(model: Path, tmp_path: Path) -> None:
    copy_code(tmp_path / TRAVELLING)
    program = (
        f"import sys; from pathlib import Path; import {TRAVELLING}.pyfunc_model as m; "
        "print('tasks' in sys.modules, m.PictureModel(Path(sys.argv[1])).session.class_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"False {NAMES}\n", done.stderr


@pytest.fixture(scope="module")
def server(registry: Path) -> Iterator[str]:
    """Run `mlflow models serve` where there is no project, as the README says."""
    port = free_port()
    command = ["-m", "mlflow", "models", "serve", "-m", ADDRESS, "--env-manager", "local"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = registry / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            cwd=registry,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        try:
            requests.get(address, timeout=5).raise_for_status()
        except requests.RequestException:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text())


def post(address: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(address, json=body, timeout=60)


def test_served_over_http(server: str, registry: Path) -> None:
    for body in (
        {"instances": [text(RED), text(GREEN)]},
        {"inputs": [text(RED), text(GREEN)]},
        {"dataframe_split": {"columns": ["image"], "data": [[text(RED)], [text(GREEN)]]}},
    ):
        answer = post(server, body).json()["predictions"]
        assert [row["label"] for row in answer] == ["red", "green"], body.keys()
        assert sum(answer[0][name] for name in NAMES) == pytest.approx(1)
    answer = post(server, {"inputs": PIXELS.tolist()}).json()["predictions"]
    assert [row["label"] for row in answer] == ["blue", "green"]
    refused = post(server, {"instances": [text(b"no picture")]})
    assert refused.status_code == 400
    assert "not a JPEG" in refused.text
