"""The head-training stage: a linear or small dense head on a matrix of frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.vision.loops import Epoch, Fitted, fit, judge


def train_head(
    head: nn.Module,
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    val: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    on_epoch: Callable[[Epoch], None],
) -> Fitted:
    """Train a head on features; both matrices lie whole on the head's device.

    Args:
        head: float32 [n, D] -> logits float32 [n, C].
        train: features float32 [n, D] and labels int64 [n].
        val: the same of the validation split.
        epochs: passes over `train`.
        batch_size: rows a step.
        lr: AdamW's rate at its highest.
        weight_decay: AdamW's, decoupled (Loshchilov, Hutter 2019).
        on_epoch: told of each row of the curve.
    """
    device = next(head.parameters()).device
    features, labels = (torch.from_numpy(a).to(device) for a in train)
    val_features = torch.from_numpy(val[0]).to(device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(labels)).to(device).split(batch_size):
            yield features[rows], labels[rows]

    @torch.inference_mode()
    def validate(epoch: int, train_loss: float | None) -> Epoch:
        return judge(head.eval()(val_features), val[1], epoch, train_loss)

    return fit(
        head,
        head,
        optimiser,
        batches,
        validate,
        epochs=epochs,
        steps_an_epoch=-(-len(labels) // batch_size),
        on_epoch=on_epoch,
    )
