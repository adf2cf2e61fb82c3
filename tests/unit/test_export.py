"""A file is exported only if it is PyTorch's equal; its card says what the file says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks import card, export, files, models
from tasks.vision import checkpoints, metrics, onnx_graph
from tasks.vision.errors import RefitError
from tasks.vision.preprocess import Preprocess

PREPROCESS = Preprocess(16, 12, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SPEC = models.Spec("vgg11", ("cat", "dog"), PREPROCESS, "avg", (), 0.0, "random", False)


class RedOrGreen(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))[:, :2] * self.scale


def test_equal_probabilities_are_proven() -> None:
    expected = np.array([[0.75, 0.25], [0.25, 0.75]], np.float32)
    got = expected + np.array([[0.0, 0.0], [0.125, -0.125]], np.float32)
    assert export.prove(expected, got, ["a", "b"], 0.2) == 0.125


@pytest.mark.parametrize(
    "row",
    [(0.5, 0.5001), (0.6, 0.4), (np.nan, np.nan)],
    ids=["another class", "too far", "no number"],
)
def test_one_picture_that_differs_fails_by_name(row: tuple[float, float]) -> None:
    expected = np.array([[0.9, 0.1], [0.5001, 0.5]], np.float32)
    got = np.array([[0.9, 0.1], row], np.float32)
    with pytest.raises(RefitError, match=r"disagree on 1 of 2 test pictures .*\n  b\.png: differs"):
        export.prove(expected, got, ["a.png", "b.png"], 1e-3)


def test_every_batch_and_size_is_proven(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx_graph.export(RedOrGreen(4.0), PREPROCESS, ["red", "green"], {}, path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    right = onnx_graph.ServingModel(RedOrGreen(4.0), PREPROCESS)
    assert export.prove_shapes(path, right, pixels, 1e-3) < 1e-3
    other = onnx_graph.ServingModel(RedOrGreen(5.0), PREPROCESS)
    with pytest.raises(RefitError, match="disagree on a batch of 1 pictures of 64 x 48 pixels"):
        export.prove_shapes(path, other, pixels, 1e-3)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files.write_text(Path("pyproject.toml"), '[project]\nname = "x"\nversion = "7.8.9"\n')
    files.write_text(files.MANIFEST, "manifest")
    weights = files.WEIGHTS / "small.safetensors"
    checkpoints.save(weights, {}, {"initialised_from": "package:x", "sha256": "ab" * 32})
    return tmp_path


def facts() -> dict[str, str]:
    true = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]])
    validation = metrics.score(true, probabilities, ["cat", "dog"])
    return card.metadata("small", SPEC, "cd" * 32, validation, "CC0-1.0")


def test_metadata_hold_every_fact(project: Path) -> None:
    about = facts()
    assert about["project_version"] == "7.8.9"
    assert about["licence"] == "CC0-1.0"
    assert about["data_version"] == files.sha256_file(files.MANIFEST)[:12]
    assert json.loads(about["initial_weights"]) == {
        "initialised_from": "package:x",
        "sha256": "ab" * 32,
    }
    validation = json.loads(about["validation"])
    assert validation["pictures"] == 4
    assert validation["accuracy"]["value"] == 0.75
    low, high = validation["accuracy"]["interval_95"]
    assert 0 <= low <= 0.75 <= high <= 1
    assert all(isinstance(value, str) for value in about.values())


def test_no_version_is_an_error(project: Path) -> None:
    Path("pyproject.toml").write_text("[project]\n")
    with pytest.raises(RefitError, match=r"no project version in pyproject\.toml"):
        facts()


@pytest.mark.parametrize("form", ["pixels", "tensor"])
def test_card_says_what_the_file_says(project: Path, form: onnx_graph.Form) -> None:
    path = Path("model.onnx")
    onnx_graph.export(RedOrGreen(1.0), PREPROCESS, ["cat", "dog"], facts(), path, 1.5, form)
    about = export.serving.Session(path, "cpu").metadata
    text = card.page(about, files.sha256_file(path))
    for said in ("Refit 7.8.9", "CC0-1.0", "ab" * 32, "cd" * 32, "0. cat", "1. dog", "0.7500"):
        assert said in text
    assert files.sha256_file(path) in text
    assert "temperature 1.5" in text
    assert ("floor(level" in text) == (form == "tensor")
    assert text == card.page(about, files.sha256_file(path))
