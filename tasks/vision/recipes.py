"""How a training goes: the figures that both stages share, by the names of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Metric = Literal["f1_macro", "accuracy", "loss"]


@dataclass(frozen=True)
class Recipe:
    """The figures of one training.

    Attributes:
        epochs: passes over the training split; 0 leaves everything as it is.
        batch_size: pictures a step, over all processes and micro-batches together.
        lr: the rate at its highest, of the head.
        seed: of everything that is drawn.
        optimiser: AdamW (Loshchilov, Hutter 2019) or SGD with Nesterov's momentum of 0.9.
        weight_decay: decoupled for AdamW; never on norms and biases.
        lr_decay: the rate of each block is that of the block after it times this.
        warm_up: share of the steps in which the rate rises.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
        mixup: alpha of MixUp (Zhang et al. 2018); 0 is off.
        cutmix: alpha of CutMix (Yun et al. 2019); 0 is off. With both, each batch takes one.
        ema: decay of the weights' moving average; 0 is off.
        clip_norm: the largest norm of all gradients together; 0 is off.
        accumulate: micro-batches a step.
        metric: of the validation split, which chooses the best epoch.
        patience: epochs without a better one after which training stops; 0 never stops early.
        bfloat16: whether the network computes in bfloat16 (autocast); weights stay float32.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int = 0
    optimiser: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    lr_decay: float = 1.0
    warm_up: float = 0.1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    clip_norm: float = 0.0
    accumulate: int = 1
    metric: Metric = "f1_macro"
    patience: int = 0
    bfloat16: bool = False
