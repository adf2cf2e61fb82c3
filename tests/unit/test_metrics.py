"""Every metric against scikit-learn or a hand calculation; the gate's bootstrap by simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax
from sklearn import metrics as sk

from tasks.vision import calibration, comparison, confusion, metrics, slices
from tasks.vision.errors import RefitError

CALM = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], dtype=np.float32)
CALM_TRUE = np.array([0, 1, 1, 0])


def names(classes: int) -> list[str]:
    return [f"class{index}" for index in range(classes)]


def example(classes: int, count: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and float32 probabilities of a model that is often right."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes))
    logits[np.arange(count), true] += 1.5
    return true, softmax(logits, axis=1).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_headline_figures_equal_scikit_learn(classes: int) -> None:
    true, probabilities = example(classes)
    predicted, exact = probabilities.argmax(1), probabilities.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    onehot = np.eye(classes, dtype=int)[true]
    result = metrics.score(true, probabilities, names(classes), intervals=False)
    expected = {
        "accuracy": sk.accuracy_score(true, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(true, predicted),
        "mcc": sk.matthews_corrcoef(true, predicted),
        "log_loss": sk.log_loss(true, exact),
        "brier": sk.brier_score_loss(true, exact[:, 1] if classes == 2 else exact),
        "roc_auc": np.mean([sk.roc_auc_score(onehot[:, k], exact[:, k]) for k in range(classes)]),
        "pr_auc": np.mean(
            [sk.average_precision_score(onehot[:, k], exact[:, k]) for k in range(classes)]
        ),
    }
    for average in ("macro", "weighted"):
        triple = sk.precision_recall_fscore_support(true, predicted, average=average)
        for rate, value in zip(("precision", "recall", "f1"), triple, strict=False):
            expected[f"{rate}_{average}"] = value
    if classes > 5:
        for k in (3, 5):
            expected[f"top_{k}_accuracy"] = sk.top_k_accuracy_score(true, exact, k=k)
    expected["ece"] = calibration.ece(true, probabilities)
    tables = {"count", "confusion", "per_class"}
    assert {key: v for key, v in result.items() if key not in tables} == pytest.approx(expected)
    assert result["confusion"] == sk.confusion_matrix(true, predicted).tolist()
    assert result["count"] == 300


def test_losses_by_hand() -> None:
    result = metrics.score(CALM_TRUE, CALM, ["ants", "bees"])
    assert result["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7]).mean(), abs=1e-6)
    assert result["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.09) / 4, abs=1e-6)
    # Pairs of a bee and an ant: bees score 0.8 and 0.4, ants 0.1 and 0.3, so all four are in order.
    assert result["roc_auc"] == 1.0
    assert result["confusion"] == [[2, 0], [1, 1]]
    assert result["per_class"]["bees"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }


def test_classes_absent_from_the_split_cost_nothing_unless_predicted() -> None:
    classes = 5
    true = np.array([0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 1, 1, 1, 2, 3])  # 3 only predicted, 4 nowhere
    probabilities = (np.eye(classes)[predicted] * 0.8 + 0.04).astype(np.float32)
    result = metrics.score(true, probabilities, names(classes))
    triple = sk.precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    found = [result[f"{rate}_macro"] for rate in ("precision", "recall", "f1")]
    assert found == pytest.approx(triple[:3])
    assert result["f1_macro"] == pytest.approx((2 / 3 + 4 / 5 + 2 / 3 + 0) / 4)
    assert result["balanced_accuracy"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    onehot = np.eye(classes)[true][:, :3]
    assert result["roc_auc"] == pytest.approx(sk.roc_auc_score(onehot, probabilities[:, :3]))
    assert result["per_class"]["class3"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
    }
    assert result["per_class"]["class4"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
    }
    defined = [row["f1"] for row in result["per_class"].values() if row["f1"] is not None]
    assert np.mean(defined) == pytest.approx(result["f1_macro"])


@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("classes", [2, 6])
def test_one_class_only_gives_none_and_no_nan(classes: int, only: int) -> None:
    probabilities = example(classes, 40)[1]
    result = metrics.score(np.full(40, only), probabilities, names(classes))
    assert result["roc_auc"] is None
    assert result["pr_auc"] is None
    assert result["mcc"] == 0.0
    assert result["log_loss"] == pytest.approx(-np.log(probabilities[:, only]).mean(), rel=1e-5)
    json.dumps(result, allow_nan=False)


def test_ties_go_to_the_first_class() -> None:
    probabilities = np.full((4, 2), 0.5, dtype=np.float32)
    result = metrics.score(np.array([0, 0, 0, 1]), probabilities, ["ants", "bees"])
    assert result["confusion"] == [[3, 0], [1, 0]]
    assert result["roc_auc"] == 0.5
    assert result["pr_auc"] == pytest.approx((0.75 + 0.25) / 2)  # the base rates
    assert result["ece"] == pytest.approx(0.25)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_result_survives_json(classes: int) -> None:
    result = metrics.score(*example(classes, 20), names(classes))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_f1_macro_and_accuracy_equal_scikit_learn(dtype: type) -> None:
    generator = np.random.default_rng(3)
    for classes in (2, 5, 40):  # with 40 classes and 30 pictures many are absent
        true, predicted = generator.integers(0, classes, (2, 30)).astype(dtype)
        expected = sk.f1_score(true, predicted, average="macro", zero_division=0)
        assert confusion.f1_macro(true, predicted, classes) == pytest.approx(expected, abs=1e-12)
        assert confusion.accuracy(true, predicted) == sk.accuracy_score(true, predicted)


def test_what_the_training_loop_calls_imports_no_scikit_learn() -> None:
    program = (
        "import sys, numpy as np; from tasks.vision import confusion as m; y = np.array([0, 1]);"
        "m.f1_macro(y, y, 2); m.accuracy(y, y); sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_ece_and_reliability_by_hand() -> None:
    confidence = np.array([0.55, 0.58, 0.95, 0.95, 0.95, 1.0], dtype=np.float64)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    true = np.array([0, 1, 0, 0, 1, 0])
    rows = calibration.reliability(true, probabilities, bins=10)
    assert [(row["low"], row["high"], row["count"]) for row in rows] == [
        (pytest.approx(0.5), pytest.approx(0.6), 2),
        (pytest.approx(0.9), 1.0, 4),
    ]
    assert [row["confidence"] for row in rows] == pytest.approx([0.565, 0.9625])
    assert [row["accuracy"] for row in rows] == pytest.approx([0.5, 0.75])
    expected = (2 * 0.065 + 4 * 0.2125) / 6
    assert calibration.ece(true, probabilities, bins=10) == pytest.approx(expected)


def test_bins_are_closed_above() -> None:
    rows = calibration.reliability(np.array([0]), np.array([[0.75, 0.25]]), bins=4)
    assert (rows[0]["low"], rows[0]["high"]) == (0.5, 0.75)


def test_ece_is_small_for_a_calibrated_model_and_large_for_a_boaster() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], size=20_000)
    true = (generator.random((20_000, 1)) > probabilities.cumsum(1)).sum(1)
    assert calibration.ece(true, probabilities) < 0.02
    boaster = softmax(3 * np.log(probabilities), axis=1)
    assert calibration.ece(true, boaster) > 0.15


def test_intervals_equal_a_bootstrap_of_the_pictures_themselves() -> None:
    true, probabilities = example(3, 150)
    predicted = probabilities.argmax(1)
    result = metrics.score(true, probabilities, names(3))
    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        rows = generator.integers(0, 150, 150)
        sample = true[rows], predicted[rows]
        drawn.append((confusion.accuracy(*sample), confusion.f1_macro(*sample, 3)))
    expected = np.quantile(drawn, [0.025, 0.975], axis=0).T
    found = [result["intervals"]["accuracy"], result["intervals"]["f1_macro"]]
    np.testing.assert_allclose(found, expected, atol=0.015)  # an interval is about 0.14 wide
    for figure, (low, high) in result["intervals"].items():
        assert low < result[figure] < high


def test_intervals_follow_the_seed_and_can_be_left_out() -> None:
    data = (*example(3, 100), names(3))
    first, second = metrics.score(*data, seed=1), metrics.score(*data, seed=1)
    assert first == second
    assert first["intervals"] != metrics.score(*data, seed=2)["intervals"]
    assert "intervals" not in metrics.score(*data, intervals=False)


def bad(change: Callable[[np.ndarray], Any]) -> np.ndarray:
    probabilities = example(3, 10)[1].copy()
    change(probabilities)
    return probabilities


@pytest.mark.parametrize(
    ("true", "probabilities", "class_names", "message"),
    [
        (np.zeros(0, int), np.zeros((0, 3)), names(3), "at least one picture"),
        (np.zeros(9, int), bad(lambda p: None), names(3), r"shape \(10, 3\) for 9 pictures"),
        (np.zeros(10, int), bad(lambda p: None), names(4), "and 4 classes"),
        (np.zeros(10, int), np.zeros(10), names(3), r"shape \(10,\)"),
        (np.zeros((10, 1), int), bad(lambda p: None), names(3), r"labels of shape \(10, 1\)"),
        (np.zeros(10), bad(lambda p: None), names(3), "float64: whole class indices"),
        (np.arange(10), bad(lambda p: None), names(3), r"7 of 10 pictures \(rows 3, 4, 5, 6, 7, …"),
        (np.full(10, -1), bad(lambda p: None), names(3), "10 of 10 pictures"),
        (
            np.zeros(10, int),
            bad(lambda p: p.__setitem__(([2, 7], [0, 1]), np.nan)),
            names(3),
            r"not finite: 2 of 10 pictures \(rows 2, 7\)",
        ),
        (
            np.zeros(10, int),
            bad(lambda p: p.__setitem__((4, 1), np.inf)),
            names(3),
            r"not finite: 1 of 10 pictures \(rows 4\)",
        ),
        (
            np.zeros(10, int),
            bad(lambda p: p.__setitem__(3, [1.5, -0.5, 0.0])),
            names(3),
            r"1 of 10 pictures \(rows 3\)",
        ),
        (
            np.zeros(10, int),
            bad(lambda p: p.__imul__(2)),
            names(3),
            "not summing to 1: 10 of 10 .* apply softmax",
        ),
        (np.zeros(10, int), bad(lambda p: None), ["ants", "bees", "ants"], "all different"),
        (np.zeros(10, int), np.ones((10, 1)), ["ants"], "at least two"),
    ],
)
def test_score_refuses_bad_input(
    true: np.ndarray, probabilities: np.ndarray, class_names: list[str], message: str
) -> None:
    with pytest.raises(RefitError, match=message):
        metrics.score(true, probabilities, class_names)


def test_the_other_functions_refuse_bad_input_too() -> None:
    one, two, none = np.array([0]), np.array([0, 1]), np.zeros(0, int)
    for call in (
        lambda: confusion.accuracy(none, none),
        lambda: confusion.accuracy(one, two),
        lambda: confusion.f1_macro(two, np.array([0, 2]), 2),
        lambda: calibration.ece(two, np.full((2, 2), np.nan)),
        lambda: calibration.fit_temperature(np.full((2, 2), np.inf), two),
        lambda: calibration.fit_temperature(np.zeros((0, 2)), none),
        lambda: comparison.paired_bootstrap_gain(two, two, one, 2),
        lambda: slices.score_slices(two, two, {"size": np.array([1.0, np.nan])}),
        lambda: slices.score_slices(two, two, {"size": np.array([1.0])}),
    ):
        with pytest.raises(RefitError):
            call()


def test_half_precision_probabilities_are_taken() -> None:
    true, probabilities = example(7)
    half = metrics.score(true, probabilities.astype(np.float16), names(7))
    assert half["log_loss"] == pytest.approx(
        metrics.score(true, probabilities, names(7))["log_loss"], abs=1e-3
    )


def log_loss(logits: np.ndarray, true: np.ndarray, temperature: float) -> float:
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(true)), true].mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fit_temperature_finds_the_one_that_made_the_logits(temperature: float) -> None:
    generator = np.random.default_rng(0)
    calibrated = generator.normal(scale=2, size=(20_000, 4))
    chances = softmax(calibrated, axis=1)
    true = (generator.random((20_000, 1)) > chances.cumsum(1)).sum(1)
    found = calibration.fit_temperature(calibrated * temperature, true)
    assert found == pytest.approx(temperature, rel=0.04)
    # No temperature of a grid does better than the one found.
    least = min(log_loss(calibrated * temperature, true, t) for t in np.geomspace(0.3, 4, 60))
    assert log_loss(calibrated * temperature, true, found) <= least + 1e-9


def test_fit_temperature_is_never_worse_than_none_and_stays_in_bounds() -> None:
    generator = np.random.default_rng(1)
    for count, scale in ((1, 1.0), (5, 0.01), (5, 100.0), (50, 1e4), (50, 1.0)):
        logits = generator.normal(scale=scale, size=(count, 3))
        true = generator.integers(0, 3, count)
        found = calibration.fit_temperature(logits, true)
        assert 0.05 <= found <= 20
        assert log_loss(logits, true, found) <= log_loss(logits, true, 1.0)


def test_fit_temperature_learns_nothing_where_there_is_no_mistake() -> None:
    assert calibration.fit_temperature(np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([0, 1])) == 1.0


def test_slices_name_the_worst_first() -> None:
    right = np.ones(200, dtype=int)
    size = np.arange(200) * 1000.0
    right[:50] = [0, 1] * 25  # small pictures fail half the time
    right[150:160] = 0  # a whole folder fails, but it is too small to be named
    folder = np.array(["a"] * 150 + ["b"] * 10 + ["c"] * 40)
    rows = slices.score_slices(
        np.ones(200, dtype=int), right, {"size": size, "folder": folder, "same": np.full(200, "x")}
    )
    assert [(row["column"], row["value"], row["count"]) for row in rows] == [
        ("size", "up to 49750", 50),
        ("size", "over 149250", 50),
        ("folder", "a", 150),
        ("size", "49750 to 99500", 50),
        ("size", "99500 to 149250", 50),
        ("folder", "c", 40),
    ]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.5, 0.8, 125 / 150, 1, 1, 1])
    # Wilson's interval of 25 of 50 by hand: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx((0.36645, 0.63355), abs=1e-4)
    assert rows[3]["low"] == pytest.approx(1 / (1 + 1.959964**2 / 50))
    json.dumps(rows, allow_nan=False)


def test_slices_keep_a_column_of_few_numbers_whole() -> None:
    true = np.zeros(60, dtype=int)
    channels = np.array([1, 3] * 30)
    rows = slices.score_slices(true, (channels == 1).astype(int), {"channels": channels})
    assert [(row["value"], row["accuracy"]) for row in rows] == [("1", 0.0), ("3", 1.0)]


def test_slices_survive_a_number_that_fills_half_of_a_column() -> None:
    true = np.zeros(100, dtype=int)
    sharpness = np.array([0.0] * 60 + list(range(1, 41)))
    rows = slices.score_slices(true, true, {"sharpness": sharpness}, minimum=1)
    assert {(row["value"], row["count"]) for row in rows} == {
        ("up to 0", 60),
        ("0 to 15.25", 15),
        ("over 15.25", 25),
    }


def test_gain_equals_scikit_learn_and_its_interval_a_bootstrap_of_pictures() -> None:
    generator = np.random.default_rng(5)
    true = generator.integers(0, 3, 200)
    champion = np.where(generator.random(200) < 0.75, true, generator.integers(0, 3, 200))
    challenger = np.where(generator.random(200) < 0.4, true, champion)
    gain, low, high = comparison.paired_bootstrap_gain(true, champion, challenger, 3)

    after = sk.f1_score(true, challenger, average="macro")
    assert gain == pytest.approx(after - sk.f1_score(true, champion, average="macro"))

    def difference(rows: np.ndarray) -> float:
        before = confusion.f1_macro(true[rows], champion[rows], 3)
        return confusion.f1_macro(true[rows], challenger[rows], 3) - before

    drawn = [difference(generator.integers(0, 200, 200)) for _ in range(1000)]
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([low, high], expected, atol=0.01)
    again = comparison.paired_bootstrap_gain(true, champion, challenger, 3)
    assert again == (gain, low, high)


def test_equal_predictions_gain_exactly_nothing() -> None:
    true, probabilities = example(4)
    predicted = probabilities.argmax(1)
    assert comparison.paired_bootstrap_gain(true, predicted, predicted, 4) == (0.0, 0.0, 0.0)


def test_the_mirror_image_loses_what_the_challenger_gained() -> None:
    true, probabilities = example(3)
    champion = probabilities.argmax(1)
    challenger = np.where(np.arange(300) % 4 == 0, true, champion)
    gain, low, high = comparison.paired_bootstrap_gain(true, champion, challenger, 3)
    assert low > 0
    mirrored = comparison.paired_bootstrap_gain(true, challenger, champion, 3)
    assert mirrored == pytest.approx((-gain, -high, -low), abs=0.005)


# The promotion rule by simulation. A retrain repeats most of its champion's mistakes; how many is
# the share of test pictures on which both predict the same, the agreement.
PRIOR = (0.69, 0.31)  # functional and defective cells in ELPV
CHAMPION_ACCURACY = 0.85
PICTURES = 400


def population(gain: float, agreement: float) -> np.ndarray:
    """Return the chances [true, champion, challenger] of a challenger with `gain` in accuracy."""
    lost = (1 - agreement - gain) / 2
    gained = lost + gain
    table = np.zeros((2, 2, 2))
    for label, share in enumerate(PRIOR):
        other = 1 - label
        table[label, label, label] = share * (CHAMPION_ACCURACY - lost)
        table[label, label, other] = share * lost
        table[label, other, label] = share * gained
        table[label, other, other] = share * (1 - CHAMPION_ACCURACY - gained)
    assert table.min() >= -1e-12
    return table.clip(0)


def true_gain(table: np.ndarray) -> float:
    """Return the macro-F1 gain in the whole population, by scikit-learn."""
    true, champion, challenger = (index.ravel() for index in np.indices(table.shape))
    before, after = (
        sk.f1_score(true, predicted, average="macro", sample_weight=table.ravel())
        for predicted in (champion, challenger)
    )
    return float(after - before)


def promoted(table: np.ndarray, retrains: int = 200) -> float:
    """Return the share of simulated retrains whose gain has a lower bound above 0."""
    generator = np.random.default_rng(0)
    labels = [index.ravel() for index in np.indices(table.shape)]
    count = 0
    for seed in range(retrains):
        times = generator.multinomial(PICTURES, table.ravel() / table.sum())
        true, champion, challenger = (np.repeat(label, times) for label in labels)
        gain = comparison.paired_bootstrap_gain(
            true, champion, challenger, 2, resamples=1000, seed=seed
        )
        count += gain[1] > 0
    return count / retrains


INDEPENDENT = CHAMPION_ACCURACY**2 + (1 - CHAMPION_ACCURACY) ** 2  # agreement by chance alone


@pytest.mark.parametrize("agreement", [INDEPENDENT, 0.93, 0.98])
def test_no_true_improvement_is_promoted_at_most_one_time_in_twenty(agreement: float) -> None:
    table = population(0.0, agreement)
    assert true_gain(table) == pytest.approx(0, abs=1e-12)
    # The long-run rate is about 3 %: of 200 retrains alone, chance takes one in 25 over 5 %.
    assert promoted(table, retrains=600) <= 0.05


@pytest.mark.parametrize(
    ("agreement", "least", "most"),
    [
        # 400 pictures cannot tell 5 points from chance when the two err independently: the
        # difference of about 90 disagreements has a standard deviation of 2.4 points.
        (0.78, 0.4, 0.7),
        (0.85, 0.55, 0.8),
        (0.93, 0.9, 1.0),
        (0.95, 0.9, 1.0),
    ],
)
def test_five_points_of_f1_are_promoted_where_most_mistakes_are_shared(
    agreement: float, least: float, most: float
) -> None:
    gain = brentq(lambda g: true_gain(population(g, agreement)) - 0.05, 0.03, 0.05)
    assert least <= promoted(population(gain, agreement)) <= most


def test_calibrated_ece_bound_is_exceeded_by_one_calibrated_model_in_forty() -> None:
    _, probabilities = example(3, count=120)
    generator = np.random.default_rng(5)
    bound = calibration.calibrated_ece_bound(probabilities, level=0.975)
    drawn = [
        calibration.ece(np.array([generator.choice(3, p=row / row.sum()) for row in exact]), exact)
        for exact in [probabilities.astype(np.float64)] * 200
    ]
    assert 0.005 <= np.mean(np.array(drawn) > bound) <= 0.06


def test_calibrated_ece_bound_of_sure_pictures_is_zero() -> None:
    assert calibration.calibrated_ece_bound(np.array([[1.0, 0.0], [0.0, 1.0]])) == 0


@pytest.mark.parametrize("better", [3, 6])
def test_paired_permutation_p_of_one_sided_changes_is_that_of_coins(better: int) -> None:
    true = np.array([0, 1] * 50)
    champion = true.copy()
    champion[:better] = 1 - champion[:better]
    found = comparison.paired_permutation_p(true, champion, true, 2, resamples=20_000)
    assert found == pytest.approx(0.5**better, abs=0.004)
    assert comparison.paired_permutation_p(true, true, champion, 2) == 1


def test_paired_permutation_p_of_equal_predictions_is_one() -> None:
    true, probabilities = example(3)
    predicted = probabilities.argmax(1)
    assert comparison.paired_permutation_p(true, predicted, predicted, 3) == 1


def test_fit_temperature_does_not_follow_the_chance_of_few_pictures() -> None:
    generator = np.random.default_rng(2)
    fitted = 0
    for _ in range(100):
        calibrated = generator.normal(scale=2, size=(60, 3))
        chances = softmax(calibrated, axis=1)
        true = (generator.random((60, 1)) > chances.cumsum(1)).sum(1)
        fitted += calibration.fit_temperature(calibrated, true) != 1.0
    assert fitted <= 10


@pytest.mark.parametrize("classes", [2, 7])
def test_intervals_of_probability_figures_are_those_of_resampled_scikit_learn(classes: int) -> None:
    true, probabilities = example(classes, count=200)
    found = metrics.score(true, probabilities, names(classes))["intervals"]
    generator = np.random.default_rng(9)
    drawn: dict[str, list[float]] = {}
    for _ in range(120):
        which = generator.integers(0, len(true), len(true))
        scores = metrics.score(true[which], probabilities[which], names(classes), intervals=False)
        for name in found:
            drawn.setdefault(name, []).append(scores[name])
    wanted = {"log_loss", "brier", "ece", "roc_auc", "pr_auc", "accuracy"}
    assert wanted | ({"top_3_accuracy", "top_5_accuracy"} if classes > 5 else set()) <= set(found)
    for name, (low, high) in found.items():
        expected = np.quantile(drawn[name], [0.025, 0.975])
        width = expected[1] - expected[0]
        assert (low, high) == pytest.approx(expected, abs=0.25 * width), name


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_areas_equal_scikit_learn(ties: bool) -> None:
    true, probabilities = example(3, count=100)
    column = probabilities[:, 1].astype(np.float64).round(1 if ties else 9)
    is_class = true == 1
    weights = np.random.default_rng(3).integers(0, 4, (5, 100)).astype(np.float64)
    roc, pr = metrics._areas(weights, *metrics._ranks(is_class, column))
    for row, (mine, precision) in enumerate(zip(roc, pr, strict=True)):
        more = {"sample_weight": weights[row]}
        assert mine == pytest.approx(sk.roc_auc_score(is_class, column, **more))
        assert precision == pytest.approx(sk.average_precision_score(is_class, column, **more))
