"""Real pictures for the demo: solar cells from the package `elpv-dataset`, sound or defective.

Deitsch et al., "Automatic classification of defective photovoltaic module cells in
electroluminescence images", Solar Energy 185 (2019). Licence CC BY-NC-SA 4.0: the pictures stay
in the package and in `data/raw`, never in this repository.
"""

from __future__ import annotations

import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

from tasks import files, program
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

IMAGES = 500  # so that two candidates on two cores stay well under five minutes
SEED = 42


def probabilities() -> dict[Path, float]:
    """Return the package's pictures, and how probably each is defective: 0, 1/3, 2/3 or 1.

    The experts' word and how sure they were of it.

    Raises:
        RefitError: the package is not installed.
    """
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise RefitError("the package elpv-dataset is not installed: run `make setup`")
    package = Path(spec.origin).parent
    rows = [line.split() for line in (package / "data/labels.csv").read_text().splitlines()]
    return {package / "data" / path: float(probability) for path, probability, _ in rows}


def cells() -> dict[str, list[Path]]:
    """Return the package's pictures by class: defective if that is more probable than not.

    Raises:
        RefitError: the package is not installed.
    """
    found: dict[str, list[Path]] = {"defective": [], "functional": []}
    for path, probability in probabilities().items():
        found["defective" if probability > 0.5 else "functional"].append(path)
    return found


def choose(pictures: dict[str, list[Path]], wanted: str) -> dict[str, list[Path]]:
    """Return a balanced, seeded subset, or everything for `all`.

    Raises:
        RefitError: `wanted` is neither `all` nor a number.
    """
    if wanted == "all":
        return pictures
    if not wanted.isdecimal() or int(wanted) < len(pictures):
        raise RefitError(f"DEMO_IMAGES={wanted!r} is neither `all` nor a number of pictures")
    each = int(wanted) // len(pictures)
    return {
        label: sorted(random.Random(SEED).sample(paths, min(each, len(paths))))  # noqa: S311
        for label, paths in pictures.items()
    }


def main() -> None:
    """Fill data/raw, which must be empty or hold the demo's own pictures."""
    everything = cells()
    known = {f"{label}/{path.name}" for label, paths in everything.items() for path in paths}
    there = {str(p.relative_to(files.RAW)) for p in files.RAW.rglob("*") if p.is_file()}
    if foreign := sorted(there - known):
        raise RefitError(
            f"data/raw holds {len(foreign)} files that are not the demo's (first: {foreign[0]}): "
            "`make retrain` trains on them; `make demo` wants a folder of its own"
        )
    chosen = choose(everything, os.environ.get("DEMO_IMAGES", str(IMAGES)))
    wanted = {f"{label}/{path.name}": path for label, paths in chosen.items() for path in paths}
    for name in sorted(there - wanted.keys()):
        (files.RAW / name).unlink()
    for name in program.progress(sorted(wanted.keys() - there), "demo pictures", "picture"):
        with replacing(files.RAW / name) as temporary:
            shutil.copyfile(wanted[name], temporary)
    print(
        ", ".join(f"{len(paths)} {label}" for label, paths in chosen.items()),
        "solar cells in data/raw (elpv-dataset, CC BY-NC-SA 4.0)",
    )


if __name__ == "__main__":
    program.run(main)
