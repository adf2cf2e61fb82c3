"""The ONNX hand-over: raw pixels in, probabilities out, everything needed in one file.

The graph holds the preprocessing, the network, the temperature and the softmax; the file's
metadata hold the class names and what the model was made from. So a client cannot resize,
normalise or name classes in another way than training did.
"""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError
from tasks.vision.preprocess import HALF, Preprocess, centre_crop, normalise, resize_square

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

Form = Literal["pixels", "tensor"]

# A protobuf message ends at 2 GiB; some of it is kept for the graph beside the weights.
MAX_WEIGHT_BYTES = 2**31 - 2**24
_EXAMPLE_SIZE = (2, 97, 131, 3)  # no two alike, none 1: equal sizes could be taken for one symbol


def input_spec(form: Form, preprocess: Preprocess) -> dict[str, Any]:
    """Return what the graph takes, as its metadata say it.

    `pixels` takes pictures as they are. `tensor` is for providers without an antialiased Resize:
    the caller cuts and resizes, and the metadata say how; normalising stays in the graph.
    """
    if form == "pixels":
        return {
            "name": "image",
            "dtype": "uint8",
            "layout": "NHWC",
            "shape": ["N", "H", "W", 3],
            "colour": "RGB",
            "range": [0, 255],
        }
    return {
        "name": "tensor",
        "dtype": "float32",
        "layout": "NCHW",
        "shape": ["N", 3, preprocess.crop, preprocess.crop],
        "colour": "RGB",
        "range": [0, 255],
        "made_by": [
            {"do": "cut the centre square", "top": "(H - side) // 2", "left": "(W - side) // 2"},
            {"do": "resize", "side": preprocess.resize, "filter": "bilinear, antialiased"},
            {"do": "round", "as": f"floor(level + {HALF}), within 0..255", "offset": HALF},
            {"do": "cut the centre", "side": preprocess.crop},
        ],
    }


class ServingModel(nn.Module):
    """A classifier with its preprocessing before it and its softmax behind it.

    Args:
        classifier: maps normalised float32 [N, 3, crop, crop] to logits float32 [N, C].
        preprocess: the spec that the classifier was trained with.
        temperature: logits are divided by it before the softmax (Guo et al., "On Calibration
            of Modern Neural Networks", 2017); 1 leaves them as they are.
        form: see `input_spec`.
        features: also return the head's input; the classifier is a
            `tasks.vision.backbones.Classifier` then.
    """

    def __init__(
        self,
        classifier: nn.Module,
        preprocess: Preprocess,
        temperature: float = 1.0,
        form: Form = "pixels",
        features: bool = False,
    ):
        super().__init__()
        self.classifier: Any = classifier
        self.preprocess = preprocess
        self.temperature = temperature
        self.form = form
        self.outputs = ("probabilities", "logits", *(("features",) if features else ()))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Classify pictures.

        Args:
            image: uint8 RGB [N, H, W, 3], of any height and width; as `tensor` float32
                [N, 3, crop, crop], levels 0..255.

        Returns:
            probabilities float32 [N, C] and logits float32 [N, C], before the temperature; and
            the pooled features float32 [N, D] on request.
        """
        levels = image
        if self.form == "pixels":
            square = resize_square(image.permute(0, 3, 1, 2), self.preprocess.resize)
            levels = centre_crop(square, self.preprocess.crop)
        pixels = normalise(levels, self.preprocess)
        if "features" in self.outputs:
            features = self.classifier.features(pixels)
            logits = self.classifier.head(features)
            return torch.softmax(logits / self.temperature, dim=1), logits, features
        logits = self.classifier(pixels)
        return torch.softmax(logits / self.temperature, dim=1), logits

    def example(self, device: torch.device) -> Tensor:
        """Return an input to trace with."""
        if self.form == "pixels":
            return torch.zeros(_EXAMPLE_SIZE, dtype=torch.uint8, device=device)
        return torch.zeros(2, 3, self.preprocess.crop, self.preprocess.crop, device=device)


def export(
    classifier: nn.Module,
    preprocess: Preprocess,
    class_names: list[str],
    metadata: dict[str, str],
    path: Path,
    temperature: float = 1.0,
    form: Form = "pixels",
    features: bool = False,
) -> None:
    """Write a classifier as one self-contained ONNX file, atomically.

    Equal weights and arguments give equal bytes: whatever the exporter notes about this machine
    or this run is removed.

    Args:
        classifier: maps normalised float32 [N, 3, crop, crop] to logits [N, C]; it is put into
            eval mode.
        preprocess: the spec that the classifier was trained with.
        class_names: C names, in the order of the logits.
        metadata: further facts for the file's metadata, beside `class_names`, `preprocess`,
            `input` and `temperature`, which are always there.
        path: the .onnx file; its folder is made.
        temperature: see `ServingModel`.
        form: see `input_spec`.
        features: see `ServingModel`.

    Raises:
        RefitError: the weights are beyond one protobuf file, the names do not fit the logits,
            or torch.onnx cannot export this network.
    """
    import onnx

    weight_bytes = sum(
        tensor.nbytes for tensor in itertools.chain(classifier.parameters(), classifier.buffers())
    )
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise RefitError(
            f"{path}: the network's weights take {weight_bytes / 2**30:.2f} GiB, and one ONNX "
            f"file holds {MAX_WEIGHT_BYTES / 2**30:.2f} GiB: choose a smaller architecture"
        )
    serving = ServingModel(classifier, preprocess, temperature, form, features).eval()
    example = serving.example(next(classifier.parameters()).device)
    taken = input_spec(form, preprocess)
    opened = {axis: name for axis, name in enumerate(taken["shape"]) if isinstance(name, str)}
    with torch.no_grad():
        widths = [output.shape[1] for output in serving(example)]
        if widths[0] != len(class_names):
            raise RefitError(
                f"{path}: {len(class_names)} class names for a network with {widths[0]} outputs"
            )
        model = _trace(serving, example, taken["name"], opened, path)
    _strip(model)
    _name_dimensions(model.graph, opened, widths)
    facts = {
        **metadata,
        "class_names": json.dumps(class_names, ensure_ascii=False),
        "preprocess": json.dumps(preprocess.as_dict()),
        "input": json.dumps(taken),
        "temperature": json.dumps(temperature),
    }
    onnx.helper.set_model_props(model, facts)
    _write(model, path)


def _trace(
    serving: ServingModel, example: Tensor, name: str, opened: dict[int, str], path: Path
) -> ModelProto:
    """Return the ONNX graph of the model with the dimensions `opened` left open."""
    dim = torch.export.Dim
    # torch.onnx makes a constant of an open dimension that a layer fixes, named or automatic, and
    # says nothing: `_name_dimensions` looks.
    shape = {axis: dim(symbol) for axis, symbol in opened.items()}
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                serving,
                (example,),
                dynamo=True,
                dynamic_shapes=(shape,),
                input_names=[name],
                output_names=list(serving.outputs),
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise RefitError(f"{path}: torch.onnx cannot export this network: {reason}") from error
    model: ModelProto = program.model_proto
    return model


def _strip(model: ModelProto) -> None:
    """Remove the exporter's notes: stack traces, paths, and names that differ from run to run."""
    model.doc_string = ""
    del model.metadata_props[:]
    # Shapes between the layers carry numbered symbols; a runtime infers them again.
    del model.graph.value_info[:]
    parts: list[Any] = [model.graph, *model.functions]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
        for node in part.node:
            node.doc_string = ""
            del node.metadata_props[:]
    values: list[Any] = [*model.graph.input, *model.graph.output, *model.graph.initializer]
    for value in values:
        value.doc_string = ""
        del value.metadata_props[:]


def _name_dimensions(graph: GraphProto, opened: dict[int, str], widths: list[int]) -> None:
    """Name the open dimensions of the input and state the widths of the outputs.

    Raises:
        RefitError: one that must be open has become a constant.
    """
    shape = graph.input[0].type.tensor_type.shape.dim
    for axis, name in opened.items():
        if shape[axis].HasField("dim_value"):
            raise RefitError(
                f"the exported graph takes {name} = {shape[axis].dim_value} only: a layer of this "
                "network fixes it"
            )
        shape[axis].dim_param = name
    for output, width in zip(graph.output, widths, strict=True):
        rows, columns = output.type.tensor_type.shape.dim
        rows.dim_param = "N"
        columns.dim_value = width


def _write(model: ModelProto, path: Path) -> None:
    """Write and check the file under a temporary name, then let it take its place."""
    import onnx

    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(temporary, full_check=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch.export and onnxscript say below an error."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
