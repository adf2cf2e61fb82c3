"""The step `register` against an embedded registry: promotion, resumption, rollback."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from flows import rollback
from tasks import files, register, report, tracking, verdicts
from tasks.vision.errors import RefitError
from tests.unit.registry import (
    BAD,
    GOOD,
    aliases,
    registered,
    settings,
    train,
    versions,
    write_pictures,
)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables, made once: it takes seconds."""
    folder = tmp_path_factory.mktemp("registry")
    tracking.mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    tracking.MlflowClient().search_experiments()
    return folder / "mlflow.db"


@pytest.fixture(autouse=True)
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: Path
) -> Iterator[Path]:
    """A project that has trained, with a registry of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_registry, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    files.RAW.mkdir(parents=True)
    write_pictures()
    yield tmp_path
    tracking.mlflow.set_tracking_uri("")


def test_the_first_model_becomes_champion() -> None:
    train(BAD)
    found = registered()
    assert found["verdict"] == "PROMOTE"
    assert aliases() == {"champion": "1"}
    run = tracking.MlflowClient().get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["verdict"] == "PROMOTE"
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.digest == files.data_version()
    assert run.data.metrics["test_f1_macro"] == 0.5
    stored = files.read_json(tracking.read_artifact(found["run_id"], "verdict.json"))
    assert stored == found["decision"]
    assert stored["figures"]["challenger"]["accuracy"] == 0.7


def test_a_better_one_takes_its_place_and_the_old_one_is_previous() -> None:
    train(BAD)
    registered()
    train(GOOD)
    found = registered()
    assert found["verdict"] == "PROMOTE"
    assert found["decision"]["figures"]["champion"]["accuracy"] == 0.7
    assert aliases() == {"champion": "2", "previous": "1"}


def test_a_worse_one_is_rejected_and_kept_as_a_version() -> None:
    train(GOOD)
    registered()
    train(BAD)
    found = registered()
    assert found["verdict"] == "REJECT"
    assert aliases() == {"champion": "1"}
    assert versions() == ["1", "2"]


def test_one_that_predicts_the_same_is_held() -> None:
    train(GOOD)
    registered()
    train(GOOD, note="another file")
    assert registered()["verdict"] == "HOLD"
    assert aliases() == {"champion": "1"}


def test_a_retrain_that_is_known_is_not_judged_again() -> None:
    train(GOOD)
    first = registered()
    again = registered()
    assert again["run_id"] == first["run_id"]
    assert again["decision"] == first["decision"]
    assert versions() == ["1"]


def test_a_retrain_is_judged_again_after_the_champion_changed() -> None:
    train(BAD)
    first = registered()
    train(GOOD)
    registered()
    train(BAD)
    again = registered()
    assert again["verdict"] == "REJECT"
    assert again["run_id"] != first["run_id"]
    assert versions() == ["1", "2"]
    assert aliases()["champion"] == "2"


def test_a_retrain_is_judged_again_under_other_limits() -> None:
    train(GOOD)
    assert registered(max_megabytes=1e-9)["verdict"] == "REJECT"
    assert registered()["verdict"] == "PROMOTE"
    assert versions() == ["1"]


def test_a_file_that_is_not_what_was_evaluated_is_rejected() -> None:
    train(BAD)
    reports = files.REPORTS / "toy" / "predictions.parquet"
    shutil.copy(reports, "kept.parquet")
    train(GOOD)
    shutil.copy("kept.parquet", reports)
    found = registered()
    assert found["verdict"] == "REJECT"
    assert "max_probability_difference" in found["reason"]


def champion_file() -> Path:
    client = tracking.MlflowClient()
    version = tracking.by_alias(client, "refit", tracking.CHAMPION)
    assert version is not None
    return tracking.download(client, version)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"damaged")])
def test_nothing_is_promoted_while_the_champions_file_is_lost(
    damage: Callable[[Path], object],
) -> None:
    train(BAD)
    registered()
    file = champion_file()
    kept = file.read_bytes()
    damage(file)
    train(GOOD)
    found = registered()
    assert found["verdict"] == "HOLD"
    assert "cannot be compared" in found["reason"]
    assert aliases() == {"champion": "1"}
    file.write_bytes(kept)
    assert registered()["verdict"] == "PROMOTE"
    assert aliases() == {"champion": "2", "previous": "1"}
    assert versions() == ["1", "2"]


def test_nothing_is_promoted_that_comes_back_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    train(BAD)
    registered()
    train(GOOD)
    damaged = files.BEST / "damaged.onnx"
    damaged.write_bytes((files.BEST / "model.onnx").read_bytes() + b" ")
    fetch = tracking._fetch

    def changed(address: str) -> Path:
        return damaged if address.endswith("@challenger") else fetch(address)

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_fetch", changed)
        with pytest.raises(RefitError, match=r"@challenger \(version 2\) gives back another file"):
            registered()
    assert aliases() == {"champion": "1", "challenger": "2"}
    assert registered()["verdict"] == "PROMOTE"
    assert aliases() == {"champion": "2", "previous": "1"}


def test_a_class_that_was_forgotten_is_held_until_it_is_retired() -> None:
    train(BAD, classes=["blue", "red", "violet"])
    registered(max_ece=1)
    train(GOOD)
    found = registered()
    assert found["verdict"] == "HOLD"
    assert "'violet'" in found["reason"]


# What is called, which time, and whether the registry had done it before it went away.
STEPS = [
    ("create_run", 0, False),
    ("log_artifact", 0, True),
    ("log_dict", 0, True),
    ("create_model_version", 0, False),
    ("create_model_version", 0, True),
    ("set_registered_model_alias", 0, True),
    ("delete_registered_model_alias", 0, False),
    ("set_registered_model_alias", 1, True),
    ("set_registered_model_alias", 2, False),
    ("set_registered_model_alias", 2, True),
    ("set_terminated", -1, False),
]


def go_down(monkeypatch: pytest.MonkeyPatch, name: str, time: int, done: bool) -> None:
    """Let the registry go away at one call, and stay away until the patch is undone."""
    from mlflow.tracking import MlflowClient

    seen = [0]
    down = [False]

    def wrap(method: str) -> None:
        original = getattr(MlflowClient, method)

        def call(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            if down[0]:
                raise MlflowException("the registry is down")
            if method == name:
                seen[0] += 1
                last = args[0] == parents[0] if time == -1 else seen[0] == time + 1
                if last:
                    down[0] = True
                    if done:
                        original(self, *args, **kwargs)
                    raise MlflowException("the registry is down")
            result = original(self, *args, **kwargs)
            if method == "create_run" and not parents:
                parents.append(result.info.run_id)
            return result

        monkeypatch.setattr(MlflowClient, method, call)

    parents: list[str] = []
    for method in ("create_run", "set_terminated", "log_artifact", "log_dict", "log_batch",
                   "create_model_version", "set_registered_model_alias", "search_runs",
                   "delete_registered_model_alias",
                   "get_model_version_by_alias", "search_model_versions"):  # fmt: skip
        wrap(method)


@pytest.mark.parametrize(("name", "time", "done"), STEPS)
def test_a_registry_that_goes_down_loses_nothing(name: str, time: int, done: bool) -> None:
    train(BAD)
    registered()
    train(GOOD)
    with pytest.MonkeyPatch.context() as patch:
        go_down(patch, name, time, done)
        with pytest.raises(RefitError, match="the registry is down"):
            registered()
    assert aliases()["champion"] in ("1", "2")
    found = registered()
    assert found["verdict"] == "PROMOTE"
    assert found["decision"]["champion_before"] == "1"
    assert tracking.MlflowClient().get_run(found["run_id"]).info.status == "FINISHED"
    assert aliases() == {"champion": "2", "previous": "1"}
    assert versions() == ["1", "2"]


def test_a_rollback_puts_the_previous_one_back_for_good() -> None:
    train(BAD)
    registered()
    train(GOOD)
    registered()
    client = tracking.MlflowClient()
    now, before = tracking.roll_back(client, "refit", "it fails at night")
    assert (str(now.version), str(before.version)) == ("2", "1")
    assert aliases()["champion"] == "1"
    assert client.get_model_version("refit", "2").tags["rolled_back"] == "it fails at night"
    again = registered()
    assert again["verdict"] == "HOLD"
    assert "it fails at night" in again["reason"]
    assert aliases()["champion"] == "1"
    with pytest.raises(RefitError, match="no champion of refit before"):
        tracking.roll_back(client, "refit", "once more")


def test_the_rollback_command_says_and_records_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(BAD)
    registered()
    train(GOOD)
    registered()
    monkeypatch.setattr(sys, "argv", ["rollback", "--reason", "too slow"])
    rollback.main()
    assert "version 1 is the champion again" in capsys.readouterr().out
    assert aliases()["champion"] == "1"
    line = verdicts.read()[-1]
    assert (line["verdict"], line["reason"]) == ("ROLLBACK", "too slow")
    assert (line["from_version"], line["to_version"]) == ("2", "1")


def test_main_writes_the_summary_and_one_line_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    train(GOOD)
    settings()
    monkeypatch.setattr(sys, "argv", ["register"])
    register.main()
    register.main()
    summary = files.read_json(files.SUMMARY)
    assert (summary["best"], summary["verdict"]) == ("toy", "PROMOTE")
    assert (summary["registered_version"], summary["champion"]) == ("1", "1")
    (line,) = verdicts.read()
    assert line["decision"] == summary["decision"]


def test_what_was_registered_stands_without_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("no such column")

    train(GOOD)
    settings()
    monkeypatch.setattr(sys, "argv", ["register"])
    monkeypatch.setattr(report, "main", fail)
    register.main()
    assert files.read_json(files.SUMMARY)["verdict"] == "PROMOTE"
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "warning: the report was not written: ValueError: no such column"
