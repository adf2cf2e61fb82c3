"""One picture's cost with PyTorch and with the exported file, and what each one gets right.

`python -m tests.benchmarks.inference`, from a project that was retrained and, for int8, in which
`python -m tasks.variants` released it. All take turns on the same pictures in one run; each takes
raw pixels (or JPEG bytes) and preprocesses them itself. Prints a Markdown table.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tasks import files, models, packed, serving
from tasks.vision import images
from tasks.vision.onnx_graph import ServingModel

BATCHES = (1, 32)
ROUNDS = 7
SECONDS = 0.4  # of one round, at least: short calls are repeated

Predict = Callable[[list[np.ndarray]], np.ndarray]


def contenders() -> dict[str, Predict]:
    """Return what is compared: a function from pictures of one size to probabilities."""
    path = files.BEST / "model.onnx"
    session = serving.Session(path, "cpu")
    checkpoint = files.MODELS / session.metadata["candidate"] / "model.safetensors"
    classifier, spec = models.load_classifier(checkpoint)
    temperature = float(session.metadata["temperature"])
    whole = ServingModel(classifier, spec.preprocess, temperature).eval()
    compiled = torch.compile(whole)

    def with_torch(model: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Predict:
        @torch.inference_mode()
        def predict(pictures: list[np.ndarray]) -> np.ndarray:
            return model(torch.from_numpy(np.stack(pictures)))[0].numpy()

        return predict

    found = {"PyTorch eager": with_torch(whole)}
    if "--no-compile" not in sys.argv:
        found["torch.compile"] = with_torch(compiled)
    found["ONNX Runtime fp32"] = lambda pictures: session.predict(pictures)[0]
    int8 = Path("data/variants/model.int8.onnx")
    if int8.exists():
        quantised = serving.Session(int8, "cpu")
        found["ONNX Runtime int8"] = lambda pictures: quantised.predict(pictures)[0]
    return found


def jpeg(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=90)
    return out.getvalue()


def decoded(data: list[bytes]) -> list[np.ndarray]:
    return [images.decode(one) for one in data]


def after(read: Callable[[], list[np.ndarray]], predict: Predict) -> np.ndarray:
    return predict(read())


def measure(
    calls: Mapping[str, Callable[[], object]], count: int
) -> dict[str, tuple[float, float]]:
    """Return the median wall and CPU milliseconds a picture; the calls take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()  # warms up, or compiles
        started = time.perf_counter()
        call()
        repeats[name] = max(1, round(SECONDS / (time.perf_counter() - started)))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                call()
            done = repeats[name] * count
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            times[name].append((1e3 * wall / done, 1e3 * cpu / done))
    return {
        name: (statistics.median(w for w, _ in rows), statistics.median(c for _, c in rows))
        for name, rows in times.items()
    }


def main() -> None:
    """Measure, score, print."""
    test = packed.read_split("test")
    pictures = [images.read_picture(files.RAW / path) for path in test.paths]
    size = pictures[0].shape
    same = [i for i, picture in enumerate(pictures) if picture.shape == size]
    compared = contenders()
    accuracy = {}
    for name, predict in compared.items():
        rows = [predict([pictures[i]]) for i in same]
        predicted = np.concatenate(rows).argmax(1)
        accuracy[name] = float((predicted == test.labels[same]).mean())
    print(
        f"{len(same)} test pictures of {size[1]} x {size[0]}, {os.cpu_count()} processors, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print("| | batch | from | ms a picture | CPU ms | to eager | accuracy |")
    print("|---|---|---|---|---|---|---|")
    for count in BATCHES:
        batch = [pictures[same[i % len(same)]] for i in range(count)]
        data = [jpeg(picture) for picture in batch]
        for source in ("pixels", "JPEG"):
            read = partial(list, batch) if source == "pixels" else partial(decoded, data)
            calls = {name: partial(after, read, predict) for name, predict in compared.items()}
            found = measure(calls, count)
            eager = found["PyTorch eager"][0]
            for name, (wall, cpu) in found.items():
                print(
                    f"| {name} | {count} | {source} | {wall:.2f} | {cpu:.2f} | {wall / eager:.2f} "
                    f"| {accuracy[name]:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
