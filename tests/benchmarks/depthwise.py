"""What a training step takes in float32, in bfloat16, and with slow depthwise ones in float32.

    .venv/bin/python -m tests.benchmarks.depthwise [ARCH]     # mobilenet_v2

A step of AdamW on every layer, BatchNorm frozen, on 32 pictures of 224 pixels, on the CPU; the
three take turns in one process. It prints a Markdown table: the median milliseconds a picture,
CPU milliseconds, and the ratio to float32 with its range over the rounds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from torch import nn

from tasks.vision import backbones, device
from tasks.vision.depthwise import keep_slow_ones_in_float32
from tests.benchmarks.augmentation import BATCH, milliseconds

SIDE, ROUNDS = 224, 9
CPU = torch.device("cpu")


def training_step(arch: str, *, bfloat16: bool, kept: bool = False) -> Callable[[], object]:
    """Return a step of AdamW on a batch that is ready."""
    classifier = backbones.build_classifier(arch, 2, SIDE, "avg", (), 0.0)
    classifier.to(memory_format=torch.channels_last).train()
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    if kept:
        keep_slow_ones_in_float32(classifier)
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    images = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 2

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = classifier(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def main() -> None:
    """Measure all in turn and print the table."""
    arch = sys.argv[1] if len(sys.argv) > 1 else "mobilenet_v2"
    device.start(0)
    ways = {
        "float32": training_step(arch, bfloat16=False),
        "bfloat16": training_step(arch, bfloat16=True),
        "bfloat16, slow depthwise ones in float32": training_step(arch, bfloat16=True, kept=True),
    }
    for step in ways.values():
        step()
    rounds = [{name: milliseconds(step, CPU) for name, step in ways.items()} for _ in range(ROUNDS)]
    print(f"| {arch} | ms a picture | CPU ms | to float32 |\n|---|---:|---:|---:|")
    for name in ways:
        wall, cpu = (statistics.median(turn[name][kind] for turn in rounds) for kind in (0, 1))
        ratios = [turn[name][0] / turn["float32"][0] for turn in rounds]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {spread} |")


if __name__ == "__main__":
    main()
