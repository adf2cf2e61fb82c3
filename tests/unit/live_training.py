"""A training of the toy that waits before each epoch until a test allows it.

Usage, in a project's folder: python -m tests.unit.live_training SENT_AFTER [BLOCK [DIVERGES]]. It
trains up to the epoch in the file `allowed` and writes `trained.safetensors` and the candidate's
curve. BLOCK is the stage's in params.yaml; its first attempt diverges in the epoch DIVERGES.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tasks import curves, models, params, program, training
from tasks.vision import checkpoints
from tasks.vision.parallel import Processes
from tests.unit import toy

EPOCHS = 6
RECIPE = replace(toy.EVERYTHING, epochs=EPOCHS)


def allowed() -> int:
    """Return the epoch that may be trained."""
    text = Path("allowed").read_text()
    return int(text) if text else 0  # the test is writing it


def main() -> None:
    """Train as a stage does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sent_after", type=float)
    parser.add_argument("block", nargs="?", choices=curves.STAGES, default="fine_tune")
    parser.add_argument("diverges", nargs="?", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    training.SENT_AFTER, key, fatal = asked.sent_after, asked.block, asked.diverges
    made = toy.training(toy.classifier(), RECIPE, "last_2_blocks", norms_frozen=False)
    batch = made.batch

    def paced(which: Any, epoch: int) -> Any:
        nonlocal fatal
        while epoch > allowed():
            time.sleep(0.02)
        inputs, labels = batch(which, epoch)
        if epoch == fatal:
            fatal = 0  # the second attempt comes past this epoch
            inputs = inputs * float("nan")
        return inputs, labels

    made = replace(made, batch=paced)
    with training.place(curves.STAGES[key], "toy", Processes()) as place:
        block = params.load().head if key == "head" else params.load().fine_tune
        fitted = place.fit(made, RECIPE, "toy", "0123", block)
        checkpoints.save(Path("trained.safetensors"), fitted.weights, {})
        models.write_curve(curves.curve_of("toy", key), fitted.curve)
        place.clear()


if __name__ == "__main__":
    program.run(main)
