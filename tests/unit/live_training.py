"""A training of the toy that waits before each epoch until a test allows it.

Usage, in a project's folder: python -m tests.unit.live_training SENT_AFTER. It trains up to the
epoch in the file `allowed` and writes `trained.safetensors` and the candidate's curve.
"""

from __future__ import annotations

import sys
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
    """Train as the stage `fine_tune` does."""
    torch.set_num_threads(1)
    training.SENT_AFTER = float(sys.argv[1])
    made = toy.training(toy.classifier(), RECIPE, "last_2_blocks", norms_frozen=False)
    batch = made.batch

    def paced(which: Any, epoch: int) -> Any:
        while epoch > allowed():
            time.sleep(0.02)
        return batch(which, epoch)

    made = replace(made, batch=paced)
    with training.place("fine_tune", "toy", Processes()) as place:
        fitted = place.fit(made, RECIPE, "toy", "0123", params.load().fine_tune)
        checkpoints.save(Path("trained.safetensors"), fitted.weights, {})
        models.write_curve(curves.curve_of("toy", "fine_tune"), fitted.curve)
        place.clear()


if __name__ == "__main__":
    program.run(main)
