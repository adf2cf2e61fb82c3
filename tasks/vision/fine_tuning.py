"""The fine-tuning stage: the last blocks, or all of them, train together with the head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.vision.augmentation import Augmentation
from tasks.vision.backbones import Classifier, fold_batchnorm, prefix, suffix
from tasks.vision.balance import Sampler, Weighting, class_weights
from tasks.vision.depthwise import keep_slow_ones_in_float32
from tasks.vision.device import on_device
from tasks.vision.features import augmented_input, extract
from tasks.vision.inference import logits_of
from tasks.vision.parallel import Processes
from tasks.vision.preprocess import PixelsOf, Preprocess, network_input
from tasks.vision.randomness import seeds_of, uniforms
from tasks.vision.recipes import Recipe
from tasks.vision.steps import Training, nothing
from tasks.vision.unfreezing import Unfreezing

BYTES = 4  # of a float32


class PartlyFrozen(nn.Module):
    """A classifier whose frozen first blocks run folded and without autograd.

    The trainable rest is the classifier's own: what trains here has trained there.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.split(classifier)

    def split(self, classifier: Classifier) -> None:
        """Divide the classifier at the boundary between what is frozen and what trains now."""
        frozen = fold_batchnorm(prefix(classifier))
        self.frozen = frozen.to(memory_format=torch.channels_last)
        self.trainable = suffix(classifier)
        keep_slow_ones_in_float32(self.trainable)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of normalised images [N, 3, S, S]."""
        with torch.no_grad():
            boundary = self.frozen(images)
        logits: Tensor = self.trainable(boundary)
        return logits


@dataclass(frozen=True)
class Split:
    """The packed pictures of a split.

    Attributes:
        pixels: by position, uint8 [n, S, S, 3].
        labels: int64 [n].
    """

    pixels: PixelsOf
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Data:
    """What a classifier trains on, and how its pictures are shown.

    Attributes:
        train: the training split.
        val: the validation split.
        spec: the preprocessing.
        augmentation: of training pictures.
        weighting: see `balance.class_weights`.
        sampler: see `balance.epoch_order`.
        cache_budget: bytes that the boundary's activations may take; 0 keeps none.
    """

    train: Split
    val: Split
    spec: Preprocess
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - frozen
    weighting: Weighting = "none"
    sampler: Sampler = "shuffled"
    cache_budget: int = 0


def fine_tuning(
    classifier: Classifier,
    data: Data,
    unfreezing: Unfreezing,
    recipe: Recipe,
    *,
    kept: nn.Module | None = None,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    say: Callable[[str], object] = nothing,
    on_cached: Callable[[int], object] = nothing,
) -> Training:
    """Make the training of a classifier's last layers and its head.

    Args:
        classifier: with the head stage's head, on its device.
        data: what it trains on.
        unfreezing: what trains when; the rest is frozen, its BatchNorm in eval.
        recipe: how.
        kept: the module whose weights are kept; the whole classifier by default.
        processes: those that train together.
        say: told whether the boundary's activations are kept, and why not.
        on_cached: told of how many pictures' activations were computed, batch by batch.

    Raises:
        RefitError: the network has not so many blocks or layers.
    """
    device = next(classifier.parameters()).device
    depths = unfreezing.depths(classifier, recipe.epochs)
    unfreezing.apply(classifier, 1)
    network = PartlyFrozen(classifier)
    classes = cast(nn.Linear, classifier.head.layers[-1]).out_features
    weights = class_weights(data.train.labels, classes, data.weighting)

    def begin_epoch(epoch: int) -> None:
        unfreezing.apply(classifier, epoch)
        network.split(classifier)

    gradual = unfreezing.mode == "gradual"
    cached = not gradual and _fits(network, data, recipe, say)
    source: _Online = (
        _Cached(network, data, recipe, processes, on_cached)
        if cached
        else (_Online(network, data, recipe, processes))
    )
    return Training(
        network=source.network,
        kept=kept or classifier,
        depths=depths,
        labels=data.train.labels,
        batch=source.batch,
        validate=source.validate,
        val_labels=data.val.labels,
        classes=classes,
        class_weights=None if weights is None else weights.to(device),
        sampler=data.sampler,
        begin_epoch=begin_epoch if gradual else nothing,
    )


class _Online:
    """Pictures through the whole network, augmented anew in each epoch."""

    def __init__(
        self, network: PartlyFrozen, data: Data, recipe: Recipe, processes: Processes
    ) -> None:
        self.network: nn.Module = network
        self._data, self._recipe, self._processes = data, recipe, processes
        self._device = next(network.parameters()).device

    def batch(self, which: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of the training pictures at positions `which`."""
        labels = on_device(self._data.train.labels[which], self._device)
        seeds = seeds_of(which, self._recipe.seed, epoch)
        data = self._data
        pixels = data.train.pixels(which)
        return augmented_input(pixels, data.spec, self._device, data.augmentation, seeds), labels

    def validate(self) -> Tensor:
        """Return the validation split's logits [m, C], each process computing its share."""
        size, count = self._recipe.batch_size, len(self._data.val)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.bfloat16):
            return self._processes.gather(
                lambda which: logits_of(self.network, self._val_inputs, which, size), count
            )

    def _val_inputs(self, which: NDArray[np.int64]) -> Tensor:
        return network_input(self._data.val.pixels(which), self._data.spec, self._device)


class _Cached(_Online):
    """Activations at the freeze boundary, computed once for each picture and its mirror image."""

    def __init__(
        self,
        network: PartlyFrozen,
        data: Data,
        recipe: Recipe,
        processes: Processes,
        on_cached: Callable[[int], object],
    ) -> None:
        super().__init__(network, data, recipe, processes)
        self.network = network.trainable
        self._on_cached = on_cached
        self._frozen = network.frozen.eval()
        self._views = [self._boundary(data.train, flip) for flip in (False, True)]
        self._val = self._boundary(data.val, False)

    def _boundary(self, split: Split, flip: bool) -> Tensor:
        def inputs_of(which: NDArray[np.int64]) -> Tensor:
            images = network_input(split.pixels(which), self._data.spec, self._device)
            return images.flip(-1) if flip else images

        def rows_of(which: NDArray[np.int64]) -> Tensor:
            found = extract(self._frozen, inputs_of, which, on_batch=self._on_cached)
            return torch.from_numpy(found).to(self._device)

        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.bfloat16):
            return self._processes.gather(rows_of, len(split))

    def batch(self, which: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """Return activations and labels of the training pictures at positions `which`."""
        rows = on_device(which, self._device)
        drawn = uniforms(seeds_of(which, self._recipe.seed, epoch), 1)[:, 0]
        mirrored = on_device(drawn < self._data.augmentation.flip, self._device)
        plain, flipped = (view[rows] for view in self._views)
        inputs = torch.where(mirrored.view(-1, 1, 1, 1), flipped, plain)
        labels = on_device(self._data.train.labels[which], self._device)
        return inputs.contiguous(memory_format=torch.channels_last), labels

    def _val_inputs(self, which: NDArray[np.int64]) -> Tensor:
        rows = self._val[on_device(which, self._device)]
        return rows.contiguous(memory_format=torch.channels_last)


def _fits(network: PartlyFrozen, data: Data, recipe: Recipe, say: Callable[[str], object]) -> bool:
    """Tell whether the boundary's activations of all pictures may be kept."""
    if not data.cache_budget or next(network.frozen.parameters(), None) is None:
        return False
    if not data.augmentation.only_flips or recipe.mixup or recipe.cutmix:
        say("activations are not kept: every epoch shows other pictures (augmentation, mixing)")
        return False
    device = next(network.parameters()).device
    with torch.inference_mode():
        probe = network_input(data.val.pixels(np.zeros(1, np.int64)), data.spec, device)
        each = math.prod(network.frozen.eval()(probe).shape) * BYTES
    needed = each * (2 * len(data.train) + len(data.val))
    fits = bool(needed <= data.cache_budget)
    say(
        f"activations before the first trainable layer: {needed / 2**20:.0f} MB, "
        f"{'kept: computed once' if fits else 'more than cache_budget_mb: computed every epoch'}"
    )
    return fits
