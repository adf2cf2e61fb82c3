"""A network of three tiny blocks, pictures that it can learn, and its training."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.vision.augmentation import Augmentation
from tasks.vision.backbones import Backbone, Classifier, Head
from tasks.vision.fine_tuning import Data, Split, fine_tuning
from tasks.vision.parallel import Processes
from tasks.vision.preprocess import Preprocess
from tasks.vision.recipes import Recipe
from tasks.vision.steps import Training
from tasks.vision.unfreezing import Unfreezing

CLASSES = 3
SPEC = Preprocess(10, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
# All that can be asked for at once, so that nothing of it is forgotten at a resume.
EVERYTHING = Recipe(
    epochs=8,
    batch_size=8,
    lr=0.01,
    seed=3,
    weight_decay=0.01,
    lr_decay=0.5,
    label_smoothing=0.1,
    mixup=0.4,
    cutmix=1.0,
    ema=0.9,
    clip_norm=1.0,
    accumulate=2,
)
SHOWN = Augmentation(crop_area=0.5, rotation=20, brightness=0.3, erasing=0.5)


def plain_classifier(dropout: float = 0.0) -> Classifier:
    """Three blocks of convolution, norm and pooling, and a linear head, for 8x8 pictures."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for channels in ((3, 4), (4, 5), (5, 6)):
        layers += [nn.Conv2d(*channels, 3, padding=1), nn.BatchNorm2d(channels[1]), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    backbone = Backbone("toy", {"features": nn.Sequential(*layers)})
    return Classifier(backbone, Head(backbone.width, CLASSES, hidden=(), dropout=dropout))


def classifier(dropout: float = 0.0) -> Classifier:
    """The same, with norms as after a pretraining, unlike those of a new network."""
    made = plain_classifier(dropout)
    for name, buffer in made.backbone.named_buffers():
        if name.endswith("running_mean"):
            nn.init.uniform_(buffer, -0.2, 0.2)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return made


def split(count: int, seed: int) -> Split:
    """Noise with one bright channel, which is the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    pixels = rng.integers(0, 160, (count, 10, 10, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 60
    return Split(lambda which: pixels[which], labels.astype(np.int64))


def data(**more: Any) -> Data:
    """40 pictures to train on, 16 to validate."""
    return Data(split(40, 5), split(16, 6), SPEC, **more)


def training(
    network: Classifier,
    recipe: Recipe,
    mode: str = "last_block",
    *,
    norms_frozen: bool = True,
    processes: Processes = Processes(),  # noqa: B008 - frozen
    **more: Any,
) -> Training:
    """The training of a toy classifier."""
    chosen = Unfreezing(mode, norms_frozen)
    return fine_tuning(network, data(**more), chosen, recipe, processes=processes)
