"""Take the exported file away alone and use it where there is nothing of this project.

`python -m tests.benchmarks.handover`, from a project that was retrained: makes a virtual
environment with onnxruntime, pillow and numpy, copies `data/best/model.onnx` and the client below
to an empty folder, and compares the classes of all test pictures with those that `evaluate` noted.
Not a test, because it installs packages from the index.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import onnx
import pyarrow.parquet as pq

# The README's example, to the letter.
CLIENT = """\
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
for path in sys.argv[1:]:
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    probabilities, _ = session.run(["probabilities", "logits"], {"image": np.array(picture)[None]})
    print(path, classes[probabilities[0].argmax()], probabilities[0].max(), sep="\\t")
"""


def expected(model: Path) -> dict[str, str]:
    """Return each test picture's path and its class by the evaluation of the exported candidate."""
    about = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    table = pq.read_table(f"data/reports/{about['candidate']}/predictions.parquet").to_pylist()
    return {row["path"]: row["predicted"] for row in table if row["split"] == "test"}


def main() -> None:
    """Make the empty folder, predict there, compare."""
    model = Path("data/best/model.onnx").resolve()
    raw = Path("data/raw").resolve()
    wanted = expected(model)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        venv.create(Path(folder, "venv"), with_pip=True)
        python = Path(folder, "venv/bin/python")
        packages = ["onnxruntime", "pillow", "numpy"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        alone = Path(folder, "alone")
        alone.mkdir()
        shutil.copy(model, alone)
        (alone / "client.py").write_text(CLIENT)
        done = subprocess.run(
            [python, "client.py", *(str(raw / path) for path in wanted)],
            cwd=alone,
            env={},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - started
    got = dict(line.split("\t")[:2] for line in done.stdout.splitlines())
    wrong = {path: name for path, name in wanted.items() if got[str(raw / path)] != name}
    print(json.dumps({"pictures": len(wanted), "other_class": wrong, "seconds": round(seconds, 1)}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
