"""Smaller and faster variants of the exported file, each released only on its own proof.

Not a DVC stage: whether a variant is faster is a measurement, and equal inputs would not give
equal outputs. It writes `data/variants/model.<variant>.onnx` and `data/variants/report.json`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks import files, packed, params, program, serving
from tasks.vision import images, quantise
from tasks.vision.errors import RefitError

CALIBRATION = 64  # pictures; the ranges hardly change beyond
RANKING = 16  # pictures a layer is tried on
BATCHES = (1, 8)  # both have to be faster
ROUNDS = 15

Labels = npt.NDArray[np.int64]


def some(pictures: packed.Pictures, count: int) -> list[Path]:
    """Return the paths of pictures spread evenly over a split."""
    paths = pictures.paths
    return [files.RAW / paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]


def predicted(session: serving.Session, split: packed.Pictures, max_pixels: int) -> Labels:
    """Return the classes [n] that a file gives the pictures of a split."""
    paths = [files.RAW / path for path in split.paths]
    labels: Labels = serving.predict_files(session, paths, max_pixels).argmax(1)
    return labels


def make_int8(source: Path, out: Path, settings: params.Params) -> list[str]:
    """Write the int8 variant; layers that hurt stay in float.

    What hurts is found on pictures that do not decide: the layers are ranked and the ranges
    measured on training pictures, and how many of the worst stay in float is chosen on the
    validation split, doubling until as good as no picture changes its class.

    Returns:
        the names of the layers left in float.
    """
    import onnx

    session = serving.Session(source, "cpu")
    max_pixels = settings.validate_.max_pixels
    train, val = packed.read_split("train"), packed.read_split("val")
    pictures = [
        next(session.batches([images.read_picture(path, max_pixels)]))[1]
        for path in some(train, CALIBRATION)
    ]
    expected = predicted(session, val, max_pixels)
    all_layers = quantise.layers(onnx.load(source))
    ranked: list[str] = []
    best, fewest, count = list[str](), 2.0, 0
    while count <= len(all_layers) // 2:
        quantise.to_int8(source, out, pictures, ranked[:count])
        changed = float(
            (predicted(serving.Session(out, "cpu"), val, max_pixels) != expected).mean()
        )
        print(f"int8, {count} layers in float: {changed:.2%} of the validation classes change")
        if changed < fewest:
            best, fewest = ranked[:count], changed
        if changed <= settings.export.max_drop:
            return best
        if not ranked:
            with tempfile.TemporaryDirectory() as folder:
                ranked = list(quantise.sensitivity(source, Path(folder), pictures[:RANKING]))
        count = max(1, 2 * count)
    quantise.to_int8(source, out, pictures, best)
    return best


def milliseconds(
    original: serving.Session, variant: serving.Session, pictures: list[serving.Pixels]
) -> dict[str, list[float]]:
    """Return the median milliseconds a picture of both, [original, variant], for each batch size.

    Both take turns, so that what else the machine does slows both.

    Args:
        original: the float32 file.
        variant: the other.
        pictures: uint8 RGB [H, W, 3], all of one size.
    """
    found = {}
    for count in BATCHES:
        batch = [pictures[i % len(pictures)] for i in range(count)]
        seconds: tuple[list[float], list[float]] = ([], [])
        for turn in range(ROUNDS + 1):
            for session, times in zip((original, variant), seconds, strict=True):
                started = time.perf_counter()
                session.predict(batch)
                if turn:  # the first warms up
                    times.append(time.perf_counter() - started)
        found[str(count)] = [1e3 * statistics.median(times) / count for times in seconds]
    return found


def verdict(
    true: Labels,
    original: Labels,
    variant: Labels,
    times: dict[str, list[float]],
    max_drop: float,
    provider: str,
) -> dict[str, Any]:
    """Judge a variant on the same pictures as the original; return why, with the figures.

    Args:
        true: [n] of the test pictures.
        original: [n], the float32 file's classes.
        variant: [n], the variant's.
        times: see `milliseconds`.
        max_drop: accuracy that may be lost, 0..1.
        provider: what computed.
    """
    was_right, is_right = original == true, variant == true
    drop = float(was_right.mean() - is_right.mean())
    slower = [f"{count}: {a:.2f} -> {b:.2f} ms" for count, (a, b) in times.items() if b >= a]
    reasons = []
    if drop > max_drop:
        reasons.append(f"loses {drop:.2%} accuracy, more than the {max_drop:.2%} of max_drop")
    if slower:
        reasons.append(f"is not faster on {provider} (batch {'; '.join(slower)} a picture)")
    return {
        "released": not reasons,
        "reason": " and ".join(reasons)
        or f"{'loses' if drop > 0 else 'gains'} {abs(drop):.2%} accuracy and is faster",
        "accuracy": float(is_right.mean()),
        "accuracy_float32": float(was_right.mean()),
        "lost": int((was_right & ~is_right).sum()),
        "gained": int((is_right & ~was_right).sum()),
        "milliseconds_a_picture": times,
    }


def release(name: str, source: Path, settings: params.Params) -> dict[str, Any]:
    """Make a variant, prove it, and give it its place only if it is proven."""
    target = files.VARIANTS / f"model.{name}.onnx"
    target.unlink(missing_ok=True)  # it was made of another file, or under other conditions
    with tempfile.TemporaryDirectory(dir=files.VARIANTS, prefix=".trial-") as folder:
        trial = Path(folder) / target.name
        in_float: list[str] = []
        if name == "int8":
            in_float = make_int8(source, trial, settings)
        else:
            quantise.to_fp16(source, trial)
        result = judge(source, trial, settings)
        result |= {"bytes": trial.stat().st_size, "layers_in_float": in_float}
        if result["released"]:
            trial.replace(target)
    return result


def judge(source: Path, trial: Path, settings: params.Params) -> dict[str, Any]:
    """Compare a variant with its original on the test pictures, in one run."""
    max_pixels, provider = settings.validate_.max_pixels, settings.export.provider
    original, variant = (serving.Session(path, provider) for path in (source, trial))
    test = packed.read_split("test")
    pictures = [images.read_picture(path, max_pixels) for path in some(test, 1)]
    return verdict(
        test.labels,
        predicted(original, test, max_pixels),
        predicted(variant, test, max_pixels),
        milliseconds(original, variant, pictures),
        settings.export.max_drop,
        provider,
    )


def main() -> None:
    """Make every variant of params.yaml and report on it."""
    settings = params.load()
    source = files.BEST / "model.onnx"
    if not source.exists():
        raise RefitError(f"no {source}: run `dvc repro export` first")
    files.VARIANTS.mkdir(parents=True, exist_ok=True)
    report = {name: release(name, source, settings) for name in settings.export.variants}
    files.write_json(
        files.VARIANTS / "report.json",
        {
            "of_sha256": files.sha256_file(source),
            "provider": settings.export.provider,
            "max_drop": settings.export.max_drop,
            "variants": report,
        },
    )
    for name, result in report.items():
        word = "released" if result["released"] else "not released"
        print(f"variants: {name} {word}: it {result['reason']}")


if __name__ == "__main__":
    program.run(main)
