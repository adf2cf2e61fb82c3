"""What augmentation costs beside the training step that it feeds, on this machine's device.

    .venv/bin/python -m tests.benchmarks.augmentation [ARCH]     # mobilenet_v2

Every way turns the same packed pictures (32, 256 pixels) into the network's normalised input; the
step trains every layer on such a batch. They take turns in one process. It prints a Markdown table
of medians: milliseconds a picture, CPU milliseconds, and the share of the step.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from tasks.vision import backbones, device
from tasks.vision.augmentation import Augmentation
from tasks.vision.features import augmented_input
from tasks.vision.preprocess import Preprocess, network_input
from tasks.vision.randomness import seeds_of

BATCH, ROUNDS = 32, 9
WAYS = {
    "flip": Augmentation(flip=0.5),
    "flips, up and down too": Augmentation(flip=0.5, vertical_flip=0.5),
    "random-resized-crop, flip": Augmentation(flip=0.5, crop_area=0.25),
    "rotation, shift, shear, zoom": Augmentation(rotation=20, shift=0.1, shear=10, zoom=0.2),
    "colour jitter": Augmentation(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
    "erasing": Augmentation(erasing=0.5),
    "RandAugment": Augmentation(policy="randaugment"),
    "TrivialAugment": Augmentation(policy="trivialaugment"),
}


def training_step(arch: str, spec: Preprocess, where: torch.device) -> Callable[[], object]:
    """Return a step of AdamW on every layer, on a batch that is ready."""
    classifier = backbones.build_classifier(arch, 2, spec.crop, "avg", (), 0.0)
    classifier.to(where, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-4, fused=where.type == "cuda")
    images = torch.randn(BATCH, 3, spec.crop, spec.crop, device=where)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device=where) % 2

    def step() -> None:
        torch.nn.functional.cross_entropy(classifier(images), labels).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def milliseconds(call: Callable[[], object], where: torch.device) -> tuple[float, float]:
    """Return the wall and CPU milliseconds a picture of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if where.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return 1e3 * wall / BATCH, 1e3 * cpu / BATCH


def main() -> None:
    """Measure all in turn and print the table."""
    arch = sys.argv[1] if len(sys.argv) > 1 else "mobilenet_v2"
    where = device.start(0)
    _, _, mean, std = backbones.imagenet_preprocess(arch)
    spec = Preprocess(256, 224, mean, std)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 256, 256, 3), dtype=np.uint8)
    seeds = seeds_of(np.arange(BATCH), 0)
    calls: dict[str, Callable[[], object]] = {
        "training step, every layer": training_step(arch, spec, where),
        "none": lambda: network_input(pixels, spec, where),
    }
    for name, way in WAYS.items():
        calls[name] = partial(augmented_input, pixels, spec, where, way, seeds)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            cost = milliseconds(call, where)
            if turn:  # the first warms up
                taken[name].append(cost)
    print(f"{arch}, {where.type}, {torch.get_num_threads()} threads\n")
    print("| | ms a picture | CPU ms | share of the step |")
    print("|---|---:|---:|---:|")
    medians = {
        name: (statistics.median(wall for wall, _ in rows), statistics.median(c for _, c in rows))
        for name, rows in taken.items()
    }
    step, _ = medians["training step, every layer"]
    for name, (wall, cpu) in medians.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {wall / step:.0%} |")


if __name__ == "__main__":
    main()
