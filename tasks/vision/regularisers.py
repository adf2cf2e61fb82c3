"""What keeps a network from learning its pictures by heart: mixed batches, averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tasks.vision.recipes import Recipe


class Mixing:
    """MixUp, CutMix, either by turns or none of them, on a batch."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        self._kinds: list[Any] = []
        if recipe.mixup or recipe.cutmix:
            from torchvision.transforms import v2  # seconds, and most trainings do without

            if recipe.mixup:
                self._kinds.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
            if recipe.cutmix:
                self._kinds.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))

    @property
    def is_on(self) -> bool:
        """Whether it mixes at all."""
        return bool(self._kinds)

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets: labels int64 [n], or probabilities float32 [n, C] if mixed.

        Each picture is mixed with the one before it, the first with the last, all in the same
        way, which is drawn from torch's global generator.
        """
        if not self._kinds:
            return inputs, labels
        kind = self._kinds[int(torch.randint(len(self._kinds), ()))]
        mixed: tuple[Tensor, Tensor] = kind(inputs, labels)
        return mixed


class Average:
    """The exponential moving average of a module's weights (Polyak, Juditsky 1992).

    The decay rises to its full value, so that a short training does not end near its start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        def average(means: Any, currents: Any, count: Any) -> None:
            done = int(count)
            torch._foreach_lerp_(means, currents, 1 - min(decay, (1 + done) / (10 + done)))

        self._module = module
        self.model = AveragedModel(module, multi_avg_fn=average)

    def update(self) -> None:
        """Take the module's weights of now into the average; buffers are the module's own."""
        self.model.update_parameters(self._module)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged weights into the module for the length of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        pairs = zip(self._module.parameters(), self.model.module.parameters(), strict=True)
        for own, mean in pairs:
            own.data, mean.data = mean.data, own.data
