"""A candidate's model files: tensors, and beside them all that is needed to build the network."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks import files
from tasks.vision import checkpoints
from tasks.vision.backbones import Classifier, build_classifier
from tasks.vision.errors import RefitError
from tasks.vision.loops import Epoch
from tasks.vision.preprocess import Preprocess


@dataclass(frozen=True)
class Spec:
    """Everything about a classifier but its tensors.

    Attributes:
        arch: torchvision's name of the backbone.
        classes: class names in the order of the logits.
        preprocess: from raw pixels to the backbone's input.
        pool: how the feature map becomes a vector.
        hidden: widths of the head's hidden layers.
        dropout: of the head.
        initialised_from: what the backbone started from, in words.
        pretrained: whether that was a trained network.
    """

    arch: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    pool: str
    hidden: tuple[int, ...]
    dropout: float
    initialised_from: str
    pretrained: bool

    def build(self) -> Classifier:
        """Return the network with fresh weights."""
        return build_classifier(
            self.arch,
            len(self.classes),
            self.preprocess.crop,
            pool=self.pool,
            hidden=self.hidden,
            dropout=self.dropout,
        )

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Rebuild the spec that `save` stored."""
        raw: dict[str, Any] = json.loads(text)
        raw["preprocess"] = Preprocess.from_dict(raw["preprocess"])
        raw["classes"], raw["hidden"] = tuple(raw["classes"]), tuple(raw["hidden"])
        return cls(**raw)


def save(path: Path, tensors: dict[str, Tensor], spec: Spec) -> None:
    """Write tensors and spec to one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(path, tensors, {"spec": json.dumps(asdict(spec))})


def load(path: Path) -> tuple[dict[str, Tensor], Spec]:
    """Read what `save` wrote.

    Raises:
        RefitError: no such file, damaged, or not a file of this project.
    """
    tensors, metadata = checkpoints.load(path)
    if "spec" not in metadata:
        raise RefitError(f"{path} was not written by a stage of this project: it has no spec")
    return tensors, Spec.from_json(metadata["spec"])


def load_classifier(path: Path) -> tuple[Classifier, Spec]:
    """Build the classifier of a `model.safetensors`, in eval, on the CPU."""
    tensors, spec = load(path)
    classifier = spec.build()
    classifier.load_state_dict(tensors)
    return classifier.eval(), spec


def write_curve(path: Path, curve: list[Epoch]) -> None:
    """Write a training curve as CSV, one row an epoch; DVC and MLflow draw it."""
    text = io.StringIO()
    rows = [row.as_row() for row in curve]
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())
