"""Sessions answer in order and refuse what they cannot do; the command line says what they say."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks import predict
from tasks.drift import FactsFile
from tasks.gate import facts, frames
from tasks.gate.history import last_accepted
from tasks.gate.store import MANIFEST
from tasks.serving import Session
from tasks.vision.errors import RefitError
from tests.benchmarks.handover import CLIENT
from tests.unit.colours import NAMES, write_model

REPOSITORY = Path(__file__).parents[2]
NO_GPU = shutil.which("nvidia-smi") is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.onnx")


def plain(red: int, green: int, blue: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.full((*size, 3), (red, green, blue), np.uint8)


PICTURES = {
    "a_red.png": plain(255, 0, 51, (20, 30)),
    "b_green.png": plain(0, 255, 0, (40, 20)),
    "sub/c_blue.png": plain(0, 51, 255, (20, 30)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pixels in PICTURES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks.predict", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_predicts_mixed_sizes_in_order(model: Path) -> None:
    session = Session(model, "cpu")
    probabilities, logits = session.predict(list(PICTURES.values()))
    expected = np.array([[2, 0, 10], [0, 10, 0], [10, 2, 0]], np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(
        probabilities, np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True), atol=1e-6
    )
    assert session.class_names == NAMES
    assert session.metadata["git_commit"] == "abc"


def test_no_pictures_give_no_rows(model: Path) -> None:
    probabilities, logits = Session(model, "cpu").predict([])
    assert probabilities.shape == logits.shape == (0, 3)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_arrays_are_refused_by_place(model: Path, picture: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(RefitError, match=r"picture 1: .*uint8 RGB \[H, W, 3\]"):
        Session(model, "cpu").predict([PICTURES["a_red.png"], picture])


def test_cuda_is_had_or_refused_never_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RefitError, match=r"asked for CUDA and did not get it.*nvidia-smi"):
        Session(model, "cuda")


def test_auto_says_what_it_took_and_nothing_else(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert Session(model, "auto").provider == ("cpu" if NO_GPU else "cuda")
    assert Session(model, "cpu").provider == "cpu"
    assert capfd.readouterr() == ("", "")


def test_files_that_are_no_model_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RefitError, match=r"no model file .*nowhere\.onnx"):
        Session(tmp_path / "nowhere.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(RefitError, match=r"cut\.onnx is no ONNX model that can be loaded"):
        Session(cut)
    foreign = onnx.load(model)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(RefitError, match="not one that Refit exported: its metadata lack class_na"):
        Session(tmp_path / "foreign.onnx")


def test_folders_and_globs_are_expanded_in_order(folder: Path) -> None:
    names = [Path(p).name for p in predict.expand([str(folder)])]
    assert names == ["a_red.png", "b_green.png", "c_blue.png"]
    assert list(predict.expand([f"{folder}/*"])) == [f"{folder}/{n}" for n in list(PICTURES)[:2]]
    assert [Path(p).name for p in predict.expand([f"{folder}/**/c*"])] == ["c_blue.png"]
    assert list(predict.expand(["odd.name", f"{folder}/x*"])) == ["odd.name", f"{folder}/x*"]


def test_a_name_with_brackets_is_a_file_first(folder: Path) -> None:
    odd = folder / "scan[1].png"
    (folder / "a_red.png").rename(odd)
    assert list(predict.expand([str(odd)])) == [str(odd)]


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "GROUP_BYTES", 100)
    small, large = np.zeros((2, 2, 3), np.uint8), np.zeros((9, 9, 3), np.uint8)
    pictures = [("s", small)] * 2 + [("l", large)] * 2 + [("s", small)]
    groups = ["".join(name for name, _ in group) for group in predict.grouped(pictures)]
    assert groups == ["ssl", "l", "s"]
    assert [len(g) for g in predict.grouped([("s", small)] * 5, 2)] == [2, 2, 1]


def test_json_lines_equal_the_session(model: Path, folder: Path) -> None:
    done = run(model, folder, "--json", "--provider", "cpu")
    assert (done.returncode, done.stderr) == (0, f"{model} on cpu\n")
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    probabilities, _ = Session(model, "cpu").predict(list(PICTURES.values()))
    assert [row["path"] for row in rows] == [str(folder / name) for name in PICTURES]
    assert [row["label"] for row in rows] == ["red", "green", "blue"]
    for row, expected in zip(rows, probabilities, strict=True):
        assert list(row) == ["path", "label", "probability", "probabilities"]
        assert list(row["probabilities"]) == NAMES
        assert row["probability"] == row["probabilities"][row["label"]]
        np.testing.assert_array_equal(list(row["probabilities"].values()), expected)


def test_bad_pictures_are_reported_and_skipped(model: Path, folder: Path) -> None:
    (folder / "a_broken.jpg").write_bytes(b"no picture at all")
    done = run(model, folder, folder / "missing.png", "--provider", "cpu")
    assert done.returncode == 1
    assert [row.split("\t")[:2] for row in done.stdout.splitlines()] == [
        [str(folder / "a_red.png"), "red"],
        [str(folder / "b_green.png"), "green"],
        [str(folder / "sub/c_blue.png"), "blue"],
    ]
    said = done.stderr.splitlines()
    assert said[1].startswith(f"skipped {folder}/a_broken.jpg: ")
    assert said[2] == f"skipped {folder}/missing.png: No such file or directory"
    assert said[3:] == ["error: 2 of 5 pictures could not be read"]


def test_top_k_names_the_most_probable_first() -> None:
    row = np.array([0.2, 0.5, 0.3], np.float32)
    assert predict.line("p", row, NAMES, None, False) == "p\tgreen\t0.5000"
    assert predict.line("p", row, NAMES, 2, False) == "p\tgreen\t0.5000\tred\t0.3000"
    assert list(json.loads(predict.line("p", row, NAMES, 2, True))["probabilities"]) == [
        "green",
        "red",
    ]
    with pytest.raises(SystemExit):
        predict.parse(["m", "p", "--top-k", "0"])


def test_csv_holds_what_json_holds(model: Path, folder: Path) -> None:
    odd = folder / 'b "green", odd.png'
    (folder / "b_green.png").rename(odd)
    done = run(model, folder, "--csv", "--provider", "cpu", "--batch", "2")
    assert done.returncode == 0
    rows = list(csv.DictReader(done.stdout.splitlines()))
    expected, _ = Session(model, "cpu").predict(list(PICTURES.values()))
    assert [row["path"] for row in rows][1] == str(odd)
    assert [row["label"] for row in rows] == ["red", "green", "blue"]
    for row, probabilities in zip(rows, expected, strict=True):
        assert list(row)[3:] == ["p(blue)", "p(green)", "p(red)"]
        got = np.array([row[f"p({name})"] for name in NAMES], np.float32)
        np.testing.assert_array_equal(got, probabilities)


def test_csv_of_the_most_probable() -> None:
    row = np.array([0.25, 0.5, 0.125], np.float32)
    head = ["path", "label_1", "probability_1", "label_2", "probability_2"]
    assert predict.csv_columns(NAMES, 2) == head
    assert predict.csv_row("p", row, NAMES, 2) == ["p", "green", 0.5, "blue", 0.25]
    assert len(predict.csv_columns(NAMES, 9)) == len(predict.csv_row("p", row, NAMES, 9)) == 7


def test_facts_are_the_manifests_and_feed_the_drift_check(model: Path, folder: Path) -> None:
    out = folder / "facts" / "night.parquet"
    (folder / "a_broken.jpg").write_bytes(b"no picture at all")
    done = run(model, folder, "--provider", "cpu", "--facts", out)
    assert done.returncode == 1  # of the broken one; the others are there
    table = pq.read_table(out)
    assert table.schema.names == [*MANIFEST.names, "confidence"]
    assert table["label"].to_pylist() == ["red", "green", "blue"]
    first = folder / "a_red.png"
    row = table.to_pylist()[0]
    known = facts.facts_of(first.read_bytes(), 10**8)._asdict()
    assert {name: row[name] for name in known} == known
    assert row["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    probabilities, _ = Session(model, "cpu").predict(list(PICTURES.values()))
    np.testing.assert_array_equal(table["confidence"].to_numpy(), probabilities.max(1))
    darker = table.set_column(4, "sha256", pa.array(["x", "y", "z"]))
    darker = darker.set_column(12, "mean", pa.array([1.0, 2.0, 3.0]))
    trained_on = folder / "facts" / "manifest.parquet"
    splits = pa.array(["train", "val", "test"])  # an accepted picture always has one
    place = darker.schema.get_field_index("split")
    pq.write_table(darker.set_column(place, "split", splits), trained_on)
    drift = frames.drift_frame(table, last_accepted(trained_on))
    assert drift.loc["mean", "statistic"] == 1.0
    assert drift.loc["width", "statistic"] == 0.0


def test_many_facts_are_written_in_parts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.drift.ROWS_AT_ONCE", 2)
    out = FactsFile(tmp_path / "facts.parquet")
    for _ in range(5):
        out.add(str(folder / "a_red.png"), "red", 0.5)
    out.close()
    file = pq.ParquetFile(tmp_path / "facts.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [2, 2, 1]


def test_a_registered_model_needs_its_registry(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(folder)
    with pytest.raises(RefitError, match=r"no mlflow\.db in .*start from the project's folder"):
        predict.model_file("models:/refit@champion")
    assert not list(folder.glob("mlflow*"))


def test_an_empty_folder_and_a_missing_model_are_errors(model: Path, tmp_path: Path) -> None:
    done = run(model, tmp_path, "--provider", "cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1:] == [f"error: no pictures in {tmp_path}"]
    done = run(tmp_path / "no.onnx", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: no model file {tmp_path}/no.onnx")


def test_a_reader_that_stops_early_ends_it_in_silence(model: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "tasks.predict", str(model), "--provider", "cpu"]
    more_than_a_pipe_holds = [str(folder)] * 1000
    with subprocess.Popen(
        [*command, *more_than_a_pipe_holds],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().split("\t")[1] == "red"
        process.stdout.close()
        assert process.stderr.read() == f"{model} on cpu\n"
    assert process.returncode == 0


def test_the_readmes_client_gives_what_predict_gives(
    model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = tmp_path_factory.mktemp("alone")
    shutil.copy(model, alone)
    (alone / "client.py").write_text(CLIENT)
    pictures = [str(folder / name) for name in PICTURES]
    done = subprocess.run(
        [sys.executable, "client.py", *pictures], cwd=alone, capture_output=True, text=True
    )
    rows = [row.split("\t") for row in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [
        list(row) for row in zip(pictures, ["red", "green", "blue"], strict=True)
    ], done.stderr


def test_predicting_needs_no_torch() -> None:
    program = "import sys, tasks.predict; print({'torch', 'pandas', 'onnx'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
