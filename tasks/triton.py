"""A model repository for NVIDIA Triton from an exported file, ready to be mounted.

Triton joins the requests of many clients into one batch (dynamic batching); it does so for
pictures of equal size, so clients gain by sending one size.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from tasks import files, program
from tasks.predict import model_file
from tasks.serving import Session
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
MAX_BATCH = 32
QUEUE_MICROSECONDS = 2000  # how long the first picture of a batch waits for others at most
NAME = re.compile(r"[A-Za-z0-9_.-]+")
CONFIG = """\
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch}
input [
  {{ name: "{input}" data_type: {type} dims: [ {dims} ] }}
]
output [
{outputs}
]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
"""


def config(session: Session, name: str, max_batch: int) -> str:
    """Return Triton's config.pbtxt (protobuf text of `inference.ModelConfig`) for a file.

    Args:
        session: the file, loaded.
        name: of the model in the repository.
        max_batch: the most pictures that Triton joins.
    """
    taken = json.loads(session.metadata["input"])
    # The batch is Triton's own; other open dimensions are -1.
    dims = [size if isinstance(size, int) else -1 for size in taken["shape"][1:]]
    outputs = []
    for output, width in session.outputs.items():
        labels = ' label_filename: "labels.txt"' if output == "probabilities" else ""
        outputs.append(f'  {{ name: "{output}" data_type: TYPE_FP32 dims: [ {width} ]{labels} }}')
    return CONFIG.format(
        name=name,
        max_batch=max_batch,
        input=taken["name"],
        type=TYPES[taken["dtype"]],
        dims=", ".join(map(str, dims)),
        outputs=",\n".join(outputs),
        delay=QUEUE_MICROSECONDS,
    )


def write(model: Path, repository: Path, name: str, version: int, max_batch: int) -> Path:
    """Write `<repository>/<name>/` and return it; other versions in it stay.

    Raises:
        RefitError: the model cannot be used, or the name is none that Triton takes.
    """
    if not NAME.fullmatch(name):
        raise RefitError(f"model name {name!r} may hold only letters, digits, '_', '-' and '.'")
    session = Session(model, "cpu")
    folder = repository / name
    with replacing(folder / str(version) / "model.onnx") as temporary:
        shutil.copyfile(model, temporary)
    labels = [" ".join(label.splitlines()) for label in session.class_names]
    files.write_text(folder / "labels.txt", "".join(f"{label}\n" for label in labels))
    files.write_text(folder / "config.pbtxt", config(session, name, max_batch))
    return folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tasks.triton", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a file, or models:/NAME@champion")
    parser.add_argument("repository", metavar="OUT", type=Path, help="Triton's model repository")
    parser.add_argument("--name", default="refit", help="of the model (default refit)")
    parser.add_argument("--version", type=int, default=1, help="of the model (default 1)")
    parser.add_argument("--max-batch", type=int, default=MAX_BATCH, metavar="N")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    arguments = parse()

    def run() -> None:
        model = model_file(arguments.model)
        folder = write(
            model, arguments.repository, arguments.name, arguments.version, arguments.max_batch
        )
        print(f"{folder}: tritonserver --model-repository={arguments.repository}")

    program.run(run)


if __name__ == "__main__":
    main()
