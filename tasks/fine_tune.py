"""Stage `fine_tune`: the last blocks unfrozen, a low rate, never less than the head stage."""

from __future__ import annotations

import torch

from tasks import files, models, packed, params, program, training
from tasks.packed import Pictures
from tasks.vision import checkpoints, device, fine_tuning, inference, parallel, unfreezing
from tasks.vision.backbones import Classifier
from tasks.vision.confusion import f1_macro
from tasks.vision.unfreezing import Unfreezing

MEBIBYTE = 1 << 20


def with_head(name: str) -> tuple[Classifier, models.Spec]:
    """Build the candidate as the head stage left it: initial backbone, trained head."""
    head, spec = models.load(files.MODELS / name / "head.safetensors")
    backbone, _ = checkpoints.load(files.WEIGHTS / f"{name}.safetensors")
    classifier = spec.build()
    classifier.backbone.load_state_dict(backbone)
    classifier.head.load_state_dict(head)
    return classifier, spec


def choose(
    tune: params.FineTune, classifier: Classifier, spec: models.Spec, train: Pictures, val: Pictures
) -> Unfreezing:
    """Decide what trains; `auto` scores the frozen head on the validation split first."""
    classes, skill = len(spec.classes), 0.0
    if tune.unfreeze == "auto" and spec.pretrained:
        logits = inference.predict_logits(
            classifier, val.pixels, len(val), spec.preprocess, tune.batch_size
        )
        score = f1_macro(val.labels, logits.argmax(1).cpu().numpy(), classes)
        skill = unfreezing.skill_of(score, classes)
    return unfreezing.choose(
        tune.unfreeze,
        pretrained=spec.pretrained,
        norms_frozen=tune.batch_norm == "frozen",
        per_class=len(train) / classes,
        skill=skill,
    )


def main() -> None:
    """Fine-tune one candidate and write the whole classifier with its curve."""
    name = program.candidate_argument(__doc__)
    settings = params.load()
    params.candidate(settings, name)
    tune, seed = settings.for_candidate(name).fine_tune, settings.data.seed
    where = device.start(seed)
    processes = parallel.join(where)
    say = training.say_in(processes)
    classifier, spec = with_head(name)
    classifier.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, val = packed.read_split("train"), packed.read_split("val")
    chosen = choose(tune, classifier, spec, train, val)
    say(f"fine_tune {name}: {chosen.mode} trains ({chosen.why}; from {spec.initialised_from})")
    recipe = training.recipe_of(tune, seed, where)
    data = fine_tuning.Data(
        fine_tuning.Split(train.pixels, train.labels),
        fine_tuning.Split(val.pixels, val.labels),
        spec.preprocess,
        training.augmentation_of(tune),
        tune.class_weights,
        tune.sampler,
        tune.cache_budget_mb * MEBIBYTE,
    )
    inputs = [files.WEIGHTS / f"{name}.safetensors", files.MODELS / name / "head.safetensors"]
    identity = training.identity(
        tune.model_dump(), seed, *map(files.sha256_file, inputs), pictures=(train, val)
    )
    with training.place("fine_tune", name, processes) as place:
        made = fine_tuning.fine_tuning(
            classifier, data, chosen, recipe, processes=processes, say=say
        )
        fitted = place.fit(made, recipe, f"fine_tune {name}", identity, tune)
        if processes.is_first:
            models.save(files.MODELS / name / "model.safetensors", fitted.weights, spec)
            models.write_curve(files.REPORTS / name / "fine_tune_curve.csv", fitted.curve)
        place.clear()
    kept = f"epoch {fitted.best.epoch}" if fitted.best.epoch else "the head stage: nothing beat it"
    say(f"fine_tune {name}: kept {kept}, val macro F1 {fitted.best.val_f1_macro:.4f}")


if __name__ == "__main__":
    program.run(main)
