"""A project that has just trained, without training: tiny pictures, ONNX files, a registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tasks import evaluate, files, packed, params, register, serving, tracking

SHIPPED = Path(__file__).resolve().parents[2] / "params.yaml"
CLASSES = ["blue", "red"]
EACH = 30
# A picture's red channel tells its class; its green one tells it in seven of ten pictures only.
GOOD = ((0.0, 8.0), (0.0, 0.0))
BAD = ((0.0, 0.0), (0.0, 1.7))


def write_model(
    path: Path, weights: Any, candidate: str, classes: list[str], **metadata: str
) -> None:
    """Write an ONNX file that classifies by the mean red and green of a picture."""
    table = np.zeros((3, len(classes)), np.float32)
    table[:2, : len(weights[0])] = weights
    bias = -table.sum(0) / 2
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "255"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {
        "255": np.array(255, np.float32),
        "axes": np.array([1, 2]),
        "weights": table,
        "bias": bias,
    }
    size: list[str | int | None] = ["N", len(classes)]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, size)
            for n in ("probabilities", "logits")
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    facts = {
        "class_names": json.dumps(classes),
        "preprocess": "{}",
        "input": json.dumps({"name": "image"}),
    }
    helper.set_model_props(model, {**facts, "temperature": "1", "candidate": candidate, **metadata})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def write_pictures() -> None:
    """Write test pictures, and what the stages before `register` would have written of them."""
    rows = []
    for label in CLASSES:
        for i in range(EACH):
            path = f"{label}/{i:02}.png"
            (files.RAW / label).mkdir(parents=True, exist_ok=True)
            green = (label == "red") == (i % 10 < 7)
            colour = (255 * (label == "red"), 255 * green, i)
            Image.new("RGB", (8, 8), colour).save(files.RAW / path)
            rows.append({"path": path, "label": label, "split": "test", "sha256": f"{label}{i}"})
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, files.MANIFEST)
    files.write_json(files.CLASSES, CLASSES)
    files.PACKED.mkdir(parents=True)
    places = {row["sha256"]: ("0.npy", i) for i, row in enumerate(rows)}
    packed.write_index(files.PACKED, table, CLASSES, places)


def train(weights: Any, name: str = "toy", classes: list[str] | None = None, **facts: str) -> None:
    """Leave in `data/` what training a candidate and exporting it leave."""
    known = classes or CLASSES
    onnx_file = files.BEST / "model.onnx"
    write_model(onnx_file, weights, name, known, **facts)
    model = files.MODELS / name / "model.safetensors"
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(onnx_file, model)
    pictures = packed.read_split("test")
    scores = serving.predict_files(
        serving.Session(onnx_file), [files.RAW / path for path in pictures.paths], 10**6
    )
    table = evaluate.predictions("test", pictures, tuple(known), scores)
    reports = files.REPORTS / name
    reports.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, reports / "predictions.parquet")
    figures = dict.fromkeys(("accuracy", "precision_macro", "recall_macro", "f1_macro"), 0.5)
    files.write_json(reports / "metrics.json", {"val": figures, "test": figures})
    validation = {
        "f1_macro": 0.5,
        "gflops": 1.0,
        "temperature": 1.0,
        "model_sha256": files.sha256_file(model),
        "initialised_from": "nothing",
    }
    files.write_json(model.with_name("validation.json"), validation)
    for stage in ("head", "fine_tune"):
        curve = "epoch,train_loss,val_loss,val_f1_macro,val_accuracy\n0,,0.7,0.5,0.5\n"
        (reports / f"{stage}_curve.csv").write_text(curve)


def settings(**more: Any) -> params.Params:
    """Write a params.yaml for the toy candidate and return it as read."""
    raw = yaml.safe_load(SHIPPED.read_text())
    raw["candidates"] = {"toy": {"arch": "resnet18", "weights": "random", "on_missing": "random"}}
    raw["register"] |= more
    params.PATH.write_text(yaml.safe_dump(raw))
    return params.load()


def registered(**more: Any) -> dict[str, Any]:
    """Run the step `register` in this process; return what it returned."""
    found = settings(**more)
    results = register.scored(found.candidates)
    with tracking.session(found.register_.experiment) as (client, experiment):
        return register.retrain_run(client, experiment, found, results, {})


def aliases() -> dict[str, str]:
    """Return alias -> version of the registered model."""
    found = tracking.MlflowClient().get_registered_model("refit").aliases
    return {alias: str(version) for alias, version in found.items()}


def versions() -> list[str]:
    """Return the versions of the registered model."""
    found = tracking.MlflowClient().search_model_versions("name = 'refit'")
    return sorted(str(version.version) for version in found)
