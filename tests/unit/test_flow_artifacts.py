"""What a run shows of itself, and that showing it cannot end a retrain."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from flows import artifacts, report
from flows.graph import Graph
from flows.stages import Outcome

NEEDS: dict[str, set[str]] = {"validate": set(), "train_head@a": {"validate"}, "export": set()}
SUMMARY: dict[str, Any] = {
    "verdict": "REJECT",
    "model": "refit",
    "registered_version": "7",
    "reason": "recall of red",
    "decision": {"reasons": ["recall of red falls by 0.2", "no gain"]},
    "champion": "5",
    "best": "a",
    "data_version": "0123456789ab",
    "git_commit": "abc",
    "tracking_uri": "https://mlflow.example/",
    "run_id": "r1",
    "candidates": {
        "a": {
            "initialised_from": "imagenet",
            "f1_macro": 0.5,
            "test": dict.fromkeys(
                ("accuracy", "precision_macro", "recall_macro", "f1_macro"), 0.25
            ),
        }
    },
}


@pytest.mark.parametrize(
    ("stale", "new_data", "words"),
    [
        (set(), False, "nothing changed"),
        ({"export"}, False, "stale export"),
        ({"export", "train_head@a"}, False, "stale train_head@a and 1 more"),
        ({"validate"}, True, "new data"),
    ],
)
def test_the_reason_is_in_few_words(stale: set[str], new_data: bool, words: str) -> None:
    assert artifacts.reason(Graph(NEEDS, frozenset(stale), new_data=new_data)) == words


def test_the_verdict_names_its_reasons_and_where_everything_is() -> None:
    text = artifacts.verdict_markdown(SUMMARY)
    assert text.startswith("# REJECT: refit version 7\n")
    assert "- recall of red falls by 0.2\n- no gain\n" in text
    assert "[r1](https://mlflow.example/#/runs/r1) |" in text
    assert str(Path("data/reports/report.html").absolute()) in text
    embedded = artifacts.verdict_markdown({**SUMMARY, "tracking_uri": "sqlite:///mlflow.db"})
    assert "[r1](http://127.0.0.1:5000/#/runs/r1) (start it with `make ui`)" in embedded


def test_the_table_has_the_failed_ones_too() -> None:
    outcome = Outcome(seconds={"train_head@a": 1.25}, failed={"weights@b": "no network"})
    columns, rows = report.rows(SUMMARY, outcome)
    assert rows[0] == ["a *", "imagenet", "0.5000", *["0.2500"] * 4, "1.2"]
    assert rows[1][:2] == ["b", "failed: weights@b: no network"]
    assert {len(row) for row in rows} == {len(columns)}


def test_a_server_that_is_away_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("all attempts failed")

    for name in (
        *("create_progress_artifact", "create_table_artifact", "create_markdown_artifact"),
        *("emit_event", "get_client"),
    ):
        monkeypatch.setattr(artifacts, name, away)
    logger = logging.getLogger("shown")
    monkeypatch.setattr(artifacts, "get_run_logger", lambda: logger)
    artifacts.name_run("new data")
    artifacts.Progress(NEEDS)("validate", ended=True)
    artifacts.candidates(SUMMARY, Outcome())
    artifacts.verdict(SUMMARY)
    artifacts.announce(SUMMARY)
    assert caplog.text.count("not shown in Prefect: ConnectionError: all attempts failed") == 5


def test_the_bar_moves_over_all_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, str]] = []

    def make(share: float, key: str, description: str) -> str:
        shown.append((share, description))
        return "id"

    def move(made: str, share: float, description: str) -> None:
        assert made == "id"
        shown.append((share, description))

    monkeypatch.setattr(artifacts, "create_progress_artifact", make)
    monkeypatch.setattr(artifacts, "update_progress_artifact", move)
    bar = artifacts.Progress(NEEDS)
    for stage, ended in (("validate", False), ("validate", True), ("export", True)):
        bar(stage, ended)
    assert [round(share) for share, _ in shown] == [0, 33, 100]
    assert [text for _, text in shown] == ["validate runs", "validate ended", "export ended"]
