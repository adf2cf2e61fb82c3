"""Stage `train_head`: the backbone frozen, its features computed once, the head trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks import feature_store, files, models, packed, params, program, training
from tasks.fingerprint import fingerprint
from tasks.packed import Pictures
from tasks.vision import (
    augmentation,
    backbones,
    checkpoints,
    device,
    features,
    fine_tuning,
    frozen,
    parallel,
    preprocess,
    randomness,
)
from tasks.vision.steps import Training
from tasks.vision.unfreezing import Unfreezing


def untrained(settings: params.Params, name: str) -> tuple[backbones.Classifier, models.Spec]:
    """Build a candidate from its initial weights, with a fresh head."""
    arch = settings.candidates[name].arch
    tensors, metadata = checkpoints.load(files.WEIGHTS / f"{name}.safetensors")
    _, _, mean, std = backbones.imagenet_preprocess(arch)
    spec = models.Spec(
        arch=arch,
        classes=tuple(files.read_json(files.CLASSES)),
        preprocess=preprocess.Preprocess(settings.prepare.resize, settings.prepare.crop, mean, std),
        pool=settings.head.pool,
        hidden=settings.head.hidden,
        dropout=settings.head.dropout,
        initialised_from=metadata["initialised_from"],
        pretrained=metadata["pretrained"] == "true",
    )
    classifier = spec.build()
    classifier.backbone.load_state_dict(tensors)
    return classifier, spec


@dataclass(frozen=True)
class Extractor:
    """A candidate's frozen backbone, which computes the features that are not stored yet.

    Attributes:
        name: the candidate's.
        classifier: its network, on the device.
        spec: all about it but its tensors.
        weights_sha256: of the backbone's file.
        head: the stage's block of params.yaml.
        processes: those that share the work.
    """

    name: str
    classifier: backbones.Classifier
    spec: models.Spec
    weights_sha256: str
    head: params.Head
    processes: parallel.Processes

    def key(self, view: int) -> str:
        """Name all that the features of a view depend on besides the pictures."""
        where = next(self.classifier.parameters()).device.type
        bfloat16 = device.computes_in_bfloat16(self.head.precision, where)
        return fingerprint(
            [self.weights_sha256, self.spec.preprocess.as_dict(), self.spec.pool, where],
            [view, self.head.augmentation.model_dump() if view > 2 else None, bfloat16],
            sources=(augmentation, backbones, features, preprocess, randomness),
        )

    def features(self, pictures: Pictures, split: str, view: int) -> NDArray[np.float32]:
        """Return the features float32 [n, D] of one view of pictures."""
        where = next(self.classifier.parameters()).device
        bfloat16 = device.computes_in_bfloat16(self.head.precision, where.type)
        backbone = backbones.fold_batchnorm(self.classifier.backbone)
        backbone.to(memory_format=torch.channels_last)
        shown = training.augmentation_of(self.head)
        contents = np.array([int(sha[:16], 16) for sha in pictures.sha256], np.uint64)

        def features_of(images: Tensor) -> Tensor:
            with torch.autocast(where.type, torch.bfloat16, enabled=bfloat16):
                vectors: Tensor = self.classifier.head.pool(backbone(images))
            return vectors

        def inputs_of(which: NDArray[np.int64]) -> Tensor:
            pixels, seeds = pictures.pixels(which), contents[which]
            return features.view_input(view, pixels, self.spec.preprocess, where, shown, seeds)

        def compute(which: NDArray[np.int64]) -> NDArray[np.float32]:
            def share(mine: NDArray[np.int64]) -> Tensor:
                found = features.extract(features_of, inputs_of, which[mine], on_batch=bar.update)
                return torch.from_numpy(found).to(where)

            with training.bar(what, len(which), self.processes) as bar:
                return self.processes.gather(share, len(which)).cpu().numpy()

        what = f"features {self.name} {split}, view {view}"
        vectors, computed = feature_store.features_of(
            pictures, self.key(view), compute, writes=self.processes.is_first
        )
        say = training.say_in(self.processes)
        say(f"{what}: {computed} computed, {len(pictures) - computed} known")
        return vectors


def on_features(extractor: Extractor, train: Pictures, val: Pictures) -> Training:
    """Make the training of the head on features that were computed once."""
    head, classifier = extractor.head, extractor.classifier
    assert head.views != "online"  # noqa: S101 - for the type checker
    views = range(1, head.views + 1)
    seen = [extractor.features(train, "train", view) for view in views]
    if extractor.processes.is_first:
        feature_store.note_use(extractor.name, map(extractor.key, views))
    return frozen.head_training(
        classifier.head,
        (np.concatenate(seen), np.tile(train.labels, len(seen))),
        (extractor.features(val, "val", 1), val.labels),
        len(extractor.spec.classes),
        weighting=head.class_weights,
        sampler=head.sampler,
    )


def online(extractor: Extractor, train: Pictures, val: Pictures, seed: int) -> Training:
    """Make the training of the head the classic way: every picture anew in every epoch."""
    head, classifier = extractor.head, extractor.classifier
    where = next(classifier.parameters()).device
    return fine_tuning.fine_tuning(
        classifier,
        fine_tuning.Data(
            fine_tuning.Split(train.pixels, train.labels),
            fine_tuning.Split(val.pixels, val.labels),
            extractor.spec.preprocess,
            training.augmentation_of(head),
            head.class_weights,
            head.sampler,
        ),
        Unfreezing("last_0_blocks", norms_frozen=True),
        training.recipe_of(head, seed, where),
        kept=classifier.head,
        processes=extractor.processes,
    )


def main() -> None:
    """Train one candidate's head and write it with its curve."""
    name = program.candidate_argument(__doc__)
    settings = params.load()
    params.candidate(settings, name)
    settings = settings.for_candidate(name)
    head, seed = settings.head, settings.data.seed
    where = device.start(seed)
    processes = parallel.join(where)
    classifier, spec = untrained(settings, name)
    classifier.eval().to(where)
    train, val = packed.read_split("train"), packed.read_split("val")
    sha256 = files.sha256_file(files.WEIGHTS / f"{name}.safetensors")
    extractor = Extractor(name, classifier, spec, sha256, head, processes)
    with training.place("train_head", name, processes) as place:
        if head.views == "online":
            made = online(extractor, train, val, seed)
        else:
            made = on_features(extractor, train, val)
        identity = training.identity(
            head.model_dump(),
            spec.preprocess.as_dict(),
            spec.classes,
            seed,
            sha256,
            pictures=(train, val),
        )
        recipe = training.recipe_of(head, seed, where)
        fitted = place.fit(made, recipe, f"head {name}", identity, head)
        program.refuse_divergence(fitted.diverged, "head.lr", head.lr)
        if processes.is_first:
            models.save(files.MODELS / name / "head.safetensors", fitted.weights, spec)
            models.write_curve(files.REPORTS / name / "head_curve.csv", fitted.curve)
        place.clear()
    training.say_in(processes)(
        f"head {name}: best epoch {fitted.best.epoch}, val macro F1 "
        f"{fitted.best.val_f1_macro:.4f}, initialised from {spec.initialised_from}"
    )


if __name__ == "__main__":
    program.run(main)
