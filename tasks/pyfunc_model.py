"""MLflow's view of an exported file: what `mlflow models serve` loads and calls.

A model flavour of its own, of the kind that MLflow documents for custom libraries: the folder is
that of MLflow's ONNX flavour, so `mlflow.onnx.load_model` works too, and the code that turns
pictures into answers travels with the file, so that a server needs this project no more.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks.serving import Pixels, Session
from tasks.vision.errors import RefitError
from tasks.vision.images import decode

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo

MODEL_FILE = "model.onnx"
PACKAGE = Path(__file__).parent
# What this module imports; the decoder is the one of training.
CODE = ("pyfunc_model.py", "serving.py", "vision/errors.py", "vision/images.py")
# It travels under a name of its own: MLflow puts it first on the path of whoever loads a model,
# where it would hide this project's own package.
TRAVELLING = "refit_picture_model"
WANTED = (
    "send picture files as bytes or base64 text, one a row, or pixels as uint8 RGB [H, W, 3] or "
    "[N, H, W, 3]"
)


class PictureModel:
    """What MLflow calls; answers with a row a picture."""

    def __init__(self, path: Path) -> None:
        """Load an exported file."""
        self.session = Session(path)

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify pictures.

        Args:
            data: one picture or many: files as bytes or base64 text, pixels as arrays [H, W, 3]
                or [N, H, W, 3] of whole numbers 0..255; in a list, an array, a dict or a
                DataFrame with one column or key.
            params: MLflow passes what a caller sets; there is nothing to set.

        Returns:
            Columns `label`, `probability` and one for each class with its probability.

        Raises:
            RefitError: something that is no picture; the message names its place.
        """
        import pandas as pd

        images = [image for place, item in enumerate(_rows(data)) for image in _images(item, place)]
        probabilities, _ = self.session.predict(images)
        names = np.array(self.session.class_names, dtype=object)
        frame = pd.DataFrame(probabilities, columns=self.session.class_names)
        frame.insert(0, "label", names[probabilities.argmax(1)], allow_duplicates=True)
        frame.insert(1, "probability", probabilities.max(1), allow_duplicates=True)
        return frame


def _rows(data: Any) -> list[Any]:
    """Return the items of whatever form MLflow hands over."""
    if isinstance(data, (str, bytes, bytearray)):
        return [data]
    if hasattr(data, "columns"):  # a DataFrame
        data = {name: data[name].tolist() for name in data.columns}
    if isinstance(data, dict):
        if len(data) != 1:
            raise RefitError(
                f"{len(data)} columns ({', '.join(map(str, data))}), not one: {WANTED}"
            )
        return _rows(next(iter(data.values())))
    if isinstance(data, np.ndarray) and data.dtype.kind in "iuf":
        return [data]
    return list(data)


def _images(item: Any, place: int) -> list[Pixels]:
    """Return the pictures that one item holds."""
    if isinstance(item, str):
        try:
            # A data URL, as browsers make them, says its type before a comma.
            item = base64.b64decode(item.rpartition(",")[2], validate=True)
        except binascii.Error as error:
            raise RefitError(f"picture {place}: no base64 text ({error}): {WANTED}") from None
    if isinstance(item, (bytes, bytearray)):
        try:
            return [decode(bytes(item))]
        except RefitError as error:
            raise RefitError(f"picture {place}: {error}") from None
    levels = np.asarray(item)
    if levels.ndim not in (3, 4) or levels.shape[-1] != 3 or not _are_levels(levels):
        raise RefitError(f"picture {place}: {levels.dtype} {list(levels.shape)}: {WANTED}")
    exact = levels.astype(np.uint8)
    return [exact] if exact.ndim == 3 else list(exact)


def _are_levels(values: npt.NDArray[Any]) -> bool:
    """Whether all are whole numbers 0..255, of whatever type JSON made of them."""
    if values.dtype == np.uint8:
        return True
    return bool(
        values.dtype.kind in "iu" and values.size and values.min() >= 0 and values.max() <= 255
    )


def _load_pyfunc(path: str) -> PictureModel:
    """Load what `save_model` saved; MLflow calls this by its name."""
    return PictureModel(Path(path))


def log(path: Path, pip_requirements: list[str]) -> ModelInfo:
    """Log an exported file to the active run.

    Args:
        path: the .onnx file.
        pip_requirements: what a server installs; named here, MLflow does not start a process
            that loads the model to guess them.
    """
    from mlflow.models import Model

    logged: ModelInfo = Model.log(
        artifact_path=None,
        name="model",
        flavor=sys.modules[__name__],
        onnx_path=path,
        pip_requirements=pip_requirements,
    )
    return logged


def save_model(
    path: str, mlflow_model: Model, onnx_path: Path, pip_requirements: list[str], **_: Any
) -> None:
    """Write an MLflow model folder; `Model.log` calls this by its name.

    Args:
        path: the folder to make.
        mlflow_model: its description, which is completed and saved.
        onnx_path: the .onnx file, which is copied byte by byte.
        pip_requirements: what a server installs.
    """
    import mlflow.onnx
    import onnx
    from mlflow import pyfunc

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, TRAVELLING)
        copy_code(package)
        mlflow.onnx.save_model(
            # MLflow empties the proto that it is given: it gets one of its own.
            onnx.load(onnx_path),
            path,
            mlflow_model=mlflow_model,
            code_paths=[str(package)],
            pip_requirements=pip_requirements,
            save_as_external_data=False,
        )
    shutil.copyfile(onnx_path, Path(path, MODEL_FILE))
    mlflow_model.flavors[pyfunc.FLAVOR_NAME]["loader_module"] = (
        f"{TRAVELLING}.{Path(__file__).stem}"
    )
    mlflow_model.save(str(Path(path, "MLmodel")))


def copy_code(package: Path) -> None:
    """Write what the model's code needs as a package that imports nothing of this project."""
    for name in CODE:
        text = (PACKAGE / name).read_text(encoding="utf-8")
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "__init__.py").touch()
        target.write_text(
            re.sub(rf"^from {PACKAGE.name}\b", f"from {package.name}", text, flags=re.MULTILINE),
            encoding="utf-8",
        )
