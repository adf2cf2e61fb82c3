"""The champion gate on simulated predictions: what it lets pass, and how often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tasks.gatekeeper import Contender, Decision, decide
from tasks.params import Register

NAMES = ["cat", "dog"]
LIMITS = Register(
    experiment="e",
    model_name="m",
    min_gain=0.0,
    max_recall_drop=0.05,
    max_ece=0.1,
    max_megabytes=100,
    max_milliseconds=50,
    retired_classes=(),
)


def contender(
    predicted: Any, names: list[str] = NAMES, sure: float = 0.9, **more: Any
) -> Contender:
    """Return a model that predicts these class names, with one confidence."""
    probabilities = np.full((len(predicted), len(names)), (1 - sure) / (len(names) - 1), np.float32)
    probabilities[np.arange(len(predicted)), [names.index(name) for name in predicted]] = sure
    return Contender(names, probabilities, **{"megabytes": 10, "milliseconds": 5, **more})


def flip(truth: list[str], wrong: Any) -> list[str]:
    return [NAMES[1 - NAMES.index(t)] if i in wrong else t for i, t in enumerate(truth)]


TRUTH = ["cat", "dog"] * 100
GOOD = flip(TRUTH, range(20))  # 90 % right, evenly
BAD = flip(TRUTH, range(60))


def verdict(challenger: Contender, champion: Contender | None, **limits: Any) -> Decision:
    return decide(TRUTH, challenger, champion, LIMITS.model_copy(update=limits), 1e-3)


def test_the_first_model_becomes_champion() -> None:
    decision = verdict(contender(GOOD), None)
    assert decision.verdict == "PROMOTE"
    assert decision.figures["challenger"]["accuracy"] == 0.9
    assert "champion" not in decision.figures


def test_a_better_one_is_promoted_with_its_figures() -> None:
    decision = verdict(contender(GOOD), contender(BAD, sure=0.7))
    assert decision.verdict == "PROMOTE"
    gain = decision.figures["gain"]
    assert gain["f1_macro"] == pytest.approx(0.2)
    assert 0 < gain["low"] < 0.2 < gain["high"]
    assert decision.figures["champion"]["recall"] == {"cat": 0.7, "dog": 0.7}


def test_a_tie_is_held() -> None:
    decision = verdict(contender(GOOD), contender(GOOD))
    assert decision.verdict == "HOLD"
    assert decision.figures["gain"] == {"f1_macro": 0, "low": 0, "high": 0, "p": 1}


def test_a_worse_one_is_rejected() -> None:
    decision = verdict(contender(BAD, sure=0.7), contender(GOOD))
    assert decision.verdict == "REJECT"
    assert "worse" in decision.reasons[0]


def test_a_gain_below_what_is_asked_is_held() -> None:
    assert verdict(contender(GOOD), contender(BAD, sure=0.7), min_gain=0.3).verdict == "HOLD"


def test_a_better_one_that_loses_a_class_is_rejected() -> None:
    champion = contender(flip(TRUTH, [i for i in range(160) if TRUTH[i] == "cat"]), sure=0.6)
    challenger = contender(flip(TRUTH, [i for i in range(20) if TRUTH[i] == "dog"]))
    decision = verdict(challenger, champion)
    assert decision.figures["gain"]["low"] > 0
    assert decision.verdict == "REJECT"
    assert decision.reasons == [
        "class 'dog' loses 0.100 of recall (1.000 to 0.900) where max_recall_drop is 0.05"
    ]
    assert verdict(challenger, champion, max_recall_drop=0.1).verdict == "PROMOTE"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"megabytes": 101}, "max_megabytes"),
        ({"milliseconds": 51}, "max_milliseconds"),
        ({"sure": 0.55}, "max_ece"),
        ({"difference": 0.002}, "max_probability_difference"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_broken_limit_rejects_whatever_the_gain(more: Any, word: str, first: bool) -> None:
    decision = verdict(contender(GOOD, **more), None if first else contender(BAD, sure=0.7))
    assert decision.verdict == "REJECT"
    assert len(decision.reasons) == 1
    assert word in decision.reasons[0]


def test_few_pictures_are_no_proof_of_bad_calibration() -> None:
    truth = ["cat", "dog"] * 3
    model = contender(flip(truth, [0, 1]), sure=0.9)  # 4 of 6 right: error 0.23
    decision = decide(truth, model, None, LIMITS, 1e-3)
    assert decision.figures["challenger"]["ece"] == pytest.approx(0.9 - 4 / 6, abs=1e-6)
    assert decision.verdict == "PROMOTE"


def test_a_class_that_the_champion_does_not_know_counts_as_missed_by_it() -> None:
    truth = ["cat", "dog", "fox"] * 50
    champion = contender(["cat", "dog", "dog"] * 50, sure=0.7)
    challenger = contender(truth, ["cat", "dog", "fox"], sure=0.98)
    decision = decide(truth, challenger, champion, LIMITS, 1e-3)
    assert decision.verdict == "PROMOTE"
    assert decision.figures["champion"]["recall"] == {"cat": 1, "dog": 1, "fox": 0}
    assert decision.figures["classes_added"] == ["fox"]


def test_a_forgotten_class_waits_for_a_person() -> None:
    champion = contender(BAD, ["cat", "dog", "fox"], sure=0.7)
    decision = verdict(contender(GOOD), champion)
    assert decision.verdict == "HOLD"
    assert "'fox'" in decision.reasons[0]
    assert "retired_classes" in decision.reasons[0]
    assert verdict(contender(GOOD), champion, retired_classes=("fox",)).verdict == "PROMOTE"


def test_classes_are_matched_by_name_not_by_place() -> None:
    decision = verdict(contender(GOOD), contender(GOOD, ["dog", "cat"]))
    assert decision.figures["gain"]["f1_macro"] == 0


def simulated(generator: np.random.Generator, gained: float, lost: float) -> Decision:
    """Judge a retrain: each picture newly right or wrong with these chances; champion at 80 %."""
    truth = [NAMES[i] for i in generator.integers(0, 2, 400)]
    draw = generator.random(400)
    before = np.flatnonzero(draw < 0.2)
    fixed = draw < gained
    broken = (draw >= 0.2) & (draw < 0.2 + lost)
    after = np.flatnonzero(((draw < 0.2) & ~fixed) | broken)
    champion, challenger = (contender(flip(truth, set(w)), sure=0.82) for w in (before, after))
    return decide(truth, challenger, champion, LIMITS, 1e-3)


def share_promoted(gained: float, lost: float) -> float:
    generator = np.random.default_rng(1)
    return float(
        np.mean([simulated(generator, gained, lost).verdict == "PROMOTE" for _ in range(200)])
    )


@pytest.mark.parametrize("changed", [0.01, 0.05])
def test_retrains_without_improvement_are_seldom_promoted(changed: float) -> None:
    assert share_promoted(changed, changed) <= 0.05


def test_five_points_are_nearly_always_promoted() -> None:
    # At 400 pictures this holds while the two agree on 92 % of them; a gain that comes with more
    # changes than that needs more pictures to be told from chance.
    assert share_promoted(gained=0.06, lost=0.01) >= 0.9
