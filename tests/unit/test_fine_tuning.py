"""Fine-tuning: what trains in each mode, what stays, and the shortcuts that must not change it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tasks.vision.augmentation import Augmentation
from tasks.vision.backbones import Classifier
from tasks.vision.errors import RefitError
from tasks.vision.fine_tuning import PartlyFrozen, fine_tuning
from tasks.vision.inference import predict_logits
from tasks.vision.loops import Listener, fit
from tasks.vision.recipes import Recipe
from tasks.vision.unfreezing import Unfreezing, choose, skill_of
from tests.unit import toy

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.01, seed=3)
BLOCKS = [("0", "1"), ("4", "5"), ("8", "9")]  # convolution and norm of each


def trained_blocks(classifier: Classifier) -> list[int]:
    """The blocks whose convolution trains."""
    convolutions = [classifier.get_submodule(f"backbone.features.{c}") for c, _ in BLOCKS]
    return [i for i, c in enumerate(convolutions) if next(c.parameters()).requires_grad]


@pytest.mark.parametrize(
    ("mode", "blocks"),
    [
        ("last_0_blocks", []),
        ("last_block", [2]),
        ("last_2_blocks", [1, 2]),
        ("last_1_layers", [2]),
        ("last_3_layers", [0, 1, 2]),
        ("all", [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("norms_frozen", [True, False])
def test_each_modes_trainable_set(mode: str, blocks: list[int], norms_frozen: bool) -> None:
    classifier = toy.classifier()
    trains = Unfreezing(mode, norms_frozen).apply(classifier, 1)
    assert trained_blocks(classifier) == blocks
    names = {name for name, p in classifier.named_parameters() if p.requires_grad}
    expected = {"head.layers.0.weight", "head.layers.0.bias"}
    for block in blocks:
        for module in BLOCKS[block][: 1 if norms_frozen else 2]:
            expected |= {f"backbone.features.{module}.{kind}" for kind in ("weight", "bias")}
    assert names == expected
    assert len(trains) == len(names)


def test_gradual_unfreezes_a_block_an_epoch() -> None:
    classifier, seen = toy.classifier(), []
    chosen = Unfreezing("gradual", norms_frozen=True)
    for epoch in (1, 2, 3, 4):
        chosen.apply(classifier, epoch)
        seen.append(trained_blocks(classifier))
    assert seen == [[2], [1, 2], [0, 1, 2], [0, 1, 2]]
    assert len(chosen.depths(classifier, 2)) == 3  # the head and two blocks


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(
        RefitError, match=re.escape("9 trainable blocks asked for, but toy has 0 to 3")
    ):
        toy.training(toy.classifier(), RECIPE, "last_9_blocks")


@pytest.mark.parametrize(
    ("per_class", "skill", "mode"),
    [
        (20, 0.9, "last_block"),
        (20, 0.3, "last_2_blocks"),
        (5000, 0.9, "last_3_blocks"),
        (5000, 0.3, "all"),
    ],
)
def test_auto_follows_both_signals_and_says_why(per_class: float, skill: float, mode: str) -> None:
    chosen = choose("auto", pretrained=True, norms_frozen=True, per_class=per_class, skill=skill)
    assert chosen.mode == mode
    assert f"{per_class} training pictures a class" in chosen.why
    assert f"{skill:.0%}" in chosen.why


def test_random_weights_train_everything_whatever_is_asked_for() -> None:
    chosen = choose("last_block", pretrained=False, norms_frozen=True, per_class=9, skill=1)
    assert (chosen.mode, chosen.norms_frozen) == ("all", False)


def test_skill_is_the_way_from_guessing_to_perfect() -> None:
    assert skill_of(0.75, 2) == 0.5
    assert skill_of(0.2, 4) == 0.0
    assert skill_of(1.0, 10) == 1.0


@pytest.mark.parametrize("norms_frozen", [True, False])
@pytest.mark.parametrize("mode", ["last_block", "last_1_layers", "gradual", "all"])
def test_what_is_frozen_keeps_its_bits_and_what_trains_moves(mode: str, norms_frozen: bool) -> None:
    classifier = toy.classifier()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    recipe = replace(RECIPE, epochs=2, weight_decay=0.1, ema=0.5)
    chosen = Unfreezing(mode, norms_frozen)
    fit(toy.training(classifier, recipe, mode, norms_frozen=norms_frozen), recipe)
    moved = {n for n, v in classifier.state_dict().items() if not torch.equal(v, before[n])}
    trains = {n for n, p in classifier.named_parameters() if p.requires_grad}
    statistics = set()
    if not norms_frozen:
        for name, module in classifier.named_modules():
            if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad:
                kinds = ("running_mean", "running_var", "num_batches_tracked")
                statistics |= {f"{name}.{kind}" for kind in kinds}
    assert moved == trains | statistics
    assert len(chosen.apply(classifier, 2)) == len(trains)


def test_the_kept_weights_score_what_the_curve_says() -> None:
    recipe = replace(RECIPE, epochs=4, lr=0.03)
    fitted = fit(toy.training(toy.classifier(), recipe, "all", norms_frozen=False), recipe)
    fresh = toy.classifier()
    fresh.load_state_dict(fitted.weights)
    val = toy.data().val
    logits = predict_logits(fresh, val.pixels, len(val), toy.SPEC, 5)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(val.labels))
    assert float(loss) == pytest.approx(fitted.best.val_loss, abs=1e-5)
    assert fitted.best.better_than(fitted.curve[0])  # it learned
    assert fitted.best == max(fitted.curve, key=lambda row: (row.val_f1_macro, -row.val_loss))


def test_epoch_0_is_the_head_stages_score() -> None:
    classifier = toy.classifier()
    val = toy.data().val
    logits = predict_logits(classifier, val.pixels, len(val), toy.SPEC, 5)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(val.labels))
    fitted = fit(toy.training(classifier, RECIPE), RECIPE)
    assert fitted.curve[0].val_loss == pytest.approx(float(loss), abs=1e-5)


def weights_of(recipe: Recipe, **more: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    said: list[str] = []
    classifier = toy.classifier()
    made = fine_tuning(
        classifier, toy.data(**more), Unfreezing("last_block", True), recipe, say=said.append
    )
    return fit(made, recipe, listener=Listener(say=said.append)).weights, said


def test_kept_activations_train_the_same_network() -> None:
    online, said = weights_of(RECIPE)
    assert said == []
    cached, said = weights_of(RECIPE, cache_budget=1 << 20)
    # 2 views of 40 pictures and one of 16, each 5 x 2 x 2 floats of 4 bytes.
    assert said == ["activations before the first trainable layer: 0 MB, kept: computed once"]
    assert all(torch.allclose(cached[n], v, atol=1e-5) for n, v in online.items())


@pytest.mark.parametrize(
    ("budget", "shown", "recipe", "word"),
    [
        (100, Augmentation(), RECIPE, "more than cache_budget_mb"),
        (1 << 20, Augmentation(rotation=9), RECIPE, "are not kept"),
        (1 << 20, Augmentation(), replace(RECIPE, mixup=0.2), "are not kept"),
    ],
)
def test_activations_that_do_not_fit_or_differ_are_not_kept(
    budget: int, shown: Augmentation, recipe: Recipe, word: str
) -> None:
    online, _ = weights_of(recipe, augmentation=shown)
    other, said = weights_of(recipe, augmentation=shown, cache_budget=budget)
    assert word in said[0]
    assert all(torch.equal(other[n], v) for n, v in online.items())


@pytest.mark.parametrize("recipe", [replace(RECIPE, mixup=0.4), replace(RECIPE, cutmix=1.0)])
def test_micro_batches_are_mixed_as_the_whole_batch(recipe: Recipe) -> None:
    def ended(recipe: Recipe) -> dict[str, torch.Tensor]:
        classifier = toy.classifier()
        fit(toy.training(classifier, recipe), recipe)
        return classifier.state_dict()

    whole, parts, unmixed = map(ended, (recipe, replace(recipe, accumulate=3), RECIPE))
    assert all(torch.allclose(parts[n], v, atol=1e-5) for n, v in whole.items())
    assert not all(torch.allclose(unmixed[n], v, atol=1e-3) for n, v in whole.items())


def test_a_picture_is_shown_otherwise_in_each_epoch_and_alike_in_any_batch() -> None:
    made = toy.training(toy.classifier(), RECIPE, augmentation=toy.SHOWN)
    first, _ = made.batch(np.array([4, 7, 9]), 1)
    alone, label = made.batch(np.array([7]), 1)
    assert torch.allclose(alone[0], first[1], atol=1e-4)
    assert label.tolist() == [toy.data().train.labels[7]]
    assert not torch.allclose(made.batch(np.array([7]), 2)[0], alone, atol=0.1)


def test_the_frozen_prefix_is_folded_and_has_no_gradient() -> None:
    classifier = toy.classifier().eval()
    Unfreezing("last_block", True).apply(classifier, 1)
    network = PartlyFrozen(classifier)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.frozen.modules())
    images = torch.randn(4, 3, 8, 8)
    assert torch.allclose(network.eval()(images), classifier(images), atol=1e-5)
    network.train()
    network(images).sum().backward()
    assert [p.grad is not None for p in classifier.parameters()] == [
        p.requires_grad for p in classifier.parameters()
    ]
