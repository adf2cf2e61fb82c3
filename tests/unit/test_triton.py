"""The model repository is what Triton's own protobuf says one is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2

from tasks import triton
from tasks.vision.errors import RefitError
from tasks.vision.onnx_graph import Form, export
from tasks.vision.preprocess import Preprocess

PREPROCESS = Preprocess(16, 12, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NAMES = ["ant", "bee", "ein\nKäfer"]


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def features(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3)) * self.scale

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)


def made(folder: Path, form: Form) -> tuple[Path, Path]:
    model = folder / "any name.onnx"
    export(Toy(), PREPROCESS, NAMES, {}, model, form=form, features=form == "tensor")
    return model, triton.write(model, folder / "repository", "refit", 3, 32)


def parsed(folder: Path) -> model_config_pb2.ModelConfig:
    config = (folder / "config.pbtxt").read_text()
    return text_format.Parse(config, model_config_pb2.ModelConfig())


def test_pixels_become_a_repository(tmp_path: Path) -> None:
    model, folder = made(tmp_path, "pixels")
    assert folder == tmp_path / "repository" / "refit"
    assert (folder / "3" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "labels.txt").read_text() == "ant\nbee\nein Käfer\n"
    config = parsed(folder)
    assert (config.name, config.platform) == ("refit", "onnxruntime_onnx")
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    (taken,) = config.input
    assert (taken.name, list(taken.dims)) == ("image", [-1, -1, 3])
    assert taken.data_type == model_config_pb2.TYPE_UINT8
    assert [(o.name, list(o.dims)) for o in config.output] == [
        ("probabilities", [3]),
        ("logits", [3]),
    ]
    assert {o.data_type for o in config.output} == {model_config_pb2.TYPE_FP32}
    assert config.output[0].label_filename == "labels.txt"


def test_a_tensor_form_and_features_are_said(tmp_path: Path) -> None:
    config = parsed(made(tmp_path, "tensor")[1])
    assert list(config.input[0].dims) == [3, 12, 12]
    assert config.input[0].data_type == model_config_pb2.TYPE_FP32
    assert [o.name for o in config.output] == ["probabilities", "logits", "features"]


def test_a_second_version_leaves_the_first(tmp_path: Path) -> None:
    model, folder = made(tmp_path, "pixels")
    triton.write(model, tmp_path / "repository", "refit", 4, 32)
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "config.pbtxt", "labels.txt"]


def test_a_name_that_triton_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefitError, match="model name 'a/b' may hold only"):
        triton.write(tmp_path / "no.onnx", tmp_path, "a/b", 1, 32)
    assert not list(tmp_path.iterdir())
