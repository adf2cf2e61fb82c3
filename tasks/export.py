"""Stage `export`: the best candidate by validation as one ONNX file, proven on the test split."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from tasks import card, files, models, packed, params, program, results, serving
from tasks.vision import device, metrics, onnx_graph
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError
from tasks.vision.inference import predict_logits

PROOF_BATCHES = (1, 3, 8)
# Height and width in pixels: landscape, portrait, odd, one pixel, large.
PROOF_SIZES = ((48, 64), (640, 480), (17, 23), (101, 67), (1, 1), (1200, 1600))
PROOF_PIXELS = 3 * 1200 * 1600  # in one batch, so that the proof takes seconds


def complete(names: list[str]) -> dict[str, dict[str, Any]]:
    """Return each candidate's validation score, of those whose model is the one scored.

    Raises:
        RefitError: none is complete.
    """
    found = {}
    for name, score in results.validated(names).items():
        if score["model_sha256"] == files.sha256_file(files.MODELS / name / "model.safetensors"):
            found[name] = score
    for name in sorted(set(names) - found.keys()):
        print(f"export: {name} is left out: it has no evaluated model")
    if not found:
        raise RefitError(f"nothing to export: none of {names} has an evaluated model")
    return found


def expected(
    classifier: nn.Module,
    spec: models.Spec,
    pictures: packed.Pictures,
    temperature: float,
    batch_size: int,
) -> NDArray[np.float32]:
    """Return PyTorch's probabilities [n, C] for packed pictures."""
    logits = predict_logits(classifier, pictures.pixels, len(pictures), spec.preprocess, batch_size)
    probabilities: NDArray[np.float32] = (logits / temperature).softmax(1).cpu().numpy()
    return probabilities


def served(path: Path, pictures: packed.Pictures, max_pixels: int) -> NDArray[np.float32]:
    """Return the ONNX file's probabilities [n, C] for pictures read from their own files."""
    session = serving.Session(path, provider="cpu")
    paths = [files.RAW / path for path in pictures.paths]
    with program.bar("export: proof", "picture", len(pictures)) as bar:
        return serving.predict_files(session, paths, max_pixels, bar.update)


def prove(
    expected: NDArray[np.float32],
    got: NDArray[np.float32],
    paths: list[str],
    tolerance: float,
) -> float:
    """Return the largest difference of two sets of probabilities [n, C].

    Raises:
        RefitError: a picture is classified differently or differs by more than the tolerance.
    """
    worst = np.abs(expected - got).max(1)
    # Not a number must not pass.
    bad = np.flatnonzero(~(worst <= tolerance) | (expected.argmax(1) != got.argmax(1)))
    if len(bad):
        listed = "\n".join(f"  {paths[i]}: differs by {worst[i]:.2g}" for i in bad[:20])
        raise RefitError(
            f"ONNX Runtime and PyTorch disagree on {len(bad)} of {len(paths)} test pictures "
            f"(tolerance {tolerance:g}); nothing was exported:\n{listed}"
        )
    return float(worst.max())


def prove_shapes(
    path: Path, serving_model: onnx_graph.ServingModel, pixels: NDArray[np.uint8], tolerance: float
) -> float:
    """Return the largest difference to PyTorch over batches and sizes of pictures.

    Args:
        path: the ONNX file.
        serving_model: what was exported, on the CPU.
        pixels: real pictures uint8 [n, S, S, 3], which are stretched to each size; of noise,
            levels on the edge between two would say more of the rounding than of the file.
        tolerance: of a probability.

    Raises:
        RefitError: a batch or size differs by more.
    """
    session = serving.Session(path, provider="cpu")
    worst = 0.0
    for (height, width), count in itertools.product(PROOF_SIZES, PROOF_BATCHES):
        if height * width * count > PROOF_PIXELS:
            continue
        chosen = [pixels[i % len(pixels)] for i in range(count)]
        images = np.stack([np.array(Image.fromarray(p).resize((width, height))) for p in chosen])
        with torch.inference_mode():
            expected = serving_model(torch.from_numpy(images))[0].numpy()
        difference = float(np.abs(session.predict(list(images))[0] - expected).max())
        if not difference <= tolerance:  # not a number fails, too
            raise RefitError(
                f"ONNX Runtime and PyTorch disagree on a batch of {count} pictures of {width} x "
                f"{height} pixels by {difference:.2g} (tolerance {tolerance:g}); nothing was "
                "exported"
            )
        worst = max(worst, difference)
    return worst


def main() -> None:
    """Choose, export, prove; only a proven file takes its place, its card beside it."""
    settings = params.load()
    where = device.start(settings.data.seed)
    scores = complete(list(settings.candidates))
    best = results.best(scores)
    classifier, spec = models.load_classifier(files.MODELS / best / "model.safetensors")
    temperature = scores[best]["temperature"]  # fitted by `evaluate` on validation
    classifier.to(where)
    val, test = packed.read_split("val"), packed.read_split("test")
    of_val, of_test = (
        expected(classifier, spec, pictures, temperature, settings.evaluate.batch_size)
        for pictures in (val, test)
    )
    metadata = card.metadata(
        best,
        spec,
        scores[best]["model_sha256"],
        metrics.score(val.labels, of_val, list(spec.classes)),
        settings.export.licence,
    )
    tolerance = settings.export.max_probability_difference
    classifier.cpu()
    with replacing(files.BEST / "model.onnx") as temporary:
        onnx_graph.export(
            classifier,
            spec.preprocess,
            list(spec.classes),
            metadata,
            temporary,
            temperature,
            settings.export.input,
            settings.export.features,
        )
        few = test.pixels(np.arange(min(len(test), max(PROOF_BATCHES))))
        whole = onnx_graph.ServingModel(classifier, spec.preprocess, temperature)
        shapes = prove_shapes(temporary, whole, few, tolerance)
        got = served(temporary, test, settings.validate_.max_pixels)
        difference = max(shapes, prove(of_test, got, test.paths, tolerance))
        about = serving.Session(temporary, "cpu").metadata
        text = card.page(about, files.sha256_file(temporary))
    files.write_text(files.BEST / "card.md", text)
    print(
        f"export: {best} (val macro F1 {scores[best]['f1_macro']:.4f}) agrees with PyTorch on "
        f"all {len(test)} test pictures and all sizes, largest difference {difference:.1e}"
    )


if __name__ == "__main__":
    program.run(main)
