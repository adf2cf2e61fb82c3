"""The optimiser's parameter groups, by depth and kind, and the rate's course."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tasks.vision.recipes import Recipe

MOMENTUM = 0.9


def parameter_groups(depths: Sequence[Sequence[nn.Parameter]], recipe: Recipe) -> list[Any]:
    """Group parameters by rate and decay.

    Args:
        depths: from output to input; each depth's rate is `recipe.lr_decay` times the one
            before (Howard, Ruder, ULMFiT, 2018).
        recipe: the rates.

    Returns:
        groups with `initial_lr`; norms and biases, the parameters of one dimension, have no
        weight decay.
    """
    groups = []
    for depth, parameters in enumerate(depths):
        rate = recipe.lr * recipe.lr_decay**depth
        for decay, vectors in ((recipe.weight_decay, False), (0.0, True)):
            chosen = [p for p in parameters if (p.dim() <= 1) == vectors]
            if chosen:
                groups.append(
                    {"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": decay}
                )
    return groups


def build(groups: list[Any], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser, with the fused kernels."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=MOMENTUM, nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def rate_factor(step: int, steps: int, warm_up: float) -> float:
    """Return the rate's share of its highest: a linear rise, then a cosine to zero.

    Loshchilov, Hutter (2017) for the cosine; Goyal et al. (2017) for the warm-up.

    Args:
        step: steps done before this one.
        steps: of the whole training.
        warm_up: share of the steps in which the rate rises.
    """
    rising = max(1, round(steps * warm_up))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its highest times `factor`: no scheduler state to be restored."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
