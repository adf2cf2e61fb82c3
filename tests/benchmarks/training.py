"""Wall and CPU seconds and the validation score of training: ours beside two common ways.

    .venv/bin/python -m tests.benchmarks.training                 # DEMO_IMAGES pictures, 600
    .venv/bin/python -m tests.benchmarks.training --images 80 --tutorial-epochs 1
    .venv/bin/python -m tests.benchmarks.training --fastai /path/to/a/python/with/fastai

All start from the same pictures, the same split and the same weights (MobileNetV2, ImageNet), in
a process of their own, imports included, one after the other:

- `tutorial`: what PyTorch's transfer-learning tutorial does: ImageFolder, a random-resized-crop
  and a flip in each epoch, batches of 4, SGD with momentum at 1e-3, a tenth of it each 7 epochs, 25
  epochs; once with the backbone frozen, once with every layer training.
- `fastai`: `vision_learner(...).fine_tune(3)`, in a Python that has fastai.
- `ours`: `tasks.prepare`, `tasks.train_head` and then `tasks.fine_tune` as they are shipped; from
  nothing each time, before each of the others and at the end.

It prints a JSON object a run: wall and CPU seconds, best validation accuracy and macro F1; then how
many times ours the others take, least and most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
CANDIDATE = "mobilenet_v2"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def tutorial(folder: Path, epochs: int, frozen: bool) -> dict[str, float]:
    """Train as the tutorial does; return the best epoch's validation scores."""
    import torch
    from sklearn.metrics import accuracy_score, f1_score
    from torch import nn
    from torchvision import datasets, models
    from torchvision import transforms as t

    norm = [t.ToTensor(), t.Normalize(MEAN, STD)]
    ways = {
        "train": t.Compose([t.RandomResizedCrop(224), t.RandomHorizontalFlip(), *norm]),
        "val": t.Compose([t.Resize(256), t.CenterCrop(224), *norm]),
    }
    sets = {name: datasets.ImageFolder(folder / name, way) for name, way in ways.items()}
    loaders = {
        name: torch.utils.data.DataLoader(s, batch_size=4, shuffle=True, num_workers=4)
        for name, s in sets.items()
    }
    torch.manual_seed(42)
    model = models.mobilenet_v2(weights=None)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True), strict=False)
    model.requires_grad_(not frozen)
    model.classifier[1] = nn.Linear(model.last_channel, len(sets["train"].classes))
    trains = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trains, lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 7, 0.1)
    best = {"accuracy": 0.0, "f1_macro": 0.0}
    for _ in range(epochs):
        model.train()
        for images, labels in loaders["train"]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            pairs = [(labels, model(images).argmax(1)) for images, labels in loaders["val"]]
        true, guessed = (torch.cat(part).numpy() for part in zip(*pairs, strict=True))
        best["accuracy"] = max(best["accuracy"], float(accuracy_score(true, guessed)))
        score = f1_score(true, guessed, average="macro")
        best["f1_macro"] = max(best["f1_macro"], float(score))
    return best


def fastai(folder: Path, epochs: int) -> dict[str, float]:
    """Train with fastai's one-liner; return the last epoch's validation scores."""
    import torch
    from fastai.vision.all import (  # type: ignore[import-not-found]
        F1Score,
        ImageDataLoaders,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        vision_learner,
    )
    from torchvision import models

    def network(pretrained: bool = False) -> Any:
        model = models.mobilenet_v2(weights=None)
        model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True), strict=False)
        # What fastai looks for in a network that it does not know: it cuts before the last pool.
        return torch.nn.Sequential(model.features, torch.nn.AdaptiveAvgPool2d(1), model.classifier)

    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="val",
        item_tfms=Resize(256),
        # By itself fastai normalises only for networks whose weights it has fetched.
        batch_tfms=[*aug_transforms(size=224), Normalize.from_stats(MEAN, STD)],
        bs=64,
        seed=42,
    )
    learner = vision_learner(
        loaders,
        network,
        metrics=[accuracy, F1Score(average="macro")],
        pretrained=False,
    )
    learner.freeze()
    with learner.no_bar():
        learner.fine_tune(epochs)
        _, reached, f1 = learner.validate()
    return {"accuracy": float(reached), "f1_macro": float(f1)}


def folders(project: Path, target: Path) -> None:
    """Lay the project's train and val splits out as class folders, and its weights beside them."""
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import load_file

    table = pq.read_table(project / "data/manifest.parquet", columns=["path", "label", "split"])
    for row in table.to_pylist():
        link = target / row["split"] / row["label"] / Path(row["path"]).name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(project / "data/raw" / row["path"])
    tensors = load_file(project / f"data/weights/{CANDIDATE}.safetensors")
    torch.save(tensors, target / "weights.pt")


def timed(command: list[str], cwd: Path) -> dict[str, Any]:
    """Run a command; return its wall and CPU seconds and what its last line says."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    last = (done.stdout.strip().splitlines() or [""])[-1]
    scores = json.loads(last) if last.startswith("{") else {}
    return {"wall": round(wall, 2), "cpu": round(cpu, 2), **scores}


def best_of(curve: Path) -> dict[str, float]:
    """Return the best validation scores of a curve."""
    import csv

    rows = list(csv.DictReader(curve.open()))
    return {m: max(float(row[f"val_{m}"]) for row in rows) for m in ("accuracy", "f1_macro")}


def project(root: Path, images: str) -> None:
    """Copy the project to `root` and bring it to where training starts; not timed."""
    shutil.copytree(REPOSITORY / "tasks", root / "tasks")
    shutil.copy(REPOSITORY / "params.yaml", root)
    environment = {**os.environ, "DEMO_IMAGES": images}
    for stage in (["demo_data"], ["weights", CANDIDATE], ["validate"]):
        command = [sys.executable, "-m", f"tasks.{stage[0]}", *stage[1:]]
        subprocess.run(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, check=True)


def ours(root: Path) -> list[dict[str, Any]]:
    """Time the two training stages from nothing but pictures, manifest and weights.

    Returns:
        `prepare` and `train_head`; the same with `fine_tune` after them.
    """
    for kept in ("packed", "features", "models", "checkpoints"):
        shutil.rmtree(root / "data" / kept, ignore_errors=True)
    spent, found = {"wall": 0.0, "cpu": 0.0}, []
    for stage, curve in (("prepare", ""), ("train_head", "head"), ("fine_tune", "fine_tune")):
        candidate = [CANDIDATE] if curve else []
        taken = timed([sys.executable, "-m", f"tasks.{stage}", *candidate], root)
        spent = {key: round(spent[key] + taken[key], 2) for key in spent}
        if curve:
            path = root / f"data/reports/{CANDIDATE}/{curve}_curve.csv"
            found.append({**spent, **best_of(path)})
    return found


def compare(root: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Time every way, one after the other; ours before each of the others and at the end."""
    root, rivals = root / "project", root / "folders"
    root.mkdir()
    project(root, asked.images)
    folders(root, rivals)
    own = [str(Path(__file__).resolve()), "--folder", str(rivals)]
    mine, found = [ours(root)], {}
    for way in ("tutorial-frozen", "tutorial-full", *(["fastai"] if asked.fastai else [])):
        python = asked.fastai if way == "fastai" else sys.executable
        more = ["--way", way, "--tutorial-epochs", str(asked.tutorial_epochs)]
        found[way] = timed([python, *own, *more], root)
        print(json.dumps({"way": way, **found[way]}), flush=True)
        mine.append(ours(root))
    for place, name in enumerate(("ours: prepare + head", "ours: and fine-tuned")):
        for run in mine:
            print(json.dumps({"way": name, **run[place]}), flush=True)
    return ratios(found, [head for head, _ in mine], [tuned for _, tuned in mine])


def ratios(
    found: dict[str, Any], heads: list[dict[str, Any]], tuned: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return how many times the seconds of ours the others take: the least and the most."""
    full = {
        key: found["tutorial-frozen"][key] + found["tutorial-full"][key] for key in ("wall", "cpu")
    }
    pairs = {
        "tutorial-frozen to prepare + head": (found["tutorial-frozen"], heads),
        "tutorial-frozen and -full to all of ours": (full, tuned),
    }
    if "fastai" in found:
        pairs["fastai to prepare + head"] = (found["fastai"], heads)
        pairs["fastai to all of ours"] = (found["fastai"], tuned)
    return {
        name: {
            key: [round(theirs[key] / max(runs), 1), round(theirs[key] / min(runs), 1)]
            for key in ("wall", "cpu")
            for runs in [[run[key] for run in mine]]
        }
        for name, (theirs, mine) in pairs.items()
    }


def main() -> None:
    """Compare all, or be one of them."""
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("--images", default="600", help="`all` or a number, half of each class")
    parser.add_argument("--tutorial-epochs", type=int, default=25)
    parser.add_argument("--fastai", help="a Python interpreter that has fastai")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way == "fastai":
        print(json.dumps(fastai(asked.folder, 3)))
    elif asked.way:
        frozen = asked.way == "tutorial-frozen"
        print(json.dumps(tutorial(asked.folder, asked.tutorial_epochs, frozen)))
    else:
        with tempfile.TemporaryDirectory() as root:
            for way, figures in compare(Path(root), asked).items():
                print(json.dumps({"ratio": way, **figures}))


if __name__ == "__main__":
    main()
