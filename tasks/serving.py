"""A model in use: one ONNX file, ONNX Runtime and numpy; no torch.

The graph takes raw pixels and its metadata name the classes, so there is nothing to configure.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from tasks.vision import images as decoder
from tasks.vision.errors import RefitError

Provider = Literal["auto", "cpu", "cuda"]

# What `tasks.vision.onnx_graph.export` always writes.
REQUIRED = ("class_names", "preprocess", "input", "temperature")
AT_ONCE = 16  # pictures decoded at full size: enough to fill the processor, little memory
_NAMES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
# TensorFloat-32 keeps 10 bits of mantissa: probabilities would differ from the evaluated ones.
_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})
_FATAL, _WARNING = 4, 2  # ONNX Runtime's log severities

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Session:
    """An exported model, loaded.

    Args:
        path: the .onnx file that `tasks.vision.onnx_graph.export` wrote.
        provider: `cuda` fails without a usable GPU; `auto` falls back to the CPU, and
            the attribute of that name says which it took.

    Attributes:
        class_names: in the order of the columns that `predict` returns.
        metadata: everything that the file says of itself, as written.
        provider: cpu or cuda, whichever computes.
        outputs: name -> width.

    Raises:
        RefitError: no such file, no model that Refit exported, or no CUDA where it was asked for.
    """

    def __init__(self, path: Path | str, provider: Provider = "auto"):
        path = Path(path)
        if not path.is_file():
            raise RefitError(f"no model file {path}: `make retrain` or `dvc pull` brings it")
        self._session, complaint = _open(path, provider)
        self.provider = _NAMES[self._session.get_providers()[0]]
        if provider == "cuda" and self.provider != "cuda":
            raise RefitError(_no_cuda(complaint))
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        missing = [key for key in REQUIRED if key not in self.metadata]
        if missing:
            raise RefitError(
                f"{path} is an ONNX file, but not one that Refit exported: its metadata lack "
                f"{', '.join(missing)}"
            )
        self.class_names: list[str] = json.loads(self.metadata["class_names"])
        self.outputs: dict[str, int] = {o.name: o.shape[1] for o in self._session.get_outputs()}
        self._input: str = self._session.get_inputs()[0].name
        # A file of the form `tensor` names what its caller has to do to a picture.
        self._made_by: list[dict[str, Any]] = json.loads(self.metadata["input"]).get("made_by", [])

    def predict(self, images: list[Pixels]) -> tuple[Floats, Floats]:
        """Classify pictures; those of equal size are computed as one batch.

        Args:
            images: n arrays, each uint8 RGB [H, W, 3] of its own size.

        Returns:
            probabilities and logits, float32 [n, C] each, in the order of `images`.

        Raises:
            RefitError: an array of another shape or dtype; the message names its place.
        """
        probabilities, logits = self.run(images, ["probabilities", "logits"])
        return probabilities, logits

    def run(self, images: list[Pixels], outputs: list[str]) -> list[Floats]:
        """Compute some of the graph's outputs, `features` included where the file has them.

        Args:
            images: as in `predict`.
            outputs: names.

        Returns:
            float32 [n, width] for each name, in the order of `images`.

        Raises:
            RefitError: as in `predict`, or the file has no such output.
        """
        if absent := set(outputs) - self.outputs.keys():
            raise RefitError(
                f"the model has no output {', '.join(sorted(absent))}: it has "
                f"{', '.join(self.outputs)} (`export.features: true` in params.yaml adds the "
                "features)"
            )
        found = [np.empty((len(images), self.outputs[name]), np.float32) for name in outputs]
        for places, batch in self.batches(images):
            computed = self._session.run(outputs, {self._input: batch})
            for rows, values in zip(found, computed, strict=True):
                rows[places] = values
        return found

    def batches(self, images: list[Pixels]) -> Iterator[tuple[list[int], npt.NDArray[Any]]]:
        """Yield the graph's inputs, with the places in `images` that each one holds."""
        same_size: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            _check(image, place)
            same_size.setdefault(image.shape, []).append(place)
        if not self._made_by:
            for places in same_size.values():
                yield places, np.stack([images[place] for place in places])
        elif images:
            steps = {step["do"]: step for step in self._made_by}
            sides = steps["resize"]["side"], steps["cut the centre"]["side"]
            made = [centre_levels(image, *sides, steps["round"]["offset"]) for image in images]
            yield list(range(len(images))), np.stack(made)


def centre_levels(image: Pixels, resize: int, crop: int, offset: float) -> Floats:
    """Make one picture's input for a file of the form `tensor`.

    The numbers are those of `tasks.vision.preprocess.resize_square`, without torch.

    Args:
        image: uint8 RGB [H, W, 3].
        resize: side in pixels that the centre square is resized to, antialiased.
        crop: side in pixels of the centre that is kept of it.
        offset: what is added before rounding down.

    Returns:
        float32 [3, crop, crop], whole levels 0..255.
    """
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].astype(np.float64)
    margin = (resize - crop) // 2
    weights = _triangle(side, resize)[margin : margin + crop]
    small = np.einsum("yh,hwc,xw->cyx", weights, square, weights, optimize=True)
    levels: Floats = np.floor(small + offset).clip(0, 255).astype(np.float32)
    return levels


def _triangle(size: int, wanted: int) -> npt.NDArray[np.float64]:
    """Return the weights [wanted, size] of antialiased bilinear resizing along one axis."""
    scale = size / wanted
    centres = (np.arange(wanted)[:, None] + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres) / max(scale, 1.0)
    weights = np.clip(1.0 - distance, 0.0, None)
    normalised: npt.NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return normalised


def predict_files(
    session: Session,
    paths: list[Path],
    max_pixels: int,
    on_pictures: Callable[[int], object] = lambda _: None,
) -> Floats:
    """Classify picture files as a service would: own decoder, ONNX Runtime, no torch.

    Args:
        session: the model.
        paths: n picture files.
        max_pixels: larger ones are refused before they are decoded.
        on_pictures: told of how many were done, group by group.

    Returns:
        probabilities float32 [n, C].

    Raises:
        PictureError: a picture cannot be read.
    """
    out = [np.empty((0, len(session.class_names)), np.float32)]
    for start in range(0, len(paths), AT_ONCE):
        group = paths[start : start + AT_ONCE]
        out.append(session.predict([decoder.read_picture(path, max_pixels) for path in group])[0])
        on_pictures(len(group))
    return np.concatenate(out)


def _open(path: Path, provider: Provider) -> tuple[Any, str]:
    """Return ONNX Runtime's session and what was said while CUDA's libraries were loaded."""
    options = onnxruntime.SessionOptions()
    # Threads that spin while they wait slow down everything else in the process and on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    said = io.StringIO()
    if provider != "cpu" and _CUDA[0] in onnxruntime.get_available_providers():
        providers.insert(0, _CUDA)
        # It looks for CUDA beside the Python packages, which the linker does not; and it prints.
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
    # The reason why CUDA cannot be had is of use only to those who asked for it.
    onnxruntime.set_default_logger_severity(_FATAL if provider == "auto" else _WARNING)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions share no other base
        raise RefitError(_unusable(path, error)) from None
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)
    return session, said.getvalue()


def _unusable(path: Path, error: Exception) -> str:
    if "NOT_IMPLEMENTED" in str(error):  # the message goes on to name the operator
        return (
            f"{path} needs an operator that this provider lacks: {error}\nIf it is the Resize, "
            "export with `export.input: tensor` in params.yaml: the caller resizes then"
        )
    return f"{path} is no ONNX model that can be loaded: {error}"


def _no_cuda(complaint: str) -> str:
    reason = complaint.strip().partition("\n")[0] or "ONNX Runtime could not start it"
    return (
        f"asked for CUDA and did not get it ({reason}): check that `nvidia-smi` lists a GPU and "
        "that CUDA's libraries are installed (`pip install 'onnxruntime-gpu[cuda,cudnn]'`), or "
        "ask for `cpu` or `auto`"
    )


def _check(image: Pixels, place: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise RefitError(
            f"picture {place}: {image.dtype} {list(image.shape)}, where uint8 RGB [H, W, 3] belongs"
        )
