"""Which of a classifier's layers train, from the one word in params.yaml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tasks.vision.backbones import Classifier, freeze_all_but, freeze_all_but_layers

# The textbook's rule (Stanford CS231n, "Transfer Learning"; Yosinski et al., NeurIPS 2014): little
# data and a task like ImageNet's, train little; much data or a task far from it, train more.
MUCH = 500  # training pictures per class
NEAR = 0.7  # share of the way from guessing to perfect that the frozen head gets on validation
_CHOSEN = {
    (False, True): "last_block",
    (False, False): "last_2_blocks",
    (True, True): "last_3_blocks",
    (True, False): "all",
}


@dataclass(frozen=True)
class Unfreezing:
    """What trains, epoch by epoch.

    Attributes:
        mode: `last_block`, `last_<N>_blocks`, `last_<N>_layers`, `all` or `gradual`.
        norms_frozen: whether the trainable blocks' BatchNorm stays as it is, too.
        why: the reason, for people.
    """

    mode: str
    norms_frozen: bool
    why: str = "as params.yaml says"

    def apply(self, classifier: Classifier, epoch: int) -> list[nn.Parameter]:
        """Freeze and unfreeze for an epoch, from 1; return what trains, from input to output.

        `gradual` starts with the last block and adds one an epoch (Howard, Ruder, ULMFiT, 2018).

        Raises:
            RefitError: the network has fewer blocks or layers than are asked for.
        """
        blocks = len(classifier.backbone.blocks)
        if self.mode == "gradual":
            freeze_all_but(classifier, min(epoch, blocks))
        elif self.mode == "all":
            freeze_all_but(classifier, blocks)
        elif self.mode.endswith("_layers"):
            freeze_all_but_layers(classifier, _number(self.mode))
        else:
            freeze_all_but(classifier, _number(self.mode))
        if self.norms_frozen:
            freeze_norms(classifier)
        return [p for p in classifier.parameters() if p.requires_grad]

    def depths(self, classifier: Classifier, epochs: int) -> list[list[nn.Parameter]]:
        """Return all that trains in any of the epochs: the head's, then each block's backwards.

        Leaves the classifier as its last epoch has it.
        """
        self.apply(classifier, max(1, epochs))
        depths: Sequence[nn.Module] = [classifier.head, *reversed(classifier.backbone.blocks)]
        found = [[p for p in depth.parameters() if p.requires_grad] for depth in depths]
        return [parameters for parameters in found if parameters]


def choose(
    mode: str, *, pretrained: bool, norms_frozen: bool, per_class: float, skill: float
) -> Unfreezing:
    """Turn the word in params.yaml into what trains.

    Args:
        mode: see `Unfreezing`, or `auto`.
        pretrained: False trains everything: frozen random layers would stay random.
        norms_frozen: see `Unfreezing`; a random network's norms have to train.
        per_class: training pictures per class, on average; read by `auto`.
        skill: see `skill_of`; read by `auto`.
    """
    if not pretrained:
        return Unfreezing("all", False, "its weights are random")
    if mode != "auto":
        return Unfreezing(mode, norms_frozen)
    much, near = per_class >= MUCH, skill >= NEAR
    why = (
        f"auto: {per_class:.0f} training pictures a class are {'much' if much else 'little'} "
        f"({MUCH} would be much), and the frozen head's {skill:.0%} of the way from guessing to "
        f"perfect shows a task {'near to' if near else 'far from'} what the backbone knows "
        f"({NEAR:.0%} would be near)"
    )
    return Unfreezing(_CHOSEN[much, near], norms_frozen, why)


def skill_of(f1_macro: float, classes: int) -> float:
    """Return the share of the way from guessing (1 / classes) to perfect, 0..1."""
    guessing = 1 / classes
    return max(0.0, (f1_macro - guessing) / (1 - guessing))


def freeze_norms(classifier: Classifier) -> None:
    """Freeze every BatchNorm of the backbone, statistics and affine.

    A pretrained block's statistics and the head that was trained on its output belong together:
    normalising by the batch from one step to the next gives the head features it never saw.
    """
    for module in classifier.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def _number(mode: str) -> int:
    found = re.search(r"\d+", mode)
    return int(found[0]) if found else 1
