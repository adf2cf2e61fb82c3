"""The typed schema of params.yaml: frozen, and what it does not know is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.vision.errors import RefitError

PATH = Path("params.yaml")
# Candidate names become file names, DVC stage names and MLflow run names.
CANDIDATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

UNFREEZE = r"^(last_block|last_[1-9]\d*_(blocks|layers)|all|gradual|auto)$"

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Severity = Literal["error", "warn", "off"]
NotNegative = Annotated[float, Field(ge=0)]


class Block(BaseModel):
    """A block of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Split(Block):
    """Shares of the pictures held out; the rest is for training."""

    val: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _leaves_some_to_train_on(self) -> Split:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test = {self.val + self.test:g} leaves nothing to train on")
        return self


class Data(Block):
    """What all stages share."""

    seed: int
    split: Split


class Checks(Block):
    """What a failed check of the data gate means: the data is refused, a remark, or nothing."""

    min_side: Severity
    max_aspect_ratio: Severity
    allowed_formats: Severity
    allowed_modes: Severity
    min_contrast: Severity
    min_classes: Severity
    min_per_class: Severity
    min_per_class_and_split: Severity
    max_imbalance_ratio: Severity
    exact_duplicates: Severity
    near_duplicates_across_splits: Severity
    label_conflicts: Severity
    near_label_conflicts: Severity
    brightness_outliers: Severity
    sharpness_outliers: Severity
    drift: Severity

    @field_validator("*", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare off as false


class Validate(Block):
    """The data gate."""

    min_side: Positive
    max_pixels: Annotated[int, Field(gt=0, le=178_956_970)]  # Pillow refuses more, whatever is set
    max_aspect_ratio: Annotated[float, Field(ge=1)]
    allowed_formats: Annotated[tuple[str, ...], Field(min_length=1)]
    allowed_modes: Annotated[tuple[str, ...], Field(min_length=1)]
    min_contrast: NotNegative
    decode_timeout: Rate
    on_bad_file: Literal["fail", "quarantine"]
    max_quarantined_share: Share
    min_classes: Positive
    min_per_class: Positive
    min_per_class_and_split: Annotated[int, Field(ge=0)]
    max_imbalance_ratio: Annotated[float, Field(ge=1)]
    near_duplicate_distance: Annotated[int, Field(ge=0, le=255)]
    max_outlier_z: Rate
    max_drift: Share
    drift_p_value: Share
    checks: Checks


class Prepare(Block):
    """Sizes in pixels; see `tasks.vision.preprocess.Preprocess`."""

    resize: Positive
    crop: Positive

    @model_validator(mode="after")
    def _crop_fits(self) -> Prepare:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class Augmentation(Block):
    """What may happen to a training picture; see `tasks.vision.augmentation.Augmentation`."""

    flip: Share = 0.5
    vertical_flip: Share = 0.0
    crop_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    crop_ratio: Annotated[float, Field(ge=1)] = 4 / 3
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Share = 0.0
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    fill: Literal["nearest", "reflect"] = "reflect"
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    erasing: Share = 0.0


class Training(Block):
    """What both training stages share; see `tasks.vision.recipes.Recipe`."""

    epochs: Annotated[int, Field(ge=0)]
    batch_size: Positive
    accumulate: Positive
    optimiser: Literal["adamw", "sgd"]
    lr: Rate
    warm_up: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    mixup: NotNegative
    cutmix: NotNegative
    ema: Annotated[float, Field(ge=0, lt=1)]
    clip_norm: NotNegative
    class_weights: Literal["none", "balanced", "auto"]
    sampler: Literal["shuffled", "balanced"]
    metric: Literal["f1_macro", "accuracy", "loss"]
    patience: Annotated[int, Field(ge=0)]
    precision: Literal["auto", "float32", "bfloat16"]
    augmentation: Augmentation

    @model_validator(mode="after")
    def _balances_once(self) -> Training:
        if self.sampler == "balanced" and self.class_weights != "none":
            raise ValueError(
                "a balanced sampler and class weights together weigh rare classes twice: "
                "set class_weights: none or sampler: shuffled"
            )
        return self


class Head(Training):
    """The frozen stage: features computed once, the head trained on them."""

    views: Positive | Literal["online"]
    pool: Literal["avg", "flatten"]
    hidden: tuple[Positive, ...]
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _features_stay_features(self) -> Head:
        if self.views != "online" and (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix mix pictures, not features: set views: online or 0")
        return self


class FineTune(Training):
    """The second stage: the last blocks, or every layer, train with a low rate."""

    unfreeze: Annotated[str, Field(pattern=UNFREEZE)]
    batch_norm: Literal["frozen", "train"]
    lr_decay: Annotated[float, Field(gt=0, le=1)]
    cache_budget_mb: Annotated[int, Field(ge=0)]


class Evaluate(Block):
    """Scoring of the reloaded checkpoint."""

    batch_size: Positive


class Export(Block):
    """The ONNX hand-over."""

    max_probability_difference: Rate
    input: Literal["pixels", "tensor"]
    features: bool
    licence: Annotated[str, Field(min_length=1)]
    variants: tuple[Literal["fp16", "int8"], ...]
    provider: Literal["cpu", "cuda"]
    max_drop: Share


class Register(Block):
    """Where MLflow keeps runs and versions, and what a champion must show."""

    experiment: str
    model_name: str
    min_gain: Share
    max_recall_drop: Share
    max_ece: Share
    max_megabytes: Rate
    max_milliseconds: Rate
    retired_classes: tuple[str, ...]


class Candidate(Block):
    """A network to compare: its architecture and what it starts from.

    `head` and `fine_tune` hold what this candidate does otherwise than the blocks of that name.
    """

    arch: str
    weights: str
    on_missing: Literal["fail", "random"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    head: dict[str, Any] = {}
    fine_tune: dict[str, Any] = {}

    @model_validator(mode="after")
    def _source_is_known(self) -> Candidate:
        kind, _, place = self.weights.partition(":")
        if kind not in ("imagenet", "random", "package", "file"):
            raise ValueError(
                f"weights: {self.weights!r} is none of imagenet, random, package:…, file:…"
            )
        if (kind in ("package", "file")) != bool(place):
            raise ValueError(f"weights: {self.weights!r} needs the form {kind}:PATH")
        if kind == "file" and self.sha256 is None:
            raise ValueError("weights: file:… needs the file's sha256 beside it")
        return self


class Params(Block):
    """The whole of params.yaml."""

    data: Data
    validate_: Annotated[Validate, Field(alias="validate")]
    prepare: Prepare
    head: Head
    fine_tune: FineTune
    evaluate: Evaluate
    export: Export
    register_: Annotated[Register, Field(alias="register")]
    candidates: Annotated[dict[str, Candidate], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_file_names(self) -> Params:
        bad = [name for name in self.candidates if not CANDIDATE_NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"candidates: {bad} may hold only letters, digits, '_', '-' and '.'")
        return self

    @model_validator(mode="after")
    def _overrides_are_valid(self) -> Params:
        for name in self.candidates:
            try:
                self.for_candidate(name)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, ("candidates", name, *first["loc"])))
                raise ValueError(f"{place}: {first['msg']} (got {first['input']!r})") from None
        return self

    def for_candidate(self, name: str) -> Params:
        """Return the params as candidate `name` sees them: its own head and fine_tune laid over."""
        own = self.candidates[name]
        laid = {
            "head": Head.model_validate(_laid_over(self.head.model_dump(), own.head)),
            "fine_tune": FineTune.model_validate(
                _laid_over(self.fine_tune.model_dump(), own.fine_tune)
            ),
        }
        return self.model_copy(update=laid)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _laid_over(below[key], value) if nested else value
    return merged


def load(path: Path = PATH) -> Params:
    """Read and check params.yaml.

    Raises:
        RefitError: no such file, not YAML, or values refused; each with its place in the file.
    """
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RefitError(f"no {path} in {Path.cwd()}: start from the project's folder") from None
    except yaml.YAMLError as error:
        raise RefitError(f"{path} is not YAML: {error}") from None
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']} (got {e['input']!r})"
            for e in error.errors()
        ]
        count = f"{len(lines)} value{'s' * (len(lines) > 1)}"
        raise RefitError("\n".join([f"{path}: {count} refused", *lines])) from None


def candidate(params: Params, name: str) -> Candidate:
    """Return one candidate by name.

    Raises:
        RefitError: the name is not in params.yaml; the message lists those that are.
    """
    if name not in params.candidates:
        raise RefitError(f"no candidate {name!r} in {PATH}: there are {list(params.candidates)}")
    return params.candidates[name]
