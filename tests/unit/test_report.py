"""The report: one page that needs nothing else, right in its figures, safe with any name."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tasks import advice, drawing, files, report
from tests.unit.registry import BAD, train, write_pictures

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose candidate was evaluated and judged."""
    monkeypatch.chdir(tmp_path)
    files.RAW.mkdir(parents=True)
    write_pictures()
    train(BAD)
    reports = files.REPORTS / "toy"
    (reports / "per_class.csv").write_text(
        "split,class,precision,recall,f1,support\nval,blue,1,1,1,3\n"
        "test,blue,0.7,0.7,0.7,30\ntest,red,0.7,0.7,0.7,30\ntest,gone,,,,0\n"
    )
    (reports / "slices.csv").write_text(
        "column,value,count,accuracy,low,high\nbrightness,up to 9,20,0.2,0.1,0.4\n"
        "class,red,30,0.7,0.5,0.9\n"
    )
    (reports / "fine_tune_curve.csv").write_text(
        "epoch,train_loss,val_loss,val_f1_macro,val_accuracy\n0,,0.7,0.5,0.5\n1,0.6,0.6,0.8,0.5\n"
    )


def summary(verdict: str = "HOLD", **more: Any) -> dict[str, Any]:
    test = {
        "accuracy": 0.7,
        "f1_macro": 0.7,
        "roc_auc": None,
        "ece": 0.1,
        "ece_uncalibrated": 0.2,
        "count": 60,
        "intervals": {"accuracy": [0.6, 0.8]},
    }
    toy = {"f1_macro": 0.5, "initialised_from": "random", "gflops": 1.5, "temperature": 1.5}
    model = {
        "accuracy": 0.7, "balanced_accuracy": 0.7, "f1_macro": 0.7, "mcc": 0.4, "log_loss": 0.6,
        "brier": 0.2, "ece": 0.1, "recall": {"blue": 0.7}, "megabytes": 8, "milliseconds": 3,
    }  # fmt: skip
    figures = {
        "pictures": 60,
        "challenger": model,
        "champion": model,
        "gain": {"f1_macro": 0.01, "low": -0.02, "high": 0.04, "p": 0.3},
    }
    return {
        "best": "toy",
        "verdict": verdict,
        "model": "refit",
        "registered_version": "2",
        "champion": "1",
        "data_version": "abc",
        "git_commit": "def",
        "run_id": "123",
        "decision": {"reasons": ["it is no better"], "figures": figures, "champion_before": "1"},
        "candidates": {"toy": {**toy, "val": test, "test": test}},
        "seconds": {"fine_tune@toy": 12.3, "validate": 1.0},
        "failed": {},
    } | more


class Page(HTMLParser):
    """What a page holds and links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def page(**more: Any) -> Page:
    files.write_json(files.SUMMARY, summary(**more))
    files.write_text(files.REPORT, report.render(report.view()))
    return Page(files.REPORT.read_text())


@pytest.mark.parametrize("verdict", ["PROMOTE", "HOLD", "REJECT"])
def test_the_page_needs_nothing_else(verdict: str) -> None:
    found = page(verdict=verdict)
    assert "script" not in found.tags
    assert "link" not in found.tags
    outside = [link for link in found.links if not link.startswith("data:image/jpeg;base64,")]
    assert outside == ["validation/index.html"]
    assert not re.search(r"url\(|@import|https?://", files.REPORT.read_text())
    assert report.WORDS[verdict] in found.words
    assert "it is no better" in found.words


def test_the_page_says_what_was_measured() -> None:
    words = " ".join(page().words.split())
    assert "+0.010, 95 % interval -0.020 to +0.040" in words
    assert "18 of 60 test pictures are classified wrongly; the surest 12." in words
    assert "unfrozen" in words
    assert "brightnessup to 9200.200 (0.100" in words
    assert "classred" not in words  # its interval holds the accuracy of the whole
    assert "0.200 before the temperature of 1.500" in words


def test_a_first_model_and_a_failed_candidate_are_shown() -> None:
    first = summary()["decision"]
    figures = {key: first["figures"][key] for key in ("pictures", "challenger")}
    found = page(decision={**first, "figures": figures}, failed={"other": "ran out of memory"})
    assert "The first model" in found.words
    assert "ran out of memory" in found.words


def test_variants_are_shown_while_they_are_of_this_file() -> None:
    model = files.BEST / "model.onnx"
    int8 = {
        "released": False,
        "reason": "loses 4.00% accuracy, more than the 0.50% of max_drop",
        "accuracy": 0.66,
        "accuracy_float32": 0.7,
        "bytes": 2_500_000,
        "milliseconds_a_picture": {"1": [2.0, 1.0], "8": [2.0, 1.0]},
    }
    report_of = {"of_sha256": files.sha256_file(model), "provider": "cpu", "max_drop": 0.005}
    files.write_json(files.VARIANTS / "report.json", {**report_of, "variants": {"int8": int8}})
    text = page().words
    assert "not released: it loses 4.00% accuracy" in text
    assert "at most 0.5 points" in text
    model.write_bytes(model.read_bytes() + b" ")
    assert "not released" not in page().words


def test_a_verdict_without_figures_is_shown() -> None:
    decision = {"reasons": ["version 1 is this file"], "figures": {}, "champion_before": "1"}
    assert "version 1 is this file" in page(decision=decision).words


def test_names_are_text_and_never_markup() -> None:
    decision = {**summary()["decision"], "reasons": [EVIL]}
    found = page(decision=decision)
    assert EVIL in found.words
    assert "script" not in found.tags


def test_pictures_that_are_gone_leave_the_page_whole() -> None:
    for path in files.RAW.rglob("*.png"):
        path.unlink()
    found = page()
    assert "no longer in data/raw" in found.words
    assert "img" not in found.tags


def test_suspects_are_surer_of_another_class_than_its_own_pictures_are() -> None:
    table = pd.DataFrame(
        {
            "true": ["cat", "cat", "dog", "dog", "dog"],
            "predicted": ["cat", "cat", "dog", "cat", "cat"],
            "confidence": [0.9, 0.7, 0.9, 0.85, 0.75],
            "own": [0.9, 0.7, 0.9, 0.15, 0.25],
        }
    )
    # Cats are given 0.8 on average: only the dog that is a cat by 0.85 is suspect.
    assert report.suspects(table, ["cat", "dog"]).index.tolist() == [3]


def test_a_chart_gives_both_stages_half_the_width() -> None:
    head: drawing.Curve = [{"epoch": float(i), "f1": 0.1 * i} for i in range(3)]
    tuned: drawing.Curve = [
        {"epoch": 0.0, "f1": 0.2},
        {"epoch": 1.0, "f1": None},
        {"epoch": 2.0, "f1": 0.4},
    ]
    chart = drawing.chart("f1", {"f1": "validation"}, head, tuned)
    assert chart is not None
    assert (chart.low, chart.high, chart.unfrozen) == (0.0, 0.4, 160.0)
    assert chart.lines[0].points == ["0.0,120.0 77.0,90.0 154.0,60.0", "166.0,60.0 320.0,0.0"]
    alone = drawing.chart("f1", {"f1": "validation"}, head, tuned[:1])
    assert alone is not None
    assert alone.unfrozen is None


def test_the_confusion_matrix_counts_pictures() -> None:
    rows = drawing.confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b", "c"])
    assert [[cell["count"] for cell in row["cells"]] for row in rows] == [
        [1, 1, 0],
        [0, 1, 0],
        [0, 0, 0],
    ]
    assert rows[0]["cells"][1]["share"] == 0.5


def test_advice_follows_from_the_figures() -> None:
    test = {"accuracy": 0.9, "count": 40, "intervals": {"accuracy": [0.8, 0.95]}}
    head = [{"val_f1_macro": 0.1}, {"val_f1_macro": 0.2}]
    toy = {"name": "toy", "initialised_from": "imagenet", "test": test, "head": head}
    rows: list[dict[str, Any]] = [
        {"class": "cat", "recall": 0.5, "support": 20},
        {"class": "gone", "recall": None, "support": 0},
    ]
    candidates = [{**toy, "tuned": [{"val_f1_macro": 0.2}, {"val_f1_macro": 0.1}]}]
    words = advice.give(candidates, summary(), rows, suspects=1)
    for expected in ("1 suspected label ", "'cat'", "80% to 95%", "head.epochs", "fine_tune.lr"):
        assert sum(expected in line for line in words) == 1, expected
    assert len(words) == 5
    rejected = advice.give(candidates, summary("REJECT"), rows, suspects=1)
    assert [line for line in words if line not in rejected] == [words[0]]
