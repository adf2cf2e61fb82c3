"""Variants keep what the file is; the layers that hurt are found; only proof releases one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tasks import files, params, variants
from tasks.serving import Session
from tasks.vision import quantise
from tasks.vision.onnx_graph import export
from tasks.vision.preprocess import Preprocess

PREPROCESS = Preprocess(24, 20, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NAMES = ["ant", "bee"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    second, last = nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
    # One channel of the second layer is thousands of times larger than the others, on a path that
    # the last layer all but ignores: eight bits cannot hold both.
    with torch.no_grad():
        second.weight[0] *= 3000
        last.weight[:, 0] /= 3000
    first = nn.Conv2d(3, 8, 3)
    pool = nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), pool, nn.Flatten(), last)
    path = tmp_path_factory.mktemp("original") / "model.onnx"
    export(network, PREPROCESS, NAMES, {"data_version": "ab"}, path)
    return path


def pictures(count: int) -> quantise.Batches:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (1, 30, 26, 3), dtype=np.uint8) for _ in range(count)]


def types(path: Path) -> set[int]:
    return {constant.data_type for constant in onnx.load(path).graph.initializer}


def test_fp16_takes_and_gives_what_the_original_does(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    quantise.to_fp16(original, out)
    session = Session(out, "cpu")
    assert session.class_names == NAMES
    assert session.metadata == {**Session(original, "cpu").metadata, "variant": "fp16"}
    images = [picture[0] for picture in pictures(4)]
    expected, got = Session(original, "cpu").predict(images), session.predict(images)
    np.testing.assert_allclose(got[0], expected[0], atol=2e-3)
    assert onnx.TensorProto.FLOAT16 in types(out)
    # Between uint8 and the first layer nothing is rounded to ten bits.
    nodes = onnx.load(out).graph.node
    first = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    assert sum(node.op_type == "Cast" for node in nodes[:first]) == 2


def test_int8_holds_weights_in_a_byte_a_scale_a_channel(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    quantise.to_int8(original, out, pictures(8), [])
    model = onnx.load(out)
    scales = {c.name: c for c in model.graph.initializer if c.name.endswith("_scale")}
    assert onnx.TensorProto.INT8 in types(out)
    assert [8] in [list(scale.dims) for scale in scales.values()]
    assert Session(out, "cpu").metadata["variant"] == "int8"
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    assert "Dequantize" not in resize.input[0]


def test_the_layer_that_hurts_is_found_and_left_in_float(original: Path, tmp_path: Path) -> None:
    some = pictures(8)
    moved = quantise.sensitivity(original, tmp_path, some)
    names = quantise.layers(onnx.load(original))
    assert sorted(moved) == sorted(names)
    assert list(moved.values()) == sorted(moved.values(), reverse=True)
    expected = quantise.logits(original, some)

    def error(in_float: list[str]) -> float:
        out = tmp_path / "mixed.onnx"
        quantise.to_int8(original, out, some, in_float)
        return float(np.abs(quantise.logits(out, some) - expected).max())

    assert error(names) < 1e-4 < error([])
    assert error(list(moved)[:2]) < error([])


TRUE = np.array([0] * 150 + [1] * 150)


def wrong(*places: int) -> Any:
    labels = TRUE.copy()
    labels[list(places)] ^= 1
    return labels


FASTER = {"1": [2.0, 1.0], "8": [2.0, 1.5]}


def test_a_variant_that_loses_little_and_is_faster_is_released() -> None:
    # One picture of 300 is 0.33 points; another one lost is made good by one gained.
    result = variants.verdict(TRUE, wrong(5), wrong(1, 2), FASTER, 0.005, "cpu")
    assert result["released"]
    assert (result["lost"], result["gained"]) == (2, 1)
    assert result["accuracy"] == 298 / 300
    assert result["reason"] == "loses 0.33% accuracy and is faster"
    better = variants.verdict(TRUE, wrong(1, 2), wrong(1), FASTER, 0.005, "cpu")
    assert better["reason"] == "gains 0.33% accuracy and is faster"


@pytest.mark.parametrize(
    ("labels", "times", "reason"),
    [
        (wrong(1, 2), FASTER, "loses 0.67% accuracy, more than the 0.50% of max_drop"),
        (wrong(), {"1": [2.0, 1.0], "8": [2.0, 2.0]}, "not faster on cpu .batch 8: 2.00 -> 2.00"),
    ],
)
def test_a_loss_or_no_gain_is_a_reason(labels: Any, times: Any, reason: str) -> None:
    result = variants.verdict(TRUE, wrong(), labels, times, 0.005, "cpu")
    assert not result["released"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result["reason"])


@pytest.mark.parametrize("released", [True, False])
def test_only_what_is_proven_lies_there(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    monkeypatch.setattr(files, "VARIANTS", tmp_path)
    monkeypatch.setattr(variants, "judge", lambda *_: {"released": released, "reason": "so"})
    old = tmp_path / "model.fp16.onnx"
    old.write_bytes(b"of another model")
    settings = params.load()
    result = variants.release("fp16", original, settings)
    assert result["released"] == released
    assert [path.name for path in tmp_path.iterdir()] == [old.name] * released
    if released:
        assert Session(old, "cpu").metadata["variant"] == "fp16"


def test_times_are_of_both_and_a_picture(original: Path) -> None:
    session = Session(original, "cpu")
    times = variants.milliseconds(session, session, [pictures(1)[0][0]])
    assert list(times) == ["1", "8"]
    assert all(len(both) == 2 and min(both) > 0 for both in times.values())
