"""Stage `fine_tune`: the last blocks unfrozen, a low rate, never less than the head stage."""

from __future__ import annotations

import torch

from tasks import files, models, packed, params, program
from tasks.vision import checkpoints, device
from tasks.vision.backbones import Classifier
from tasks.vision.fine_tuning import fine_tune
from tasks.vision.loops import Epoch


def with_head(name: str) -> tuple[Classifier, models.Spec]:
    """Build the candidate as the head stage left it: initial backbone, trained head."""
    head, spec = models.load(files.MODELS / name / "head.safetensors")
    backbone, _ = checkpoints.load(files.WEIGHTS / f"{name}.safetensors")
    classifier = spec.build()
    classifier.backbone.load_state_dict(backbone)
    classifier.head.load_state_dict(head)
    return classifier, spec


def main() -> None:
    """Fine-tune one candidate and write the whole classifier with its curve."""
    name = program.candidate_argument(__doc__)
    settings = params.load()
    tune = settings.fine_tune
    params.candidate(settings, name)
    where = device.start(settings.data.seed)
    classifier, spec = with_head(name)
    classifier.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    blocks = len(classifier.backbone.blocks)
    # Frozen random layers would stay random: without pretrained weights every layer trains.
    trainable = blocks if tune.unfreeze == "all" or not spec.pretrained else 1
    train, val = packed.read_split("train"), packed.read_split("val")
    print(
        f"fine_tune {name}: {trainable} of {blocks} blocks train, "
        f"initialised from {spec.initialised_from}"
    )
    work = tune.epochs * len(train) + (tune.epochs + 1) * len(val)
    with program.bar(f"fine_tune {name}", "picture", work) as bar:

        def on_epoch(row: Epoch) -> None:
            bar.set_postfix(epoch=row.epoch, val_f1=f"{row.val_f1_macro:.4f}", refresh=False)

        fitted = fine_tune(
            classifier,
            (train.pixels, train.labels),
            (val.pixels, val.labels),
            spec.preprocess,
            trainable_blocks=trainable,
            norms_frozen=spec.pretrained and tune.batch_norm == "frozen",
            epochs=tune.epochs,
            batch_size=tune.batch_size,
            lr=tune.lr,
            weight_decay=tune.weight_decay,
            on_epoch=on_epoch,
            on_batch=bar.update,
        )
    program.refuse_divergence(fitted.diverged, "fine_tune.lr", tune.lr)
    models.save(files.MODELS / name / "model.safetensors", fitted.weights, spec)
    models.write_curve(files.REPORTS / name / "fine_tune_curve.csv", fitted.curve)
    kept = f"epoch {fitted.best.epoch}" if fitted.best.epoch else "the head stage: nothing beat it"
    print(f"fine_tune {name}: kept {kept}, val macro F1 {fitted.best.val_f1_macro:.4f}")


if __name__ == "__main__":
    program.run(main)
