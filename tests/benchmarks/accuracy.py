"""Accuracy on the whole ELPV set: the frozen head, then fine-tuned, over several random splits.

    .venv/bin/python -m tests.benchmarks.accuracy                      # everything, 5 seeds
    .venv/bin/python -m tests.benchmarks.accuracy --images 200 --seeds 2 --set fine_tune.epochs=1

Head and fine-tuning are params.yaml's, with what the candidate and `--set` lay over it. A quarter
of the pictures of each class is held out, another random one for each seed; a tenth of the rest is
the validation split, which alone chooses epochs. Published on this data, with such a quarter held
out: VGG-19 transfer 88.42 % accuracy, SVM 82.44 % (Deitsch et al., Solar Energy 185, 2019). It
prints a JSON object: of each stage the accuracies and macro F1 scores, their mean and their range;
accuracy also on the cells of which the experts were sure, and on those of which they were not.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from tasks import demo_data, params, prepare, training
from tasks.vision import (
    backbones,
    confusion,
    device,
    fine_tuning,
    frozen,
    inference,
    loops,
    unfreezing,
)
from tasks.vision.features import extract, view_input
from tasks.vision.preprocess import Preprocess
from tasks.vision.randomness import seeds_of
from tasks.weights import initial_weights

HELD_OUT = 0.25
VALIDATION = 0.1  # of what is not held out

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Bench:
    """All pictures, packed, and what does not differ between seeds.

    `sure`: of which of them the experts were sure.
    """

    settings: params.Params
    name: str
    pixels: NDArray[np.uint8]
    labels: Positions
    sure: NDArray[np.bool_]
    spec: Preprocess
    device: torch.device
    backbone: dict[str, torch.Tensor]

    def split(self, which: Positions) -> fine_tuning.Split:
        """Return the pictures at some positions."""
        return fine_tuning.Split(lambda rows: self.pixels[which[rows]], self.labels[which])

    def classifier(self) -> backbones.Classifier:
        """Return the network as the weights stage leaves it, with a fresh head."""
        head = self.settings.head
        classifier = backbones.build_classifier(
            self.settings.candidates[self.name].arch,
            int(self.labels.max()) + 1,
            self.spec.crop,
            head.pool,
            head.hidden,
            head.dropout,
        )
        classifier.backbone.load_state_dict(self.backbone)
        classifier.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return classifier

    def features(self, view: int) -> NDArray[np.float32]:
        """Return one view's features of all pictures."""
        classifier = self.classifier()
        backbone = backbones.fold_batchnorm(classifier.backbone)
        shown = training.augmentation_of(self.settings.head)
        contents = seeds_of(np.arange(len(self.labels)))

        def inputs_of(rows: Positions) -> torch.Tensor:
            pixels = self.pixels[rows]
            return view_input(view, pixels, self.spec, self.device, shown, contents[rows])

        return extract(
            lambda images: classifier.head.pool(backbone(images)),
            inputs_of,
            np.arange(len(self.labels)),
            on_batch=lambda _: None,
        )


def load(settings: params.Params, name: str, images: str) -> Bench:
    """Decode and pack the pictures, and get the candidate's weights."""
    chosen = demo_data.choose(demo_data.cells(), images)
    paths = [path for label in sorted(chosen) for path in chosen[label]]
    experts = demo_data.probabilities()
    sure = np.array([experts[path] in (0.0, 1.0) for path in paths])
    labels = np.repeat(np.arange(len(chosen)), [len(chosen[label]) for label in sorted(chosen)])
    candidate = settings.candidates[name]
    _, _, mean, std = backbones.imagenet_preprocess(candidate.arch)
    spec = Preprocess(settings.prepare.resize, settings.prepare.crop, mean, std)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shrunk = pool.map(lambda p: prepare.shrink(p, spec.resize, 100_000_000), paths)
        pixels = np.stack(list(shrunk))
    where = device.start(settings.data.seed)
    tensors, _ = initial_weights(name, candidate, settings.data.seed)
    return Bench(settings, name, pixels, labels, sure, spec, where, tensors)


def positions(labels: Positions, seed: int) -> tuple[Positions, Positions, Positions]:
    """Return train, val and held-out positions; each class in the same shares."""
    parts: list[list[Positions]] = [[], [], []]
    for label in np.unique(labels):
        mine = np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        held = round(HELD_OUT * len(mine))
        val = round(VALIDATION * (len(mine) - held))
        for part, rows in zip(parts, np.split(mine, [held, held + val]), strict=True):
            part.append(np.sort(rows))
    held_out, val_rows, train_rows = (np.concatenate(part) for part in parts)
    return train_rows, val_rows, held_out


def score(bench: Bench, classifier: backbones.Classifier, held: Positions) -> dict[str, float]:
    """Score a classifier on held-out pictures."""
    split = bench.split(held)
    logits = inference.predict_logits(classifier, split.pixels, len(split), bench.spec, 64)
    predicted = logits.argmax(1).cpu().numpy()
    right, sure = predicted == split.labels, bench.sure[held]
    return {
        "accuracy": confusion.accuracy(split.labels, predicted),
        "accuracy_sure": float(right[sure].mean()),
        "accuracy_unsure": float(right[~sure].mean()),
        "f1_macro": confusion.f1_macro(split.labels, predicted, int(bench.labels.max()) + 1),
    }


def told(row: loops.Epoch) -> None:
    """Say how far it is: an epoch takes a minute on two cores."""
    print(f"  epoch {row.epoch}: loss {row.val_loss:.4f}, F1 {row.val_f1_macro:.4f}", flush=True)


def one_seed(bench: Bench, seen: list[NDArray[np.float32]], seed: int) -> dict[str, dict]:
    """Train the head and fine-tune on one split; score both on what was held out."""
    head, tune = bench.settings.head, bench.settings.fine_tune
    train, val, held = positions(bench.labels, seed)
    torch.manual_seed(seed)
    classifier = bench.classifier()
    classes = int(bench.labels.max()) + 1
    rows = np.concatenate([view[train] for view in seen])
    made = frozen.head_training(
        classifier.head,
        (rows, np.tile(bench.labels[train], len(seen))),
        (seen[0][val], bench.labels[val]),
        classes,
        weighting=head.class_weights,
        sampler=head.sampler,
    )
    fitted = loops.fit(made, training.recipe_of(head, seed, bench.device))
    classifier.head.load_state_dict(fitted.weights)
    first = score(bench, classifier, held)
    chosen = unfreezing.choose(
        tune.unfreeze,
        pretrained=True,
        norms_frozen=tune.batch_norm == "frozen",
        per_class=len(train) / classes,
        skill=unfreezing.skill_of(fitted.best.val_f1_macro, classes),
    )
    data = fine_tuning.Data(
        bench.split(train),
        bench.split(val),
        bench.spec,
        training.augmentation_of(tune),
        tune.class_weights,
        tune.sampler,
        tune.cache_budget_mb << 20,
    )
    recipe = training.recipe_of(tune, seed, bench.device)
    made = fine_tuning.fine_tuning(classifier, data, chosen, recipe)
    tuned = loops.fit(made, recipe, listener=loops.Listener(on_epoch=told))
    classifier.load_state_dict(tuned.weights)
    second = score(bench, classifier, held)
    print(
        f"seed {seed}: head {first}, {chosen.mode} {second}, epoch {tuned.best.epoch}", flush=True
    )
    return {"head": first, "fine_tune": second}


def summary(runs: list[dict[str, dict]]) -> dict[str, dict]:
    """Return mean, range and all values of each stage's metrics."""
    found: dict[str, dict] = {}
    for stage in runs[0]:
        for metric in runs[0][stage]:
            values = [run[stage][metric] for run in runs]
            found.setdefault(stage, {})[metric] = {
                "mean": float(np.mean(values)),
                "range": [min(values), max(values)],
                "values": values,
            }
    return found


def with_figures(figures: list[str]) -> params.Params:
    """Return params.yaml with other figures, each as `block.name=value`."""
    tree = yaml.safe_load(params.PATH.read_text(encoding="utf-8"))
    for figure in figures:
        place, _, value = figure.partition("=")
        *blocks, name = place.split(".")
        reduce(dict.__getitem__, blocks, tree)[name] = yaml.safe_load(value)
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder, params.PATH.name)
        changed.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return params.load(changed)


def main() -> None:
    """Run all seeds and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", default="all", help="`all` or a number, half of each class")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--candidate", default="mobilenet_v2")
    parser.add_argument("--set", action="append", default=[], metavar="BLOCK.NAME=VALUE")
    asked = parser.parse_args()
    settings = with_figures(asked.set)
    params.candidate(settings, asked.candidate)
    settings = settings.for_candidate(asked.candidate)
    views = settings.head.views
    if views == "online":
        parser.error("head.views: online has no features to share between seeds")
    bench = load(settings, asked.candidate, asked.images)
    seen = [bench.features(view) for view in range(1, views + 1)]
    runs = [one_seed(bench, seen, seed) for seed in range(asked.seeds)]
    print(
        json.dumps({"pictures": len(bench.labels), "seeds": asked.seeds, **summary(runs)}, indent=2)
    )


if __name__ == "__main__":
    main()
