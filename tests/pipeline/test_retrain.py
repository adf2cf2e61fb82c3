"""The whole chain on small real pictures: real Prefect, DVC, Great Expectations, MLflow, ORT."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from tasks import serving
from tasks.vision import images
from tests.pipeline.project import Project, Trained

SHARED = ["validate", "prepare", "export"]
PER_CANDIDATE = ["weights", "train_head", "fine_tune", "evaluate"]
RESULTS = ("data/models", "data/reports", "data/best")


def stages_of(*candidates: str) -> set[str]:
    return {f"{stage}@{name}" for stage in PER_CANDIDATE for name in candidates}


def client(project: Project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.path('mlflow.db')}")


def runs(project: Project) -> list[Any]:
    experiment = client(project).get_experiment_by_name("refit")
    assert experiment is not None
    return list(client(project).search_runs([experiment.experiment_id]))


def versions(project: Project) -> list[Any]:
    return list(client(project).search_model_versions("name = 'refit'"))


def summary(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(project.path("data/reports/summary.json").read_text())
    return found


def onnx_bytes(project: Project) -> bytes:
    content: bytes = project.path("data/best/model.onnx").read_bytes()
    return content


def test_first_retrain_trains_compares_and_registers(trained: Trained) -> None:
    first, project = trained.first, trained.project
    assert first.returncode == 0, first.stdout + first.stderr
    output = first.stdout + first.stderr
    assert set(project.started(output)) == {*SHARED, *stages_of("resnet18", "mobilenet_v2")}
    assert project.path("data/raw.dvc").exists()
    found = summary(project)
    assert found["verdict"] == "PROMOTE"
    scores = {name: result["f1_macro"] for name, result in found["candidates"].items()}
    assert scores[found["best"]] == max(scores.values())
    assert found["candidates"]["resnet18"]["initialised_from"] == "random (imagenet unreachable)"
    assert "starts from RANDOM weights" in output
    for text in ("dvc metrics show", "dvc plots show", "make ui", "python -m tasks.predict"):
        assert text in first.stdout


def test_variants_of_a_promoted_model_are_judged(trained: Trained) -> None:
    project = trained.project
    report = json.loads(project.path("data/variants/report.json").read_text())
    int8 = report["variants"]["int8"]
    assert project.path("data/variants/model.int8.onnx").exists() == int8["released"]
    page = project.path("data/reports/report.html").read_text()
    assert ("not released" in page) != int8["released"]


def test_mlflow_tells_the_whole_retrain(trained: Trained) -> None:
    project = trained.project
    found = runs(project)
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.tags["candidate"]: run for run in found if run is not parent}
    assert children.keys() == {"resnet18", "mobilenet_v2"}
    head = project.ok("git", "rev-parse", "HEAD").strip()
    for name, run in children.items():
        tags, metrics = run.data.tags, run.data.metrics
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["git_commit"].startswith(head)
        assert tags["data_version"] == summary(project)["data_version"]
        assert tags["initialised_from"] == summary(project)["candidates"][name]["initialised_from"]
        scores = json.loads(project.path(f"data/reports/{name}/metrics.json").read_text())
        for split in ("val", "test"):
            assert metrics[f"{split}_f1_macro"] == pytest.approx(scores[split]["f1_macro"])
        curve = client(project).get_metric_history(run.info.run_id, "head/val_f1_macro")
        assert [point.step for point in curve] == list(range(6))
        assert run.data.params["fine_tune.epochs"] == "1"
    (version,) = versions(project)
    champion = client(project).get_model_version_by_alias("refit", "champion")
    assert champion.version == version.version
    assert {run.info.status for run in runs(project)} == {"FINISHED"}


def test_registered_model_is_the_exported_one(trained: Trained) -> None:
    project = trained.project
    mlflow.set_tracking_uri(f"sqlite:///{project.path('mlflow.db')}")
    folder = Path(mlflow.artifacts.download_artifacts("models:/refit@champion"))
    assert (folder / "model.onnx").read_bytes() == onnx_bytes(project)
    session = serving.Session(project.path("data/best/model.onnx"), "cpu")
    pictures = sorted(project.path("data/raw").rglob("*.png"))[:6]
    batch = np.stack([images.read_picture(path) for path in pictures])
    served = mlflow.pyfunc.load_model("models:/refit@champion").predict(batch)
    expected, _ = session.predict(list(batch))
    np.testing.assert_allclose(served[session.class_names], expected, atol=1e-6)


def test_predict_agrees_with_the_evaluation(trained: Trained) -> None:
    project = trained.project
    table = pq.read_table(
        project.path(f"data/reports/{summary(project)['best']}/predictions.parquet"),
        filters=[("split", "=", "test")],
    ).to_pylist()
    paths = [f"data/raw/{row['path']}" for row in table]
    model = "data/best/model.onnx"
    done = project.run(sys.executable, "-m", "tasks.predict", model, *paths, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == paths
    assert [line["label"] for line in lines] == [row["predicted"] for row in table]
    got = [list(line["probabilities"].values()) for line in lines]
    np.testing.assert_allclose(got, [row["probabilities"] for row in table], atol=1e-3)


def test_second_retrain_changes_nothing(trained: Trained) -> None:
    project = trained.project
    lock, count = project.path("dvc.lock").read_bytes(), len(runs(project))
    second = project.retrain()
    assert second.returncode == 0, second.stderr
    output = second.stdout + second.stderr
    assert project.started(output) == []
    unchanged = set(re.findall(r"Task run '([^']+)' - Finished in state Cached", output))
    assert unchanged == {*SHARED, *stages_of("resnet18", "mobilenet_v2"), "register"}
    assert project.path("dvc.lock").read_bytes() == lock
    assert (len(runs(project)), len(versions(project))) == (count, 1)


def test_dvc_finds_everything_up_to_date(trained: Trained) -> None:
    assert "up to date" in trained.project.ok("dvc", "repro")
    assert trained.project.stale() == set()


def test_figures_plots_and_graph_are_shown(trained: Trained, tmp_path: Path) -> None:
    project = trained.project
    assert "test.f1_macro" in project.ok("dvc", "metrics", "show")
    project.ok("dvc", "plots", "show", "--out", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "head of resnet18" in page
    assert "confusion of mobilenet_v2" in page
    assert "fine_tune@resnet18" in project.ok("dvc", "dag", "--md")


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"fine_tune": {"epochs": 2}}, {"fine_tune@resnet18", "fine_tune@mobilenet_v2"}),
        ({"head": {"epochs": 6}}, {"train_head@resnet18", "train_head@mobilenet_v2"}),
        ({"export": {"max_probability_difference": 0.01}}, {"export"}),
        ({"validate": {"min_per_class": 11}}, {"validate"}),
        ({"register": {"experiment": "other"}}, set()),
    ],
)
def test_a_changed_param_makes_its_stages_stale(
    copied: Project, change: dict[str, dict[str, Any]], stale: set[str]
) -> None:
    copied.change_params(
        lambda params: [params[block].update(new) for block, new in change.items()]
    )
    assert copied.stale() == stale


def test_an_edited_module_makes_its_importers_stale(copied: Project) -> None:
    compiled = copied.path("tasks/vision/__pycache__/new.cpython-311.pyc")
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"compiled")
    assert copied.stale() == set()
    copied.edit("tasks/vision/onnx_graph.py")
    assert copied.stale() == {"export"}
    copied.edit("tasks/vision/frozen.py")
    assert copied.stale() == {"export", "train_head@resnet18", "train_head@mobilenet_v2"}


def test_results_come_back_from_the_cache(trained: Trained, copied: Project) -> None:
    copied.remove(*RESULTS)
    output = copied.ok("dvc", "repro")
    assert "best epoch" not in output, "a head was trained"
    assert "kept" not in output, "a model was fine-tuned"
    assert copied.path("dvc.lock").read_bytes() == trained.project.path("dvc.lock").read_bytes()
    assert onnx_bytes(copied) == onnx_bytes(trained.project)


def test_retraining_without_any_cache_gives_the_same_lock(
    trained: Trained, copied: Project
) -> None:
    copied.remove(*RESULTS, ".dvc/cache", "data/packed", "data/features", "data/weights")
    copied.remove("data/manifest.parquet", "data/classes.json", "data/facts")
    output = copied.ok("dvc", "repro")
    assert output.count("best epoch") == 2
    assert copied.path("dvc.lock").read_bytes() == trained.project.path("dvc.lock").read_bytes()


def test_one_candidate_s_params_re_run_that_candidate_and_export(copied: Project) -> None:
    copied.change_params(lambda p: p["candidates"]["resnet18"].update(weights="random"))
    done = copied.retrain()
    assert done.returncode == 0, done.stderr
    started = copied.started(done.stdout + done.stderr)
    assert set(started) <= {*stages_of("resnet18"), "export"}
    assert {"weights@resnet18", "train_head@resnet18", "export"} <= set(started)


def test_an_experiment_runs_with_other_params(copied: Project) -> None:
    copied.ok("git", "add", "-A")
    copied.ok("git", "commit", "-q", "-m", "trained")
    copied.ok("dvc", "exp", "run", "-S", "fine_tune.epochs=2")
    curve = copied.path("data/reports/mobilenet_v2/fine_tune_curve.csv").read_text().splitlines()
    assert len(curve) == 1 + 3  # header, epoch 0 and the two
    assert "workspace" in copied.ok("dvc", "exp", "show", "--md")


def test_bad_data_is_refused_by_name(copied: Project) -> None:
    manifest = copied.path("data/manifest.parquet").read_bytes()
    model = onnx_bytes(copied)
    victim = next(copied.path("data/raw/defective").glob("*.png"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    done = copied.retrain()
    assert done.returncode == 1
    output = done.stdout + done.stderr
    assert f"defective/{victim.name}" in output
    assert "Traceback" not in output
    assert "retrain: validate failed" in done.stderr
    assert copied.path("data/manifest.parquet").read_bytes() == manifest
    assert onnx_bytes(copied) == model


def test_a_failed_candidate_is_named_and_tried_again(copied: Project) -> None:
    broken = {"arch": "resnet18", "weights": "file:none.pth", "on_missing": "fail"}
    copied.change_params(lambda p: p["candidates"].update(broken={**broken, "sha256": "0" * 64}))
    for _ in range(2):
        done = copied.retrain()
        assert done.returncode == 0, done.stderr
        output = done.stdout + done.stderr
        assert "weights@broken" in copied.started(output)
        assert "train_head@broken was not run: it needs weights@broken" in output
        assert re.search(r"broken +│ failed: weights@broken", done.stdout)


def test_no_candidate_left_is_a_failure(copied: Project) -> None:
    def break_all(params: dict[str, Any]) -> None:
        for settings in params["candidates"].values():
            settings |= {"weights": "file:none.pth", "sha256": "0" * 64, "on_missing": "fail"}

    copied.change_params(break_all)
    done = copied.retrain()
    assert done.returncode == 1
    assert "weights@resnet18 failed" in done.stderr
    assert "weights@mobilenet_v2 failed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("text", ["candidates: [", "candidates: {}", "head: {lr: fast}"])
def test_params_that_cannot_be_used_are_refused_in_one_message(
    tmp_path: Path, trained: Trained, text: str
) -> None:
    project = Project(tmp_path)
    for name in ("tasks", "flows", "dvc.yaml", ".dvc/config"):
        project.path(name).parent.mkdir(exist_ok=True)
        project.path(name).symlink_to(trained.project.path(name))
    project.path("params.yaml").write_text(text)
    done = project.retrain()
    assert done.returncode == 1
    assert "retrain: params.yaml" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
