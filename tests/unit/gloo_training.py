"""A program for `torchrun`: train the toy in several processes; the first writes what came of it.

Usage: python -m torch.distributed.run --nproc-per-node N -m tests.unit.gloo_training OUT MODE
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from tasks.vision import checkpoints
from tasks.vision.loops import fit
from tasks.vision.parallel import join
from tasks.vision.recipes import Recipe
from tests.unit import toy

RECIPE = Recipe(
    epochs=3, batch_size=8, lr=0.01, seed=3, weight_decay=0.01, clip_norm=1.0, ema=0.9, accumulate=2
)


def train(out: Path, mode: str) -> None:
    """Train with augmentation; `norms` also trains BatchNorm, `mixed` mixes pictures."""
    processes = join(torch.device("cpu"))
    norms, cache = mode == "norms", (1 << 20 if mode == "cached" else 0)
    recipe = replace(RECIPE, mixup=0.4, cutmix=1.0) if mode == "mixed" else RECIPE
    shown = {} if cache else {"augmentation": toy.SHOWN}
    made = toy.training(
        toy.classifier(),
        recipe,
        "last_2_blocks",
        norms_frozen=not norms,
        processes=processes,
        weighting="balanced",
        cache_budget=cache,
        **shown,
    )
    fitted = fit(made, recipe, processes=processes, checkpoints=out.with_suffix(""), seconds=0.0)
    every = out.with_name(f"{out.stem}.{processes.rank}.safetensors")
    checkpoints.save(every, fitted.weights, {"curve": str(fitted.curve)})
    if processes.is_first:
        checkpoints.save(out, fitted.weights, {"curve": str(fitted.curve)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in sys.argv[2:]:
        train(Path(sys.argv[1]) / f"{kind}.safetensors", kind)
