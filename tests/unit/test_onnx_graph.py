"""The exported file gives PyTorch's answers, whatever the size, and tells nothing of its maker."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tasks.serving import Session, centre_levels
from tasks.vision.errors import RefitError
from tasks.vision.onnx_graph import MAX_WEIGHT_BYTES, ServingModel, export
from tasks.vision.preprocess import HALF, Preprocess, centre_crop, normalise, resize_square

PREPROCESS = Preprocess(64, 56, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NAMES = ["ant", "bee", "käfer"]
TEMPERATURE = 1.7
METADATA = {"initial_weights": "random", "data_version": "ab12"}
SIZES = [(48, 64), (64, 48), (17, 23), (23, 17), (1, 1), (100, 100), (1200, 1600)]
REPOSITORY = Path(__file__).parents[2]


def toy() -> nn.Module:
    """A small network whose BatchNorm has seen something."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, len(NAMES)),
    )
    network(torch.randn(16, 3, 56, 56) * 2 + 1)
    return network.eval()


def pictures(count: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(height * width)
    return random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "new" / "model.onnx"
    export(toy().train(), PREPROCESS, NAMES, METADATA, path, TEMPERATURE)  # it leaves this mode
    return path


@pytest.fixture(scope="module")
def session(exported: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equals_pytorch(
    session: onnxruntime.InferenceSession, count: int, height: int, width: int
) -> None:
    if height * width > 10**6:
        count = min(count, 2)
    images = pictures(count, height, width)
    with torch.inference_mode():
        expected = ServingModel(toy(), PREPROCESS, TEMPERATURE)(torch.from_numpy(images))
    probabilities, logits = session.run(["probabilities", "logits"], {"image": images})
    assert probabilities.shape == logits.shape == (count, len(NAMES))
    np.testing.assert_allclose(probabilities, expected[0], atol=1e-5)
    np.testing.assert_allclose(logits, expected[1], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_packed_pixels_give_what_raw_ones_give(
    session: onnxruntime.InferenceSession, height: int, width: int
) -> None:
    images = pictures(2, height, width)
    raw = torch.from_numpy(images).permute(0, 3, 1, 2)
    packed = resize_square(raw, PREPROCESS.resize).to(torch.uint8)
    with torch.inference_mode():
        expected = toy()(normalise(centre_crop(packed, PREPROCESS.crop), PREPROCESS))
    (logits,) = session.run(["logits"], {"image": images})
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_temperature_softens_probabilities_only(session: onnxruntime.InferenceSession) -> None:
    probabilities, logits = session.run(["probabilities", "logits"], {"image": pictures(3, 60, 80)})
    softened = np.exp(logits / TEMPERATURE)
    np.testing.assert_allclose(
        probabilities, softened / softened.sum(axis=1, keepdims=True), atol=1e-6
    )


def test_centre_square_is_what_counts(session: onnxruntime.InferenceSession) -> None:
    wide = pictures(1, 40, 90)
    (of_wide,) = session.run(["logits"], {"image": wide})
    (of_square,) = session.run(["logits"], {"image": wide[:, :, 25:65]})
    np.testing.assert_array_equal(of_wide, of_square)


def test_batch_height_and_width_are_open(exported: Path) -> None:
    graph = onnx.load(exported).graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["N", "H", "W", 3]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for output in graph.output:
        shape = output.type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in shape] == ["N", len(NAMES)]


def test_metadata_are_complete(exported: Path) -> None:
    metadata = {p.key: p.value for p in onnx.load(exported).metadata_props}
    assert json.loads(metadata.pop("class_names")) == NAMES
    assert Preprocess.from_dict(json.loads(metadata.pop("preprocess"))) == PREPROCESS
    assert json.loads(metadata.pop("temperature")) == TEMPERATURE
    assert json.loads(metadata.pop("input")) == {
        "name": "image",
        "dtype": "uint8",
        "layout": "NHWC",
        "shape": ["N", "H", "W", 3],
        "colour": "RGB",
        "range": [0, 255],
    }
    assert metadata == METADATA


def test_file_moved_alone_works(
    exported: Path, session: onnxruntime.InferenceSession, tmp_path: Path
) -> None:
    assert [p.name for p in exported.parent.iterdir()] == ["model.onnx"]
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(exported.read_bytes())
    moved = onnxruntime.InferenceSession(str(alone), providers=["CPUExecutionProvider"])
    feed = {"image": pictures(2, 50, 70)}
    for ours, theirs in zip(moved.run(None, feed), session.run(None, feed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_equal_weights_give_equal_bytes_in_another_process(exported: Path, tmp_path: Path) -> None:
    """A new process starts its symbols and names afresh, and another folder has other paths."""
    again = tmp_path / "again.onnx"
    program = (
        "from pathlib import Path; from tests.unit import test_onnx_graph as t; "
        "t.export(t.toy(), t.PREPROCESS, t.NAMES, t.METADATA, Path(__import__('sys').argv[1]), "
        "t.TEMPERATURE)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(again)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # and it is silent
    assert again.read_bytes() == exported.read_bytes()


def test_file_tells_nothing_of_its_maker(exported: Path) -> None:
    content = exported.read_bytes()
    for secret in (REPOSITORY, Path.home(), sys.prefix, getpass.getuser() + "@", ".py", "forward"):
        assert str(secret).encode() not in content


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 56 * 56, len(NAMES))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.linear(pixels.reshape(2, -1))
        return logits


class Branching(FixedBatch):
    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.sum() > 0:
            pixels = -pixels
        logits: Tensor = self.linear(pixels.flatten(1))
        return logits


class TooLarge(FixedBatch):
    def __init__(self) -> None:
        super().__init__()
        self.huge = nn.Parameter(torch.empty(MAX_WEIGHT_BYTES // 4 + 1, device="meta"))


@pytest.mark.parametrize(
    ("classifier", "names", "message"),
    [
        (FixedBatch, NAMES, "N = 2 only"),
        (Branching, NAMES, "cannot export this network: Could not guard on data-dependent"),
        (TooLarge, NAMES, "weights take 1.98 GiB"),
        (toy, NAMES[:2], "2 class names for a network with 3 outputs"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    classifier: Callable[[], nn.Module], names: list[str], message: str, tmp_path: Path
) -> None:
    old = tmp_path / "model.onnx"
    old.write_bytes(b"the model of yesterday")
    with pytest.raises(RefitError, match=message):
        export(classifier(), PREPROCESS, names, {}, old)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert old.read_bytes() == b"the model of yesterday"


class WithFeatures(nn.Module):
    """The parts that `features` asks for, with known weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, len(NAMES))

    def features(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(pixels))
        return logits


def test_features_are_the_heads_input(tmp_path: Path) -> None:
    classifier = WithFeatures()
    path = tmp_path / "model.onnx"
    export(classifier, PREPROCESS, NAMES, {}, path, features=True)
    session = Session(path, "cpu")
    image = pictures(1, 56, 56)[0]
    image[:] = (255, 102, 0)
    (features,) = session.run([image], ["features"])
    np.testing.assert_allclose(features, [[2.5, 0.0, -1.0]], atol=1e-5)  # (level/255 - mean) / std
    logits = session.run([image], ["logits"])[0]
    with torch.inference_mode():
        np.testing.assert_allclose(logits, classifier.head(torch.from_numpy(features)), atol=1e-5)


def test_without_features_asking_for_them_names_the_remedy(exported: Path) -> None:
    with pytest.raises(RefitError, match=r"no output features.*export\.features: true"):
        Session(exported, "cpu").run([], ["features"])


@pytest.fixture(scope="module")
def as_tensor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensor") / "model.onnx"
    export(toy(), PREPROCESS, NAMES, METADATA, path, TEMPERATURE, form="tensor")
    return path


def test_tensor_form_says_what_it_takes(as_tensor: Path) -> None:
    model = onnx.load(as_tensor)
    assert "Resize" not in {node.op_type for node in model.graph.node}
    taken = model.graph.input[0]
    assert taken.name == "tensor"
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    dims = [d.dim_param or d.dim_value for d in taken.type.tensor_type.shape.dim]
    spec = json.loads({p.key: p.value for p in model.metadata_props}["input"])
    assert dims == spec["shape"] == ["N", 3, 56, 56]
    assert spec["made_by"][1] == {"do": "resize", "side": 64, "filter": "bilinear, antialiased"}


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tensor_form_gives_what_pixels_give(
    exported: Path, as_tensor: Path, height: int, width: int
) -> None:
    images = list(pictures(2, height, width))
    expected, _ = Session(exported, "cpu").predict(images)
    got, _ = Session(as_tensor, "cpu").predict(images)
    # The two resizers differ by a level where a mean lies on the edge, in noise above all.
    np.testing.assert_allclose(got, expected, atol=2e-3)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_levels_without_torch_are_those_of_training(height: int, width: int) -> None:
    image = pictures(1, height, width)[0]
    raw = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = centre_crop(resize_square(raw, PREPROCESS.resize), PREPROCESS.crop)[0].numpy()
    got = centre_levels(image, PREPROCESS.resize, PREPROCESS.crop, HALF)
    assert np.abs(got - expected).max() <= 1
    assert (got != expected).mean() < 2e-3
