"""Two processes train what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.vision import checkpoints
from tasks.vision.parallel import Processes, join
from tests.unit import gloo_training

ROOT = Path(__file__).resolve().parents[2]
MODES = ("plain", "cached", "mixed", "norms")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes made of the toy, in each mode."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "tests.unit.gloo_training", str(folder), *MODES]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_both_processes_end_with_the_same_bytes(two: Path, mode: str) -> None:
    first, second = (two / f"{mode}.{rank}.safetensors" for rank in (0, 1))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("mode", ["plain", "cached", "mixed"])
def test_two_processes_train_what_one_does(two: Path, tmp_path: Path, mode: str) -> None:
    alone = tmp_path / f"{mode}.safetensors"
    gloo_training.train(alone, mode)
    one, _ = checkpoints.load(alone)
    both, _ = checkpoints.load(two / f"{mode}.safetensors")
    start = gloo_training.toy.classifier().state_dict()
    for name, tensor in one.items():
        assert torch.allclose(both[name], tensor, atol=1e-5), name
    # Not because nothing happened.
    trained = "backbone.features.8.weight"
    assert (one[trained] - start[trained]).abs().max() > 1e-3


def test_shares_are_the_whole_in_order() -> None:
    which = np.arange(7)
    shares = [Processes(rank, 3).share(which) for rank in range(3)]
    assert np.concatenate(shares).tolist() == which.tolist()
    assert [len(share) for share in shares] == [3, 2, 2]


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(torch.device("cpu")) == Processes(0, 1)
    assert Processes().sum_gradients([], True) is True
    assert Processes().from_first(lambda: 5) == 5
