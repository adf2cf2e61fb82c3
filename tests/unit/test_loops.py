"""The loop: rates, groups, losses, averages, early stops and divergence, against known values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from tasks.vision import optimisers
from tasks.vision.balance import class_weights, epoch_order
from tasks.vision.loops import Epoch, Listener, fit
from tasks.vision.parallel import Processes
from tasks.vision.recipes import Recipe
from tasks.vision.regularisers import Average
from tasks.vision.steps import Stepper, Training
from tests.unit import toy

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.01, seed=3)


def linear_training(
    count: int = 24, broken_at: int | None = None, scale: float = 1.0, **more: Any
) -> Training:
    """A linear layer on random features; a batch of NaN in one epoch, if asked for."""
    torch.manual_seed(0)
    network = nn.Linear(5, 3)
    inputs, labels = torch.randn(count, 5), torch.arange(count) % 3

    def batch(which: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(which)
        return inputs[rows] * (math.nan if epoch == broken_at else scale), labels[rows]

    def validate() -> Tensor:
        with torch.no_grad():
            logits: Tensor = network.eval()(inputs)
        return logits

    parts: dict[str, Any] = {
        "network": network,
        "kept": network,
        "depths": [list(network.parameters())],
        "labels": labels.numpy(),
        "batch": batch,
        "validate": validate,
        "val_labels": labels.numpy(),
        "classes": 3,
    }
    return Training(**(parts | more))


def row(epoch: int, f1: float, accuracy: float, loss: float) -> Epoch:
    return Epoch(epoch, None, loss, f1, accuracy)


def test_rows_compare_by_the_chosen_metric_and_then_by_loss() -> None:
    a, b = row(0, 0.8, 0.7, 0.5), row(1, 0.7, 0.9, 0.4)
    assert not b.better_than(a)
    assert b.better_than(a, "accuracy")
    assert b.better_than(a, "loss")
    assert row(2, 0.8, 0.1, 0.4).better_than(a)
    assert not a.better_than(a)


def test_the_rate_rises_and_falls_to_zero() -> None:
    factors = [optimisers.rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert optimisers.rate_factor(0, 1, 0.0) == 1


def test_groups_have_rates_by_depth_and_no_decay_on_norms_and_biases() -> None:
    classifier = toy.classifier()
    made = toy.training(classifier, RECIPE, "last_2_blocks", norms_frozen=False)
    recipe = replace(RECIPE, lr=1.0, lr_decay=0.5, weight_decay=0.1)
    names = {id(p): name for name, p in classifier.named_parameters()}
    found = {
        (group["lr"], group["weight_decay"]): [names[id(p)] for p in group["params"]]
        for group in optimisers.parameter_groups(made.depths, recipe)
    }
    features = "backbone.features"
    assert found == {
        (1.0, 0.1): ["head.layers.0.weight"],
        (1.0, 0.0): ["head.layers.0.bias"],
        (0.5, 0.1): [f"{features}.8.weight"],
        (0.5, 0.0): [f"{features}.8.bias", f"{features}.9.weight", f"{features}.9.bias"],
        (0.25, 0.1): [f"{features}.4.weight"],
        (0.25, 0.0): [f"{features}.4.bias", f"{features}.5.weight", f"{features}.5.bias"],
    }


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_step_is_torchs_own(optimiser: Any) -> None:
    recipe = replace(RECIPE, optimiser=optimiser, weight_decay=0.1, warm_up=0.0, lr=0.1)
    made, reference = linear_training(), linear_training()
    stepper = Stepper(made, recipe, Processes(), print)
    groups = [
        {"params": reference.parameters[:1], "weight_decay": 0.1},
        {"params": reference.parameters[1:], "weight_decay": 0.0},
    ]
    own = (
        torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
        if optimiser == "sgd"
        else torch.optim.AdamW(groups, lr=0.1)
    )
    for number, which in enumerate(made.batches(recipe, 1)):
        stepper.step(which, number, 1, False)
        own.param_groups[0]["lr"] = own.param_groups[1]["lr"] = 0.1 * optimisers.rate_factor(
            number, 9, 0.0
        )
        inputs, labels = reference.batch(which, 1)
        own.zero_grad()
        F.cross_entropy(reference.network(inputs), labels).backward()
        own.step()
    for mine, its in zip(made.parameters, reference.parameters, strict=True):
        assert torch.allclose(mine, its, atol=1e-6)


def weights_after(recipe: Recipe, **more: Any) -> Tensor:
    return fit(linear_training(**more), recipe).weights["weight"]


def test_accumulated_micro_batches_are_the_whole_batch() -> None:
    assert torch.allclose(
        weights_after(replace(RECIPE, accumulate=3)), weights_after(RECIPE), atol=1e-6
    )


def test_the_gradients_norm_is_clipped() -> None:
    made = linear_training(scale=100.0)
    stepper = Stepper(made, replace(RECIPE, clip_norm=0.5), Processes(), print)
    stepper.step(np.arange(8), 0, 1, False)
    norm = torch.stack([p.grad.norm() for p in made.parameters if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


def test_label_smoothing_and_class_weights_are_torchs() -> None:
    weights = torch.tensor([2.0, 1.0, 0.0])
    made = linear_training(class_weights=weights)
    stepper = Stepper(made, replace(RECIPE, label_smoothing=0.2), Processes(), print)
    inputs, labels = made.batch(np.arange(8), 1)
    expected = F.cross_entropy(
        made.network(inputs), labels, weight=weights, reduction="sum", label_smoothing=0.2
    )
    loss, _ = stepper.step(np.arange(8), 0, 1, False)
    assert float(loss) == pytest.approx(float(expected.detach()) / 8, rel=1e-5)


def test_class_weights_balance_and_average_to_one() -> None:
    labels = np.repeat([0, 1, 3], [60, 30, 10])
    weights = class_weights(labels, 4, "balanced")
    assert weights is not None
    assert weights.tolist() == pytest.approx([100 / 180, 100 / 90, 0, 100 / 30])
    assert float(weights[labels].mean()) == pytest.approx(1)
    assert class_weights(labels, 4, "auto") is not None
    assert class_weights(labels, 4, "none") is None
    assert class_weights(np.repeat([0, 1], [13, 10]), 2, "auto") is None


def test_an_epoch_has_every_picture_once_or_every_class_alike() -> None:
    labels = np.repeat([0, 1], [900, 100])
    shuffled = epoch_order(labels, "shuffled", 1, 1)
    assert sorted(shuffled) == list(range(1000))
    assert (shuffled != epoch_order(labels, "shuffled", 1, 2)).any()
    balanced = epoch_order(labels, "balanced", 1, 1)
    assert len(balanced) == 1000
    assert 440 < (labels[balanced] == 0).sum() < 560
    assert len(set(balanced[labels[balanced] == 1])) > 90


def test_the_average_follows_its_formula_and_returns_the_weights() -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = Average(layer, 0.9)
    mean = 0.0
    for done, value in enumerate([1.0, 2.0, 4.0]):
        nn.init.constant_(layer.weight, value)
        average.update()
        # torch takes the first value as it is; then the decay rises: 2/11, 3/12.
        decay = min(0.9, (1 + done) / (10 + done))
        mean = value if done == 0 else decay * mean + (1 - decay) * value
    with average.in_place():
        assert layer.weight.item() == pytest.approx(mean)
    assert layer.weight.item() == 4.0


def test_averaged_weights_are_those_that_are_scored_and_kept() -> None:
    made = linear_training()
    fitted = fit(made, replace(RECIPE, ema=0.9, lr=0.05))
    assert not torch.equal(fitted.weights["weight"], made.parameters[0])
    made.network.load_state_dict(fitted.weights)
    loss = F.cross_entropy(made.validate(), torch.from_numpy(made.val_labels))
    assert float(loss) == pytest.approx(fitted.best.val_loss, rel=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_other_ones() -> None:
    first, second = weights_after(RECIPE), weights_after(RECIPE)
    torch.manual_seed(99)  # nothing depends on the generator's state
    assert torch.equal(first, second)
    assert not torch.equal(first, weights_after(replace(RECIPE, seed=4)))


def scripted(f1s: list[float]) -> Training:
    """A training whose validation logits give these macro F1 scores, roughly, in turn."""
    made = linear_training()
    labels = torch.from_numpy(made.val_labels)
    scores = iter(f1s)

    def validate() -> Tensor:
        wrong = round((1 - next(scores)) * len(labels))
        shown = torch.where(torch.arange(len(labels)) < wrong, (labels + 1) % 3, labels)
        return F.one_hot(shown, 3).float()

    return replace(made, validate=validate)


def test_training_stops_after_some_epochs_without_a_better_one() -> None:
    recipe = replace(RECIPE, epochs=8, patience=2)
    fitted = fit(scripted([0.5, 0.7, 0.6, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9]), recipe)
    assert len(fitted.curve) == 4
    assert fitted.best.epoch == 1
    whole = fit(
        scripted([0.5, 0.7, 0.6, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9]), replace(recipe, patience=0)
    )
    assert len(whole.curve) == 9
    assert whole.best.epoch == 4


def test_never_less_than_the_start() -> None:
    made = scripted([0.9, 0.5, 0.4, 0.3])
    start = made.parameters[0].detach().clone()
    fitted = fit(made, RECIPE)
    assert fitted.best.epoch == 0
    assert torch.equal(fitted.weights["weight"], start)
    assert not torch.equal(made.parameters[0], start)


def test_a_loss_that_is_no_number_is_retried_lower_and_then_loses() -> None:
    said: list[str] = []
    made = linear_training(broken_at=2)
    start = {name: value.clone() for name, value in made.network.state_dict().items()}
    fitted = fit(made, RECIPE, listener=Listener(say=said.append))
    assert said == [
        "diverged in epoch 2 at a rate of 0.01: once more with 0.001",
        "diverged in epoch 2 at a rate of 0.001: the start is kept",
    ]
    assert fitted.diverged == 2
    assert fitted.best.epoch == 0  # though epoch 1 was better
    assert fitted.curve[1].better_than(fitted.curve[0])
    assert all(torch.equal(fitted.weights[name], value) for name, value in start.items())


def test_an_exploding_loss_recovers_at_a_lower_rate() -> None:
    said: list[str] = []
    recipe = replace(RECIPE, lr=200.0, optimiser="sgd", epochs=4)
    fitted = fit(linear_training(count=120), recipe, listener=Listener(say=said.append))
    assert said == ["diverged in epoch 1 at a rate of 200: once more with 20"]
    assert fitted.diverged is None
    assert len(fitted.curve) == 5
    assert fitted.best.epoch > 0


def test_zero_epochs_leave_everything_as_it_is() -> None:
    made = linear_training()
    start = made.parameters[0].detach().clone()
    fitted = fit(made, replace(RECIPE, epochs=0))
    assert [r.epoch for r in fitted.curve] == [0]
    assert torch.equal(fitted.weights["weight"], start)


def test_a_last_batch_of_one_is_left_out() -> None:
    sizes = [len(batch) for batch in linear_training(count=17).batches(RECIPE, 1)]
    assert sizes == [8, 8]
    assert [len(batch) for batch in linear_training(count=1).batches(RECIPE, 1)] == [1]


class Small(nn.Linear):
    """A layer on a device whose memory holds only so many rows."""

    rows = 3

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) > self.rows:
            raise torch.OutOfMemoryError(f"{len(inputs)} rows")
        return super().forward(inputs)


def small_training(rows: int) -> Training:
    made = linear_training()
    network = Small(5, 3)
    network.rows = rows
    network.load_state_dict(made.network.state_dict())

    def validate() -> Tensor:
        with torch.no_grad():
            logits: Tensor = network.eval()(made.batch(np.arange(24), 1)[0])
        return logits

    parameters = list(network.parameters())
    return replace(made, network=network, kept=network, depths=[parameters], validate=validate)


def test_out_of_memory_halves_what_passes_at_once_and_keeps_the_batch() -> None:
    said: list[str] = []
    fitted = fit(small_training(3), RECIPE, listener=Listener(say=said.append))
    assert said == [
        "out of memory: 4 pictures at once from now on; a step is still over 8",
        "out of memory: 2 pictures at once from now on; a step is still over 8",
    ]
    assert torch.allclose(fitted.weights["weight"], weights_after(RECIPE), atol=1e-6)


def test_out_of_memory_with_one_picture_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="1 rows"):
        fit(small_training(0), RECIPE)
