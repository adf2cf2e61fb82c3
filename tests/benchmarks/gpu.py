"""Pictures a second on a GPU: real pictures beside synthetic tensors, and a plain torchvision loop.

    python -m tests.benchmarks.gpu                                   # ResNet-50 and VGG-16, 224 px
    python -m tests.benchmarks.gpu --archs resnet18 --pictures 64 --side 64 --batch 8   # on a CPU

It needs torch, torchvision and what they bring (no weights are loaded: they do not change speed).
`real` is fed from JPEGs that were decoded once into packed bytes, as the project does it, `packing`
is what that once costs. `synthetic` takes one batch that lies on the device, ready, again and
again: no feeding can be faster. `reference` is ImageFolder, a random-resized-crop and a flip in
DataLoader workers, and autocast. All compute in bfloat16. Medians over the rounds, in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tasks.vision import backbones, device, images, preprocess
from tasks.vision.augmentation import Augmentation
from tasks.vision.features import BATCH, extract, network_input
from tasks.vision.fine_tuning import Data, Split, fine_tuning
from tasks.vision.frozen import head_training
from tasks.vision.parallel import Processes
from tasks.vision.recipes import Recipe
from tasks.vision.steps import Stepper, Training
from tasks.vision.unfreezing import Unfreezing

CLASSES = 10
SHOWN = Augmentation(crop_area=0.25)


def make_jpeg(path: Path, seed: int) -> None:
    """Write a JPEG of ImageNet's mean size: soft shapes under noise."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    noise = rng.normal(0, 8, (375, 500, 3))
    levels = np.asarray(shapes.resize((500, 375))) + noise
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def pack(path: Path, side: int) -> NDArray[np.uint8]:
    """Decode and shrink one picture, as the prepare stage does."""
    pixels = torch.from_numpy(images.read_picture(path)).permute(2, 0, 1)[None]
    return preprocess.resize_square(pixels, side)[0].permute(1, 2, 0).byte().numpy()


class Bench:
    """The pictures, the sizes and the device of one run."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.where = device.start(0)
        self.batch, self.rounds, self.workers = asked.batch, asked.rounds, asked.workers
        self.folder = folder
        paths = [folder / str(i % CLASSES) / f"{i}.jpg" for i in range(asked.pictures)]
        packed_side = asked.side * 8 // 7
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(make_jpeg, paths, range(len(paths))))
            started = time.perf_counter()
            self.pixels = np.stack(list(pool.map(lambda p: pack(p, packed_side), paths)))
            self.packing = len(paths) / (time.perf_counter() - started)
        self.labels = np.arange(len(paths), dtype=np.int64) % CLASSES
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.spec = preprocess.Preprocess(packed_side, asked.side, mean, std)
        self.recipe = Recipe(epochs=1, batch_size=self.batch, lr=1e-4, bfloat16=True)

    def classifier(self, arch: str) -> backbones.Classifier:
        """Return a network with random weights on the device."""
        made = backbones.build_classifier(arch, CLASSES, self.spec.crop, "avg", (), 0.0)
        made.to(self.where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return made

    def rate(self, work: Callable[[], int]) -> float:
        """Return the median of pictures a second over the rounds, after one to warm up."""
        rates = []
        for _ in range(self.rounds + 1):
            started = time.perf_counter()
            count = work()
            if self.where.type == "cuda":
                torch.cuda.synchronize()
            rates.append(count / (time.perf_counter() - started))
        return round(statistics.median(rates[1:]), 1)

    def steps(self, made: Training) -> float:
        """Return the rate of training steps over one pass."""
        stepper = Stepper(made, self.recipe, Processes(), print)
        made.network.train()
        size = min(self.batch, len(made.labels))
        passes = [b for b in made.batches(self.recipe, 1) if len(b) == size]

        def work() -> int:
            for number, batch in enumerate(passes):
                stepper.step(batch, number, 1, False)
            return sum(map(len, passes))

        return self.rate(work)

    def training(self, arch: str, mode: str) -> dict[str, float]:
        """Return the rates of fine-tuning with real and with synthetic pictures."""
        split = Split(lambda which: self.pixels[which], self.labels)
        data = Data(split, split, self.spec, SHOWN)
        norms = mode != "all"
        real = fine_tuning(self.classifier(arch), data, Unfreezing(mode, norms), self.recipe)
        ready = real.batch(np.arange(min(self.batch, len(self.labels))), 1)
        synthetic = replace(real, batch=lambda _which, _epoch: ready)
        return {"real": self.steps(real), "synthetic": self.steps(synthetic)}

    def extraction(self, arch: str) -> dict[str, float]:
        """Return the rates of frozen features of real and of synthetic pictures."""
        classifier = self.classifier(arch).eval()
        backbone = backbones.fold_batchnorm(classifier.backbone)
        backbone.to(memory_format=torch.channels_last)
        every = np.arange(len(self.labels))

        def inputs_of(which: NDArray[np.int64]) -> torch.Tensor:
            return network_input(self.pixels[which], self.spec, self.where)

        ready = inputs_of(every[:1].repeat(BATCH))

        def run(inputs: Callable[[NDArray[np.int64]], torch.Tensor]) -> int:
            with torch.autocast(self.where.type, torch.bfloat16):
                extract(
                    lambda x: classifier.head.pool(backbone(x)),
                    inputs,
                    every,
                    on_batch=lambda _: None,
                )
            return len(every)

        return {
            "real": self.rate(lambda: run(inputs_of)),
            "synthetic": self.rate(lambda: run(lambda _: ready)),
        }

    def head(self, arch: str) -> float:
        """Return the rate of training the head on its matrix of features."""
        classifier = self.classifier(arch)
        width = classifier.backbone.width
        rows = np.random.default_rng(0).normal(size=(len(self.labels), width)).astype(np.float32)
        both = (rows, self.labels)
        return self.steps(head_training(classifier.head, both, both, CLASSES))

    def reference(self, arch: str, mode: str) -> float:
        """Return the rate of a plain loop: ImageFolder, DataLoader workers, autocast."""
        from torchvision import datasets
        from torchvision import transforms as t

        way = [t.RandomResizedCrop(self.spec.crop), t.RandomHorizontalFlip(), t.ToTensor()]
        way.append(t.Normalize(self.spec.mean, self.spec.std))
        pictures = datasets.ImageFolder(str(self.folder), t.Compose(way))
        loader = torch.utils.data.DataLoader(
            pictures,
            batch_size=self.batch,
            shuffle=True,
            num_workers=self.workers,
            pin_memory=self.where.type == "cuda",
            persistent_workers=self.workers > 0,
        )
        classifier = self.classifier(arch).to(memory_format=torch.contiguous_format)
        Unfreezing(mode, norms_frozen=False).apply(classifier, 1)
        trains = [p for p in classifier.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trains, lr=1e-4)
        classifier.train()

        def work() -> int:
            for shown, labels in loader:
                optimiser.zero_grad()
                with torch.autocast(self.where.type, torch.bfloat16):
                    logits = classifier(shown.to(self.where, non_blocking=True))
                    target = labels.to(self.where, non_blocking=True)
                    loss = nn.functional.cross_entropy(logits, target)
                loss.backward()
                optimiser.step()
            return len(self.labels)

        return self.rate(work)


def main() -> None:
    """Print the rates of every architecture as one JSON object each."""
    parser = argparse.ArgumentParser(description="see the head of this file")
    parser.add_argument("--archs", nargs="+", default=["resnet50", "vgg16"])
    parser.add_argument("--pictures", type=int, default=4096)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(asked, Path(folder))
        cuda = bench.where.type == "cuda"
        name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        print(json.dumps({"device": name, "torch": torch.__version__, "packing": bench.packing}))
        for arch in asked.archs:
            modes = {"last_block": "last_block", "full": "all"}
            rates = {
                "extraction": bench.extraction(arch),
                "head": bench.head(arch),
                **{
                    name: {**bench.training(arch, mode), "reference": bench.reference(arch, mode)}
                    for name, mode in modes.items()
                },
            }
            print(json.dumps({"arch": arch, "pictures_per_second": rates}), flush=True)


if __name__ == "__main__":
    main()
