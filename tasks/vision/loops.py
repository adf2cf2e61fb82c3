"""The training loop that both stages share: steps, validation after each epoch, best kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tasks.vision.metrics import accuracy, f1_macro

WARM_UP = 0.1  # share of the steps in which the rate rises to its full value


@dataclass(frozen=True)
class Epoch:
    """One row of a training curve; epoch 0 is the state before the first step."""

    epoch: int
    train_loss: float | None
    val_loss: float
    val_f1_macro: float
    val_accuracy: float

    def better_than(self, other: Epoch) -> bool:
        """Compare by validation macro F1; a tie goes to the lower validation loss."""
        return (self.val_f1_macro, -self.val_loss) > (other.val_f1_macro, -other.val_loss)

    def as_row(self) -> dict[str, float | int | None]:
        """Return the row by column name."""
        return asdict(self)


@dataclass(frozen=True)
class Fitted:
    """What a training left: the best epoch's weights, its row, the whole curve.

    `diverged` is the epoch whose loss was no longer a finite number; training ended there.
    """

    weights: dict[str, Tensor]
    best: Epoch
    curve: list[Epoch]
    diverged: int | None = None


def warm_up_then_cosine(optimiser: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Raise the rate linearly, then lower it along a cosine to zero (Loshchilov, Hutter 2017)."""
    rising = max(1, round(steps * WARM_UP))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return LambdaLR(optimiser, factor)


def judge(logits: Tensor, labels: NDArray[np.int64], epoch: int, train_loss: float | None) -> Epoch:
    """Score validation logits float32 [n, C] against labels int64 [n]."""
    loss = F.cross_entropy(logits, torch.from_numpy(labels).to(logits.device)).item()
    predicted = logits.argmax(1).cpu().numpy()
    return Epoch(
        epoch,
        train_loss,
        loss,
        f1_macro(labels, predicted, logits.shape[1]),
        accuracy(labels, predicted),
    )


def fit(
    module: nn.Module,
    kept: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    validate: Callable[[int, float | None], Epoch],
    *,
    epochs: int,
    steps_an_epoch: int,
    on_epoch: Callable[[Epoch], None],
) -> Fitted:
    """Train a module and keep the weights of the best epoch, the start (epoch 0) included.

    Args:
        module: maps the batches' inputs to logits float32 [n, C]; put into train mode here.
        kept: the module whose weights are kept; it shares what trains with `module`.
        optimiser: over the parameters to train.
        batches: called once an epoch; yields (inputs, labels int64 [n]) on the device.
        validate: (epoch, mean training loss or None) -> that epoch's row; sets eval itself.
        epochs: 0 leaves the module as it is.
        steps_an_epoch: number of batches, for the rate's course.
        on_epoch: told of each row as it comes.
    """
    schedule = warm_up_then_cosine(optimiser, epochs * steps_an_epoch)
    best = validate(0, None)
    curve, weights = [best], _copy(kept)
    on_epoch(best)
    for epoch in range(1, epochs + 1):
        module.train()
        losses = []
        for inputs, labels in batches():
            loss = F.cross_entropy(module(inputs), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        # One look at the device an epoch, not one a step: each look waits for all queued work.
        train_loss = torch.stack(losses).mean().item()
        if not math.isfinite(train_loss):
            return Fitted(weights, best, curve, diverged=epoch)
        row = validate(epoch, train_loss)
        curve.append(row)
        on_epoch(row)
        if row.better_than(best):
            best, weights = row, _copy(kept)
    return Fitted(weights, best, curve)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
