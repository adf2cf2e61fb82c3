"""Smaller number formats for an exported file: float16, and int8 where it does not hurt.

Pixels are cut, resized and normalised in float32 in every variant: rounding there would be
rounding of the picture.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# The layers with weights, and what stands between them: left in float, each would make the
# numbers go to float and back.
LAYERS = ("Conv", "Gemm", "MatMul")
BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu")

Batches = list[npt.NDArray[Any]]


def layers(model: ModelProto) -> list[str]:
    """Return the names of the layers with weights, from input to output."""
    return [node.name for node in model.graph.node if node.op_type in LAYERS]


def to_fp16(path: Path, out: Path) -> None:
    """Write a variant that computes in float16 and takes and gives what the original does."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(path)
    before, network = _split(model)
    with _quiet():
        half = convert_float_to_float16(
            network, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Softmax"]
        )
        # Constants that both parts used have two types from now on, so two names.
        half = onnx.compose.add_prefix(half, "half_", rename_inputs=False, rename_outputs=False)
        ONNXModel(half).topological_sort()
    model_out = onnx.ModelProto()
    model_out.CopyFrom(model)
    del model_out.graph.node[:], model_out.graph.initializer[:]
    model_out.graph.node.extend([*before, *half.graph.node])
    used = {name for node in before for name in node.input}
    kept = [constant for constant in model.graph.initializer if constant.name in used]
    model_out.graph.initializer.extend([*kept, *half.graph.initializer])
    _save(model_out, model, "fp16", out)


def _split(model: ModelProto) -> tuple[list[NodeProto], ModelProto]:
    """Return the nodes before the first layer, and the rest as a model of its own.

    The converter would put a pair of casts between any two nodes that it is told to leave alone,
    and so round the levels of the picture.
    """
    import onnx

    count = len(_before_first_layer(model))
    before, after = list(model.graph.node[:count]), list(model.graph.node[count:])
    made = {name for node in before for name in node.output}
    crossing = {name for node in after for name in node.input} & made
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    used = {name for node in after for name in node.input}
    graph = onnx.helper.make_graph(
        after,
        "network",
        [value for value in inferred if value.name in crossing],
        list(model.graph.output),
        [constant for constant in model.graph.initializer if constant.name in used],
    )
    network = onnx.helper.make_model(graph, opset_imports=list(model.opset_import))
    network.ir_version = model.ir_version
    return before, network


def to_int8(path: Path, out: Path, pictures: Batches, in_float: list[str]) -> None:
    """Write a variant with 8-bit weights, a scale a channel, and calibrated 8-bit activations.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
    Only Inference", CVPR 2018; per-channel scales as in Krishnamoorthi, arXiv:1806.08342: with one
    scale for a whole tensor, MobileNets lose half of their accuracy.

    Args:
        path: the float32 file.
        out: where to write.
        pictures: inputs of the graph to calibrate with, [1, ...] each.
        in_float: names of layers that stay in float32.
    """
    import onnx

    model = onnx.load(path)
    excluded = [*_before_first_layer(model), *in_float]
    _quantise(path, out, pictures, nodes_to_exclude=excluded)
    _save(onnx.load(out), model, "int8", out)


def sensitivity(path: Path, folder: Path, pictures: Batches) -> dict[str, float]:
    """Return for each layer how far the logits move when it alone is quantised, worst first.

    Args:
        path: the float32 file.
        folder: for temporary files.
        pictures: inputs of the graph, [1, ...] each.

    Returns:
        layer's name -> root of the mean squared difference of the logits.
    """
    import onnx

    expected = logits(path, pictures)
    moved = {}
    for name in layers(onnx.load(path)):
        trial = folder / "trial.onnx"
        # The ranges of all activations are the same whichever layer is tried: measured once.
        cache = folder / "ranges.json"
        _quantise(path, trial, pictures, nodes_to_quantize=[name], calibration_cache_path=cache)
        moved[name] = float(np.sqrt(np.mean((logits(trial, pictures) - expected) ** 2)))
    return dict(sorted(moved.items(), key=lambda item: -item[1]))


def logits(path: Path, pictures: Batches) -> npt.NDArray[np.float32]:
    """Return a file's logits [n, C] for inputs of the graph, [1, ...] each, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rows = [session.run(["logits"], {name: picture})[0] for picture in pictures]
    return np.concatenate(rows)


def _quantise(path: Path, out: Path, pictures: Batches, **choice: Any) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _quiet():
        quantize_static(
            path,
            out,
            _reader(path, pictures),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*LAYERS, *BETWEEN],
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with int8 weights the fast kernels of x86
            weight_type=QuantType.QInt8,
            **choice,
        )


def _reader(path: Path, pictures: Batches) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    name = onnx.load(path).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(pictures)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            picture = next(self.rest, None)
            return None if picture is None else {name: picture}

    return Reader()


def _before_first_layer(model: ModelProto) -> list[str]:
    nodes = list(model.graph.node)
    first = next(i for i, node in enumerate(nodes) if node.op_type in LAYERS)
    return [node.name for node in nodes[:first]]


def _save(variant: ModelProto, original: ModelProto, name: str, out: Path) -> None:
    """Write a checked variant with the original's metadata and its own name."""
    import onnx

    facts = {entry.key: entry.value for entry in original.metadata_props} | {"variant": name}
    del variant.metadata_props[:]
    onnx.helper.set_model_props(variant, facts)
    out.write_bytes(variant.SerializeToString(deterministic=True))
    onnx.checker.check_model(out, full_check=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the advice of ONNX Runtime's tools, which the root logger and stdout would get."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logger.setLevel(level)
