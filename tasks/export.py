"""Stage `export`: the best candidate by validation as one ONNX file, proven on the test split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import files, models, packed, params, program, results, serving
from tasks.vision import device, onnx_graph
from tasks.vision.errors import RefitError
from tasks.vision.fine_tuning import predict_logits


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
    bad = np.flatnonzero((worst > tolerance) | (expected.argmax(1) != got.argmax(1)))
    if len(bad):
        listed = "\n".join(f"  {paths[i]}: differs by {worst[i]:.2g}" for i in bad[:20])
        raise RefitError(
            f"ONNX Runtime and PyTorch disagree on {len(bad)} of {len(paths)} test pictures "
            f"(tolerance {tolerance:g}); nothing was exported:\n{listed}"
        )
    return float(worst.max())


def main() -> None:
    """Choose, export, prove; only a proven file takes its place."""
    settings = params.load()
    where = device.start(settings.data.seed)
    scores = complete(list(settings.candidates))
    best = results.best(scores)
    classifier, spec = models.load_classifier(files.MODELS / best / "model.safetensors")
    test = packed.read_split("test")
    expected = predict_logits(
        classifier.to(where),
        test.pixels,
        len(test),
        spec.preprocess,
        settings.evaluate.batch_size,
    )
    metadata = {
        "candidate": best,
        "arch": spec.arch,
        "initialised_from": spec.initialised_from,
        "data_version": files.data_version(),
        "model_sha256": scores[best]["model_sha256"],
        "val_f1_macro": json.dumps(scores[best]["f1_macro"]),
    }
    with files.replacing(files.BEST / "model.onnx") as temporary:
        onnx_graph.export(
            classifier.cpu(),
            spec.preprocess,
            list(spec.classes),
            metadata,
            temporary,
            scores[best]["temperature"],
        )
        difference = prove(
            (expected / scores[best]["temperature"]).softmax(1).cpu().numpy(),
            served(temporary, test, settings.validate_.max_pixels),
            test.paths,
            settings.export.max_probability_difference,
        )
    print(
        f"export: {best} (val macro F1 {scores[best]['f1_macro']:.4f}) agrees with PyTorch on "
        f"all {len(test)} test pictures, largest difference {difference:.1e}"
    )


if __name__ == "__main__":
    program.run(main)
