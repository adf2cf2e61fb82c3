"""A training that was killed goes on and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tasks.vision import checkpoints
from tasks.vision.loops import Epoch, Listener, fit
from tasks.vision.resume import Checkpoint
from tests.unit import toy

ROOT = Path(__file__).resolve().parents[2]
PLAIN = replace(toy.EVERYTHING, epochs=3, mixup=0.0, cutmix=0.0)


def test_24_kills_at_any_moment_leave_the_bytes_of_an_undisturbed_training(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.killed_training", str(tmp_path), "1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = [int(line) for line in done.stdout.split()]
    assert len(steps) >= 20
    assert len(set(steps)) > 5  # the kills hit many places, and each life went on from the last
    assert steps == sorted(steps)
    whole, resumed = (tmp_path / f"{name}.safetensors" for name in ("whole", "resumed"))
    assert resumed.read_bytes() == whole.read_bytes()


def interrupted_at(step: int, folder: Path, number: signal.Signals) -> list[str]:
    """Train the toy and send this process a signal after a step; return what was said."""
    said: list[str] = []
    taken = 0

    def on_pictures(_count: int) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            os.kill(os.getpid(), number)

    fit(
        toy.training(toy.classifier(), PLAIN),
        PLAIN,
        listener=Listener(on_pictures=on_pictures, say=said.append),
        checkpoints=folder,
        seconds=1e9,
    )
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_training_with_its_place_kept(
    tmp_path: Path, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        interrupted_at(7, tmp_path, number)
    # The signal is seen before the next step, whose end is the place.
    found = Checkpoint(tmp_path / "0.safetensors").load()
    assert found is not None
    assert found[1]["step"] == 8
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    rows: list[Epoch] = []
    said: list[str] = []
    resumed = fit(
        toy.training(toy.classifier(), PLAIN),
        PLAIN,
        listener=Listener(on_epoch=rows.append, say=said.append),
        checkpoints=tmp_path,
    )
    whole = fit(toy.training(toy.classifier(), PLAIN), PLAIN)
    assert said == ["resumed in epoch 2, after step 8"]
    assert rows == resumed.curve == whole.curve
    assert all(torch.equal(whole.weights[n], t) for n, t in resumed.weights.items())


def test_a_finished_checkpoint_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(toy.training(toy.classifier(), PLAIN), PLAIN, checkpoints=tmp_path, seconds=0.0)
    pictures: list[int] = []
    again = fit(
        toy.training(toy.classifier(), PLAIN),
        PLAIN,
        listener=Listener(on_pictures=pictures.append),
        checkpoints=tmp_path,
    )
    assert pictures == []
    assert again.curve == first.curve
    assert all(torch.equal(first.weights[n], t) for n, t in again.weights.items())


def test_a_checkpoint_holds_no_frozen_weight(tmp_path: Path) -> None:
    fit(toy.training(toy.classifier(), PLAIN), PLAIN, checkpoints=tmp_path, seconds=0.0)
    tensors, _ = checkpoints.load(tmp_path / "0.safetensors")
    stored = {n.removeprefix("model.") for n in tensors if n.startswith("model.")}
    assert "backbone.features.8.weight" in stored  # the last block's convolution
    assert "backbone.features.0.weight" not in stored


@pytest.mark.parametrize("content", [b"", b"half a file", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_checkpoint_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0.safetensors"
    path.write_bytes(content)
    assert Checkpoint(path).load() is None
