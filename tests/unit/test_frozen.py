"""The head on a matrix of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tasks.vision.augmentation import Augmentation
from tasks.vision.backbones import Head
from tasks.vision.fine_tuning import Split, fine_tuning
from tasks.vision.frozen import head_training
from tasks.vision.loops import fit
from tasks.vision.preprocess import network_input
from tasks.vision.recipes import Recipe
from tasks.vision.unfreezing import Unfreezing
from tests.unit import toy

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=30, batch_size=16, lr=0.05, seed=2)


def clusters(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds about the corners of a triangle."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    corners = np.array([[0, 2], [2, -1], [-2, -1]], np.float32)
    noise = rng.normal(0, 0.5, (count, 2)).astype(np.float32)
    return corners[labels] + noise, labels.astype(np.int64)


def head(hidden: tuple[int, ...] = (), dropout: float = 0.0) -> Head:
    torch.manual_seed(4)
    return Head(2, 3, hidden=hidden, dropout=dropout)


def test_a_head_learns_and_the_best_epoch_is_kept() -> None:
    for module in (head(), head((8,), 0.3)):
        fitted = fit(head_training(module, clusters(90, 0), clusters(45, 1), 3), RECIPE)
        assert fitted.best.val_f1_macro > 0.95
        assert fitted.best.better_than(fitted.curve[0])
        features, labels = clusters(45, 1)
        module.load_state_dict(fitted.weights)
        with torch.inference_mode():
            logits = module.eval()(torch.from_numpy(features))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        assert abs(float(loss) - fitted.best.val_loss) < 1e-6


def test_dropout_is_the_same_in_every_run() -> None:
    runs = [
        fit(head_training(head((8,), 0.5), clusters(90, 0), clusters(45, 1), 3), RECIPE)
        for _ in range(2)
    ]
    assert runs[0].curve == runs[1].curve
    assert torch.equal(runs[0].weights["layers.0.weight"], runs[1].weights["layers.0.weight"])


def test_class_weights_come_from_the_training_split_alone() -> None:
    features, labels = clusters(90, 0)
    many = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels > 0)[:10]])
    made = head_training(
        head(), (features[many], labels[many]), clusters(45, 1), 3, weighting="balanced"
    )
    assert made.class_weights is not None
    counts = np.bincount(labels[many], minlength=3)
    assert np.allclose(made.class_weights.numpy(), len(many) / (3 * counts))


def test_the_classic_way_without_augmentation_trains_the_head_as_on_features() -> None:
    recipe = Recipe(epochs=3, batch_size=8, lr=0.05, seed=2)
    classifier, data = toy.classifier(), toy.data(augmentation=Augmentation(flip=0.0))

    def features(split: Split) -> tuple[np.ndarray, np.ndarray]:
        pixels = split.pixels(np.arange(len(split)))
        with torch.no_grad():
            seen = toy.classifier().eval().features(network_input(pixels, toy.SPEC, CPU))
        return seen.numpy(), split.labels

    before = {name: value.clone() for name, value in classifier.backbone.state_dict().items()}
    made = fine_tuning(
        classifier, data, Unfreezing("last_0_blocks", True), recipe, kept=classifier.head
    )
    online = fit(made, recipe)
    on_matrix = fit(
        head_training(toy.classifier().head, features(data.train), features(data.val), 3), recipe
    )
    after = classifier.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert set(online.weights) == {"layers.0.weight", "layers.0.bias"}
    for name, value in on_matrix.weights.items():
        assert torch.allclose(online.weights[name], value, atol=1e-5)
    for mine, its in zip(online.curve, on_matrix.curve, strict=True):
        assert abs(mine.val_loss - its.val_loss) < 1e-5
