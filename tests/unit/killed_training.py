"""A program that kills a training at random calls until it was killed often enough.

Usage: python -m tests.unit.killed_training FOLDER SEED. It writes FOLDER/whole.safetensors,
trained at one go, and FOLDER/resumed.safetensors, and prints where each kill left the training.
It forks before torch has started a thread, because starting Python anew 20 times takes a minute.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tasks.vision import checkpoints
from tasks.vision.loops import fit
from tasks.vision.resume import Checkpoint
from tests.unit import toy

KILLS = 24


def train(out: Path, folder: Path) -> None:
    """Train the toy with all that a recipe can ask for; write its best weights and its curve."""
    made = toy.training(
        toy.classifier(dropout=0.2),
        toy.EVERYTHING,
        "gradual",
        norms_frozen=False,
        augmentation=toy.SHOWN,
        sampler="balanced",
    )
    fitted = fit(made, toy.EVERYTHING, checkpoints=folder, seconds=0.0)
    checkpoints.save(out, fitted.weights, {"curve": str(fitted.curve)})


def kill_after(calls: int) -> None:
    """Let this process be killed at its `calls`-th call of a function from now."""
    left = calls

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def calls_of_a_training(folder: Path) -> int:
    """Count the calls of an undisturbed training."""
    seen = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count)
    train(folder / "whole.safetensors", folder / "whole")
    sys.setprofile(None)
    return seen


def forked(folder: Path, calls: int) -> int:
    """Train in a forked process that is killed at a call; return its wait status."""
    child = os.fork()
    if child == 0:
        if calls:
            kill_after(calls)
        train(folder / "resumed.safetensors", folder / "resumed")
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Train at one go, then with kills."""
    folder, draw = Path(sys.argv[1]), random.Random(int(sys.argv[2]))  # noqa: S311
    torch.set_num_threads(1)
    train(folder / "whole.safetensors", folder / "imports")  # what is imported late is now there
    calls = calls_of_a_training(folder)
    kills = 0
    while kills < KILLS:
        # Building the network alone takes a seventh of the calls: some kills come before a step.
        status = forked(folder, draw.randrange(1, calls // 5))
        assert os.WIFSIGNALED(status), f"ended by itself after {kills} kills, status {status}"
        kills += 1
        found = Checkpoint(folder / "resumed" / "0.safetensors").load()
        print(found[1]["step"] if found else 0)
    assert forked(folder, 0) == 0


if __name__ == "__main__":
    main()
