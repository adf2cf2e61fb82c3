"""The production candidates, ResNet-50 and VGG-16, from weight files, shrunk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tasks.files import sha256_file
from tasks.vision.backbones import build_backbone
from tests.pipeline.project import make_project

ARCHITECTURES = ("resnet50", "vgg16")


def weight_file(folder: Path, arch: str) -> dict[str, str]:
    """Save a backbone as torch does and return the candidate that starts from it."""
    path = folder / f"{arch}.pth"
    torch.save(build_backbone(arch, generator_seed=1).state_dict(), path)
    source = {"weights": f"file:{path.name}", "sha256": sha256_file(path)}
    return {"arch": arch, "on_missing": "fail", **source}


def test_resnet50_and_vgg16_train_from_files(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", each=20)

    def production_set(params: dict[str, Any]) -> None:
        params["candidates"] = {arch: weight_file(project.root, arch) for arch in ARCHITECTURES}
        params["head"]["views"] = 1
        params["validate"]["min_per_class"] = 5
        params["validate"]["checks"]["min_per_class_and_split"] = "warn"

    project.change_params(production_set)
    project.ok("dvc", "repro")
    for arch in ARCHITECTURES:
        scores = json.loads(project.path(f"data/reports/{arch}/metrics.json").read_text())
        assert 0 <= scores["test"]["f1_macro"] <= 1
        validation = json.loads(project.path(f"data/models/{arch}/validation.json").read_text())
        sha256 = sha256_file(project.path(f"{arch}.pth"))
        assert validation["initialised_from"] == f"file:{sha256[:12]}"
    assert project.path("data/best/model.onnx").exists()
