"""A member of every backbone family goes the whole way: trained, saved, loaded, exported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tasks import models
from tasks.vision.backbones import architectures
from tasks.vision.fine_tuning import Data, Split, fine_tuning
from tasks.vision.loops import fit
from tasks.vision.onnx_graph import ServingModel, export
from tasks.vision.preprocess import Preprocess
from tasks.vision.recipes import Recipe
from tasks.vision.unfreezing import Unfreezing
from tests.unit import toy

# Of each family a narrow member, and a side that its blocks can halve often enough.
FAMILIES = {
    "vgg11": 64,
    "vgg11_bn": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "inception_v3": 107,
}
NAMES = tuple(f"class {place}" for place in range(toy.CLASSES))


def test_no_family_is_forgotten() -> None:
    stem = re.compile(r"vgg\d+(_bn)?|(wide_)?resn[a-z]+|mobilenet_v\d|inception")

    def families(archs: Iterable[str]) -> set[str]:
        return {re.sub(r"(?<=vgg)\d+", "", found[0]) for found in map(stem.match, archs) if found}

    assert families(FAMILIES) == families(architectures())
    assert len(families(FAMILIES)) == len(FAMILIES)
    assert all(map(stem.match, architectures()))


@pytest.mark.parametrize(("arch", "side"), FAMILIES.items())
def test_every_family_trains_saves_loads_and_exports(arch: str, side: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    preprocess = Preprocess(side, side, toy.SPEC.mean, toy.SPEC.std)
    spec = models.Spec(arch, NAMES, preprocess, "avg", (), 0.0, "random", pretrained=False)
    classifier = spec.build()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    four = Split(lambda which: pixels[which], np.array([0, 1, 2, 0]))
    recipe = Recipe(epochs=1, batch_size=4, lr=0.001)
    data = Data(four, four, preprocess)
    made = fine_tuning(classifier, data, Unfreezing("last_block", True), recipe)
    assert len(fit(made, recipe).curve) == 2
    after = classifier.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    trains = {name for name, p in classifier.named_parameters() if p.requires_grad}
    assert moved <= trains
    # A bias right before a frozen ReLU's dead side may stay; weights do not.
    assert {n for n in trains if n.startswith("head.")} <= moved
    assert any(name.startswith("backbone.") for name in moved)
    assert 0 < classifier.frozen_blocks < len(classifier.backbone.blocks)

    models.save(tmp_path / "model.safetensors", after, spec)
    loaded, its_spec = models.load_classifier(tmp_path / "model.safetensors")
    assert its_spec == spec
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, after[name]), name
    with torch.inference_mode():
        _, expected = ServingModel(loaded, preprocess, 1.0).eval()(torch.from_numpy(pixels))
    export(loaded, preprocess, list(NAMES), {}, tmp_path / "model.onnx", 1.0)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"image": pixels})
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-3, atol=1e-4)
