"""The fine-tuning stage: the last blocks, or all of them, train together with the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.vision.backbones import Classifier, fold_batchnorm, freeze_all_but, prefix, suffix
from tasks.vision.features import PixelsOf, network_input
from tasks.vision.loops import Epoch, Fitted, fit, judge
from tasks.vision.preprocess import Preprocess


class PartlyFrozen(nn.Module):
    """A classifier whose frozen first blocks run folded and without autograd.

    The trainable rest is the classifier's own: what trains here has trained there.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        frozen = fold_batchnorm(prefix(classifier))
        self.frozen = frozen.to(memory_format=torch.channels_last)
        self.trainable = suffix(classifier)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of normalised images [N, 3, S, S]."""
        with torch.no_grad():
            boundary = self.frozen(images)
        logits: Tensor = self.trainable(boundary)
        return logits


def freeze_norms(classifier: Classifier) -> None:
    """Freeze every BatchNorm of the backbone, statistics and affine.

    A pretrained block's statistics and the head that was trained on its output belong together:
    normalising by the batch from one step to the next gives the head features it never saw.
    """
    for module in classifier.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


@torch.inference_mode()
def predict_logits(
    classifier: nn.Module,
    pixels_of: PixelsOf,
    count: int,
    spec: Preprocess,
    batch_size: int,
    on_batch: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Return logits float32 [count, C] of packed pictures; puts the classifier into eval.

    Args:
        classifier: on its device.
        pixels_of: gives packed pictures by position.
        count: how many pictures there are.
        spec: the preprocessing.
        batch_size: pictures a forward pass.
        on_batch: told of how many pictures were done, batch by batch.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    out = []
    for which in np.array_split(np.arange(count), range(batch_size, count, batch_size)):
        out.append(classifier(network_input(pixels_of(which), spec, device)).float())
        on_batch(len(which))
    return torch.cat(out)


def fine_tune(
    classifier: Classifier,
    train: tuple[PixelsOf, NDArray[np.int64]],
    val: tuple[PixelsOf, NDArray[np.int64]],
    spec: Preprocess,
    *,
    trainable_blocks: int,
    norms_frozen: bool,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    on_epoch: Callable[[Epoch], None],
    on_batch: Callable[[int], object],
) -> Fitted:
    """Train the last blocks and the head; epoch 0 of the curve is the head stage's score.

    The weights kept are those of the best epoch by validation, epoch 0 included, so that the
    stage never hands on less than it was given.

    Args:
        classifier: with the head stage's head, on its device.
        train: packed pixels by position, and labels int64 [n].
        val: the same of the validation split.
        spec: the preprocessing.
        trainable_blocks: how many of the backbone's last blocks train; the rest is frozen, its
            BatchNorm in eval.
        norms_frozen: whether the trainable blocks' BatchNorm stays as it is, too.
        epochs: passes over `train`.
        batch_size: pictures a step.
        lr: AdamW's rate at its highest.
        weight_decay: AdamW's, decoupled (Loshchilov, Hutter 2019).
        on_epoch: told of each row of the curve.
        on_batch: told of how many pictures were done, in training and validation.
    """
    device = next(classifier.parameters()).device
    freeze_all_but(classifier, trainable_blocks)
    if norms_frozen:
        freeze_norms(classifier)
    network = PartlyFrozen(classifier)
    optimiser = torch.optim.AdamW(
        [p for p in classifier.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay
    )
    pixels_of, labels = train

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(labels)).split(batch_size):
            # A last batch of one picture has no variance for BatchNorm to train on.
            if len(rows) == 1 and len(labels) > 1:
                continue
            which = rows.numpy()
            images = network_input(pixels_of(which), spec, device)
            mirrored = torch.rand(len(which), 1, 1, 1).to(device) < 0.5
            yield (
                torch.where(mirrored, images.flip(-1), images),
                torch.from_numpy(labels[which]).to(device),
            )
            on_batch(len(which))

    def validate(epoch: int, train_loss: float | None) -> Epoch:
        logits = predict_logits(network, val[0], len(val[1]), spec, batch_size, on_batch)
        return judge(logits, val[1], epoch, train_loss)

    return fit(
        network,
        classifier,
        optimiser,
        batches,
        validate,
        epochs=epochs,
        steps_an_epoch=-(-len(labels) // batch_size),
        on_epoch=on_epoch,
    )
