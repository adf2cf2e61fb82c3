"""The training loop that both stages share: epochs, validation, the best kept, going on again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch import Tensor

from tasks.vision.confusion import accuracy, f1_macro
from tasks.vision.parallel import Processes
from tasks.vision.recipes import Metric, Recipe
from tasks.vision.resume import SECONDS, Checkpoint, postponed_signals
from tasks.vision.steps import Stepper, Training, nothing

EXPLODED = 100.0  # times the loss of guessing, or of the start: nothing good follows
LOOK_EVERY = 100  # steps between two looks at the loss: each look waits for the device
RETRY_RATE = 0.1  # of the rate that diverged


@dataclass(frozen=True)
class Epoch:
    """One row of a training curve; epoch 0 is the state before the first step."""

    epoch: int
    train_loss: float | None
    val_loss: float
    val_f1_macro: float
    val_accuracy: float

    def better_than(self, other: Epoch, metric: Metric = "f1_macro") -> bool:
        """Compare by a metric of the validation split; a tie goes to the lower loss."""
        return self._merit(metric) > other._merit(metric)

    def _merit(self, metric: Metric) -> tuple[float, float]:
        first = {"f1_macro": self.val_f1_macro, "accuracy": self.val_accuracy, "loss": 0.0}
        return first[metric], -self.val_loss

    def as_row(self) -> dict[str, float | int | None]:
        """Return the row by column name."""
        return asdict(self)


@dataclass(frozen=True)
class Fitted:
    """What a training left: the best epoch's weights, its row, the whole curve.

    `diverged` is the epoch whose loss was no finite number, or exploded; training ended there, and
    weights and best row are those of epoch 0.
    """

    weights: dict[str, Tensor]
    best: Epoch
    curve: list[Epoch]
    diverged: int | None = None


@dataclass(frozen=True)
class Listener:
    """Who is told how a training goes.

    Attributes:
        on_epoch: told of each row of the curve, those from before an interruption again.
        on_pictures: told of how many pictures were trained on.
        say: told of what a person should know.
    """

    on_epoch: Callable[[Epoch], object] = nothing
    on_pictures: Callable[[int], object] = nothing
    say: Callable[[str], object] = nothing


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
    training: Training,
    recipe: Recipe,
    *,
    listener: Listener = Listener(),
    processes: Processes = Processes(),  # noqa: B008 - frozen
    checkpoints: Path | None = None,
    seconds: float = SECONDS,
) -> Fitted:
    """Train and keep the weights of the best epoch, the start (epoch 0) included.

    A training that diverges is stopped, said so, and tried once more from the start with a tenth
    of the rate. If that diverges as well, the start is what is kept.

    Args:
        training: what is trained.
        recipe: how.
        listener: told how it goes.
        processes: those that train together.
        checkpoints: folder for checkpoints, named by all that the result depends on; a training
            that was killed goes on from what it finds there, and ends with the same bits.
        seconds: between two checkpoints.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; the checkpoint is kept.
    """
    start = _copy(training.kept.state_dict())
    for attempt in (0, 1):
        file = Checkpoint(checkpoints / f"{attempt}.safetensors", seconds) if checkpoints else None
        fitted = _Run(training, recipe, start, listener, processes, file).to_the_end()
        if fitted.diverged is None:
            return fitted
        training.kept.load_state_dict(start)
        lower = recipe.lr * RETRY_RATE
        then = f"once more with {lower:g}" if attempt == 0 else "the start is kept"
        listener.say(f"diverged in epoch {fitted.diverged} at a rate of {recipe.lr:g}: {then}")
        recipe = replace(recipe, lr=lower)
    return fitted


class _Run:
    """One attempt: where it stands, and how to get to the end from there."""

    def __init__(
        self,
        training: Training,
        recipe: Recipe,
        start: Mapping[str, Tensor],
        listener: Listener,
        processes: Processes,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._training, self._recipe, self._start = training, recipe, start
        self._listener, self._processes, self._checkpoint = listener, processes, checkpoint
        self._stepper = Stepper(training, recipe, processes, listener.say)
        moving = {id(parameter) for parameter in training.parameters}
        buffers = {name for name, _ in training.kept.named_buffers()}
        # Frozen weights are the start's: they need not be written again and again.
        self._moving = buffers | {
            name for name, p in training.kept.named_parameters() if id(p) in moving
        }
        self._curve: list[Epoch] = []
        self._weights: dict[str, Tensor] = dict(start)
        self._best = 0  # row of the curve
        self._step = 0  # steps taken
        self._losses: list[Tensor] = []  # of the epoch's steps

    def to_the_end(self) -> Fitted:
        """Train all epochs, or those that are left."""
        if not self._resumed():
            self._add_row(None)
        with postponed_signals() as stop_asked:
            while not self._is_over():
                epoch = len(self._curve)
                if not self._train_epoch(epoch, stop_asked) or not self._close_epoch():
                    return Fitted(dict(self._start), self._curve[0], self._curve, diverged=epoch)
        return Fitted(self._weights, self._curve[self._best], self._curve)

    def _is_over(self) -> bool:
        done = len(self._curve) - 1
        patience = self._recipe.patience
        return done >= self._recipe.epochs or (0 < patience <= done - self._best)

    def _train_epoch(self, epoch: int, stop_asked: Callable[[], bool]) -> bool:
        """Take the steps of an epoch that are left; False if the loss diverged."""
        self._training.begin_epoch(epoch)
        self._training.network.train()
        batches = self._training.batches(self._recipe, epoch)
        for batch in batches[self._step - (epoch - 1) * len(batches) :]:
            loss, stop = self._stepper.step(batch, self._step, epoch, stop_asked())
            self._losses.append(loss)
            self._step += 1
            self._listener.on_pictures(len(batch))
            if self._step % LOOK_EVERY == 0 and not self._is_sound(self._mean_loss(LOOK_EVERY)):
                return False
            self._keep_place(stop)
        return True

    def _close_epoch(self) -> bool:
        """Validate and compare; False if the loss diverged."""
        train_loss = self._mean_loss()
        if not self._is_sound(train_loss):
            return False
        self._processes.average_buffers(self._training.network)
        if not self._is_sound(self._add_row(train_loss).val_loss):
            return False
        self._losses = []
        self._keep_place(False)
        return True

    def _add_row(self, train_loss: float | None) -> Epoch:
        average = self._stepper.average
        with average.in_place() if average else nullcontext():
            logits = self._training.validate()
            row = judge(logits, self._training.val_labels, len(self._curve), train_loss)
            self._curve.append(row)
            best = self._curve[self._best]
            if math.isfinite(row.val_loss) and row.better_than(best, self._recipe.metric):
                self._best = row.epoch
                self._weights = {**self._start, **self._copy_moving()}
        self._listener.on_epoch(row)
        return row

    def _mean_loss(self, last: int = 0) -> float:
        losses = torch.stack(self._losses[-last:])
        self._processes.sum([losses])
        return float(losses.mean())

    def _is_sound(self, loss: float) -> bool:
        guessing = math.log(self._training.classes)
        return math.isfinite(loss) and loss <= EXPLODED * max(guessing, self._curve[0].val_loss)

    def _copy_moving(self) -> dict[str, Tensor]:
        state = self._training.kept.state_dict()
        return _copy({name: state[name] for name in state if name in self._moving})

    # Where it stands: written now and then, and read again after an interruption.

    def _keep_place(self, stop: bool) -> None:
        """Write a checkpoint if it is time; stop after it if that was asked for."""
        checkpoint = self._checkpoint
        if checkpoint and self._processes.is_first and (stop or checkpoint.is_due):
            checkpoint.save(self._tensors(), self._position())
        if stop:
            raise KeyboardInterrupt

    def _position(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "best": self._best,
            "micro_batch": self._stepper.micro_batch,
            "curve": [row.as_row() for row in self._curve],
        }

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{name}": value for name, value in self._copy_moving().items()}
        found |= {f"best.{name}": self._weights[name] for name in self._moving}
        if self._losses:
            found["losses"] = torch.stack(self._losses)
        state = self._stepper.optimiser.state_dict()["state"]
        for index, values in state.items():
            found |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
        if self._stepper.average:
            averaged = self._stepper.average.model.state_dict()
            found |= {f"average.{name}": value for name, value in averaged.items()}
        return found

    def _resumed(self) -> bool:
        """Go to where the checkpoint stands, if there is one."""
        found = self._processes.from_first(
            lambda: self._checkpoint.load() if self._checkpoint else None
        )
        if found is None:
            return False
        tensors, position = found
        self._training.kept.load_state_dict({**self._start, **_under("model.", tensors)})
        self._weights = {**self._start, **_under("best.", tensors)}
        self._load_optimiser(_under("optimiser.", tensors))
        if self._stepper.average:
            self._stepper.average.model.load_state_dict(_under("average.", tensors))
        device = self._training.parameters[0].device
        self._losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
        self._step, self._best = position["step"], position["best"]
        self._stepper.micro_batch = position["micro_batch"]
        self._curve = [Epoch(**row) for row in position["curve"]]
        for row in self._curve:
            self._listener.on_epoch(row)
        self._listener.say(f"resumed in epoch {len(self._curve)}, after step {self._step}")
        return True

    def _load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        optimiser = self._stepper.optimiser
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        for key, stored in tensors.items():
            index, _, name = key.partition(".")
            parameter = parameters[int(index)]
            # Laid out as the parameter is, which the fused kernels expect.
            like = parameter if stored.shape == parameter.shape else stored
            value = torch.empty_like(like, dtype=stored.dtype, device=parameter.device)
            optimiser.state[parameter][name] = value.copy_(stored).detach()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
