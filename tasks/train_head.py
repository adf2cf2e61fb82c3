"""Stage `train_head`: the backbone frozen, its features computed once, the head trained on them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tasks import feature_store, files, models, packed, params, program
from tasks.fingerprint import fingerprint
from tasks.packed import Pictures
from tasks.vision import backbones, checkpoints, device, features, frozen, preprocess
from tasks.vision.loops import Epoch


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


def frozen_features(
    classifier: backbones.Classifier,
    spec: models.Spec,
    weights_sha256: str,
    pictures: Pictures,
    label: str,
    *,
    flip: bool,
) -> NDArray[np.float32]:
    """Return the features float32 [n, D] of pictures, computing those not stored yet."""
    where = next(classifier.parameters()).device
    backbone = backbones.fold_batchnorm(classifier.backbone).to(memory_format=torch.channels_last)
    pool = classifier.head.pool
    what = f"features {label}{' flipped' if flip else ''}"
    key = fingerprint(
        [weights_sha256, spec.preprocess.as_dict(), spec.pool, where.type, flip],
        sources=(backbones, features, preprocess),
    )

    def compute(which: NDArray[np.int64]) -> NDArray[np.float32]:
        with program.bar(what, "picture", len(which)) as bar:
            return features.extract(
                lambda images: pool(backbone(images)),
                pictures.pixels,
                which,
                spec.preprocess,
                where,
                flip=flip,
                on_batch=bar.update,
            )

    vectors, computed = feature_store.features_of(pictures, key, compute)
    print(f"{what}: {computed} computed, {len(pictures) - computed} known")
    return vectors


def main() -> None:
    """Train one candidate's head and write it with its curve."""
    name = program.candidate_argument(__doc__)
    settings = params.load()
    head = settings.head
    params.candidate(settings, name)
    where = device.start(settings.data.seed)
    classifier, spec = untrained(settings, name)
    classifier.eval().to(where)
    train, val = packed.read_split("train"), packed.read_split("val")
    sha256 = files.sha256_file(files.WEIGHTS / f"{name}.safetensors")
    views = [False, True] if head.flip else [False]
    seen = [
        frozen_features(classifier, spec, sha256, train, f"{name} train", flip=flip)
        for flip in views
    ]
    val_seen = frozen_features(classifier, spec, sha256, val, f"{name} val", flip=False)
    with program.bar(f"head {name}", "epoch", head.epochs) as bar:

        def on_epoch(row: Epoch) -> None:
            bar.update(row.epoch - bar.n)
            bar.set_postfix(val_f1=f"{row.val_f1_macro:.4f}", refresh=False)

        fitted = frozen.train_head(
            classifier.head,
            (np.concatenate(seen), np.tile(train.labels, len(views))),
            (val_seen, val.labels),
            epochs=head.epochs,
            batch_size=head.batch_size,
            lr=head.lr,
            weight_decay=head.weight_decay,
            on_epoch=on_epoch,
        )
    program.refuse_divergence(fitted.diverged, "head.lr", head.lr)
    models.save(files.MODELS / name / "head.safetensors", fitted.weights, spec)
    models.write_curve(files.REPORTS / name / "head_curve.csv", fitted.curve)
    print(
        f"head {name}: best epoch {fitted.best.epoch}, val macro F1 "
        f"{fitted.best.val_f1_macro:.4f}, initialised from {spec.initialised_from}"
    )


if __name__ == "__main__":
    program.run(main)
