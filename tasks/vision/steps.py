"""What is trained, and one optimiser step over a whole batch of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.vision import optimisers
from tasks.vision.balance import Sampler, epoch_order
from tasks.vision.parallel import Processes
from tasks.vision.randomness import seed_of
from tasks.vision.recipes import Recipe
from tasks.vision.regularisers import Average, Mixing


def nothing(_: Any) -> None:
    """Be told, and do nothing."""


@dataclass(frozen=True)
class Training:
    """What is trained, and on what.

    Attributes:
        network: what `batch` gives -> logits float32 [n, C]; put into train mode by the loop.
        kept: the module whose weights are kept; it shares what trains with `network`.
        depths: all parameters that train in any epoch, from output to input.
        labels: int64 [n] of the training split.
        batch: (positions int64 [k], epoch) -> inputs and labels int64 [k] on the device; the same
            for the same arguments.
        validate: gives the validation split's logits [m, C]; sets eval itself.
        val_labels: int64 [m].
        classes: C.
        class_weights: float32 [C] on the device, or None for equal ones.
        sampler: how an epoch's pictures are drawn.
        begin_epoch: told of each epoch, from 1, before its first batch.
    """

    network: nn.Module
    kept: nn.Module
    depths: Sequence[Sequence[nn.Parameter]]
    labels: NDArray[np.int64]
    batch: Callable[[NDArray[np.int64], int], tuple[Tensor, Tensor]]
    validate: Callable[[], Tensor]
    val_labels: NDArray[np.int64]
    classes: int
    class_weights: Tensor | None = None
    sampler: Sampler = "shuffled"
    begin_epoch: Callable[[int], object] = nothing

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that trains in any epoch."""
        return [parameter for depth in self.depths for parameter in depth]

    def batches(self, recipe: Recipe, epoch: int) -> list[NDArray[np.int64]]:
        """Return an epoch's positions, cut into batches."""
        order = epoch_order(self.labels, self.sampler, recipe.seed, epoch)
        size = recipe.batch_size
        batches = np.array_split(order, range(size, len(order), size))
        # A last batch of one picture has no variance for BatchNorm to train on.
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


@dataclass
class Stepper:
    """Takes one optimiser step after the other.

    Attributes:
        training: what is trained.
        recipe: how.
        processes: those that share every batch.
        say: told of what a person should know.
        micro_batch: pictures that pass through the network at once; halved when memory runs out.
        optimiser: over all of `training.parameters`.
        average: the moving average of the weights, if the recipe wants one.
    """

    training: Training
    recipe: Recipe
    processes: Processes
    say: Callable[[str], object]
    micro_batch: int = field(init=False)
    optimiser: torch.optim.Optimizer = field(init=False)
    average: Average | None = field(init=False)

    def __post_init__(self) -> None:
        """Build the optimiser and what else the recipe asks for."""
        recipe, training = self.recipe, self.training
        self.micro_batch = -(-recipe.batch_size // (recipe.accumulate * self.processes.count))
        groups = optimisers.parameter_groups(training.depths, recipe)
        self.optimiser = optimisers.build(groups, recipe)
        self.average = Average(training.kept, recipe.ema) if recipe.ema else None
        self._mixing = Mixing(recipe, training.classes)
        self._steps = recipe.epochs * len(training.batches(recipe, 1))

    def step(
        self, batch: NDArray[np.int64], number: int, epoch: int, stop: bool
    ) -> tuple[Tensor, bool]:
        """Take one step.

        Args:
            batch: positions int64 [n], of all processes together.
            number: steps taken before this one.
            epoch: from 1.
            stop: whether this process must stop.

        Returns:
            this process's part of the batch's mean loss, on the device, and whether any process
            must stop.
        """
        while (loss := self._gradients(batch, number, epoch)) is None:
            self._halve()
        trained = [p for p in self.training.parameters if p.requires_grad]
        stop = self.processes.sum_gradients(trained, stop)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(trained, self.recipe.clip_norm)
        factor = optimisers.rate_factor(number, self._steps, self.recipe.warm_up)
        optimisers.set_rates(self.optimiser, factor)
        self.optimiser.step()
        if self.average:
            self.average.update()
        return loss, stop

    def _gradients(self, batch: NDArray[np.int64], number: int, epoch: int) -> Tensor | None:
        """Add up the gradients of this process's pictures; None if memory did not do."""
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.training.parameters[0].device)
        mine = self.processes.share(np.arange(len(batch)))
        try:
            for start in range(0, len(mine), self.micro_batch):
                places = mine[start : start + self.micro_batch]
                inputs, targets = self._mixed(batch, places, number, epoch)
                # For dropout: so a resumed training needs no generator's state.
                torch.manual_seed(seed_of(self.recipe.seed, number, self.processes.rank, start))
                loss = self._summed_loss(inputs, targets) / len(batch)
                loss.backward()
                total += loss.detach()
        except torch.OutOfMemoryError:
            if self.micro_batch == 1:
                raise
            return None  # leaving the block frees what the error's frames hold
        return total

    def _mixed(
        self, batch: NDArray[np.int64], places: NDArray[np.int64], number: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of some places of a batch, mixed as the whole batch would be.

        A picture is mixed with the one before it, the first with the last: the one before the
        first of these places is fetched as well where they are not the whole batch.
        """
        extra = int(self._mixing.is_on and len(places) < len(batch))
        rows = np.concatenate([places[:extra] - 1, places])
        inputs, labels = self.training.batch(batch[rows], epoch)
        torch.manual_seed(seed_of(self.recipe.seed, number))
        inputs, targets = self._mixing(inputs, labels)
        return inputs[extra:], targets[extra:]

    def _summed_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss as a sum over pictures, so that micro-batches add up to the batch."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            logits = self.training.network(inputs)
        return F.cross_entropy(
            logits.float(),
            targets,
            weight=self.training.class_weights,
            reduction="sum",
            label_smoothing=self.recipe.label_smoothing,
        )

    def _halve(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.micro_batch = -(-self.micro_batch // 2)
        self.say(
            f"out of memory: {self.micro_batch} pictures at once from now on; "
            f"a step is still over {self.recipe.batch_size}"
        )
