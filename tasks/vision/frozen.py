"""The head-training stage: a linear or small dense head on a matrix of frozen features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.vision.balance import Sampler, Weighting, class_weights
from tasks.vision.device import on_device
from tasks.vision.steps import Training


def head_training(
    head: nn.Module,
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    classes: int,
    *,
    weighting: Weighting = "none",
    sampler: Sampler = "shuffled",
) -> Training:
    """Make the training of a head on features; both matrices lie whole on the head's device.

    Args:
        head: float32 [n, D] -> logits float32 [n, C].
        train: features float32 [n, D] and labels int64 [n].
        val: the same of the validation split.
        classes: C.
        weighting: see `balance.class_weights`.
        sampler: see `balance.epoch_order`.
    """
    parameters = list(head.parameters())
    device = parameters[0].device
    features, labels = (torch.from_numpy(a).to(device) for a in train)
    val_features = torch.from_numpy(val[0]).to(device)
    weights = class_weights(train[1], classes, weighting)

    def batch(which: NDArray[np.int64], _epoch: int) -> tuple[Tensor, Tensor]:
        rows = on_device(which, device)
        return features[rows], labels[rows]

    @torch.inference_mode()
    def validate() -> Tensor:
        logits: Tensor = head.eval()(val_features)
        return logits

    return Training(
        network=head,
        kept=head,
        depths=[parameters],
        labels=train[1],
        batch=batch,
        validate=validate,
        val_labels=val[1],
        classes=classes,
        class_weights=None if weights is None else weights.to(device),
        sampler=sampler,
    )
