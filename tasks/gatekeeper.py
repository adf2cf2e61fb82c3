"""The champion gate's decision: measurements in, verdict with every figure and reason out.

It knows neither files nor MLflow, so that a simulation can ask it a thousand times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.params import Register
from tasks.vision import calibration, comparison, metrics

Verdict = Literal["PROMOTE", "HOLD", "REJECT"]
MAX_P = 0.025  # one-sided, as the bootstrap's lower 95 % bound is
HEADLINES = ("accuracy", "balanced_accuracy", "f1_macro", "mcc", "log_loss", "brier", "ece")


@dataclass(frozen=True)
class Contender:
    """A model as it was measured now, on today's test pictures.

    Attributes:
        class_names: [C] its own, in the order of the columns.
        probabilities: float [n, C].
        megabytes: size of its ONNX file.
        milliseconds: a picture by itself takes so long.
        difference: the largest between these probabilities and the evaluated ones.
    """

    class_names: list[str]
    probabilities: NDArray[np.float32]
    megabytes: float
    milliseconds: float
    difference: float = 0.0


@dataclass(frozen=True)
class Decision:
    """A verdict and what it rests on.

    Attributes:
        verdict: PROMOTE: it becomes the champion. HOLD: it is not shown to be better. REJECT: it
            is shown to be worse, or breaks a limit.
        reasons: sentences, the decisive ones first.
        figures: everything that was measured, plain JSON types.
        final: False where nothing could be compared: the next attempt judges anew.
    """

    verdict: Verdict
    reasons: list[str]
    figures: dict[str, Any] = field(default_factory=dict)
    final: bool = True


def decide(
    truth: list[str],
    challenger: Contender,
    champion: Contender | None,
    limits: Register,
    max_difference: float,
) -> Decision:
    """Compare a challenger with the champion, both measured on the same pictures.

    Classes are matched by name. A picture of a class that a model does not know counts as
    missed: what counts is how well each serves today's pictures.

    Args:
        truth: [n] class names of the test pictures.
        challenger: the new model.
        champion: the present one; None where there is none.
        limits: what params.yaml asks for.
        max_difference: of probabilities, between the file and the model that was evaluated.
    """
    models = [challenger] if champion is None else [challenger, champion]
    names = sorted({*truth, *(name for model in models for name in model.class_names)})
    true = np.array([names.index(name) for name in truth])
    figures: dict[str, Any] = {
        "pictures": len(truth),
        "challenger": _figures(true, challenger, names),
    }
    figures["challenger"]["difference"] = challenger.difference
    broken = _broken_limits(true, challenger, names, limits, figures)
    if challenger.difference > max_difference:
        broken.append(
            "the file's probabilities differ from the evaluated ones by "
            f"{challenger.difference:.2g} where export.max_probability_difference is "
            f"{max_difference:g}"
        )
    if champion is None:
        if broken:
            return Decision("REJECT", broken, figures)
        return Decision("PROMOTE", ["the first model: there is no champion"], figures)
    figures["champion"] = _figures(true, champion, names)
    pair = (true, _predicted(champion, names), _predicted(challenger, names), len(names))
    gain, low, high = comparison.paired_bootstrap_gain(*pair)
    chance = comparison.paired_permutation_p(*pair)
    figures["gain"] = {"f1_macro": gain, "low": low, "high": high, "p": chance}
    words = (
        f"macro F1 {gain:+.4f} against the champion "
        f"(95 % interval {low:+.4f} to {high:+.4f}, p {chance:.3f})"
    )
    worse = [f"it is worse than the champion: {words}"] if high < 0 else []
    worse += _lost_recall(figures, champion, limits.max_recall_drop)
    if broken or worse:
        return Decision("REJECT", broken + worse, figures)
    if forgotten := _forgotten(challenger, champion, limits, figures):
        return Decision("HOLD", [forgotten], figures)
    if low > limits.min_gain and chance <= MAX_P:
        return Decision("PROMOTE", [f"it is better: {words}"], figures)
    return Decision(
        "HOLD", [f"it is not shown to be better by {limits.min_gain:g}: {words}"], figures
    )


def _predicted(model: Contender, names: list[str]) -> NDArray[np.int64]:
    """Return the most probable class of each picture, as an index of `names`."""
    places = np.array([names.index(name) for name in model.class_names])
    best: NDArray[np.int64] = places[model.probabilities.argmax(1)]
    return best


def _spread(model: Contender, names: list[str]) -> NDArray[np.float32]:
    """Return its probabilities with a column for each of `names`."""
    wide = np.zeros((len(model.probabilities), len(names)), np.float32)
    wide[:, [names.index(name) for name in model.class_names]] = model.probabilities
    return wide


def _figures(true: NDArray[Any], model: Contender, names: list[str]) -> dict[str, Any]:
    scores = metrics.score(true, _spread(model, names), names, intervals=False)
    return {
        **{name: scores[name] for name in HEADLINES},
        "recall": {
            name: row["recall"] for name, row in scores["per_class"].items() if row["support"]
        },
        "megabytes": model.megabytes,
        "milliseconds": model.milliseconds,
    }


def _broken_limits(
    true: NDArray[Any],
    model: Contender,
    names: list[str],
    limits: Register,
    figures: dict[str, Any],
) -> list[str]:
    """Return a sentence for each limit that the challenger breaks."""
    found = []
    for name, unit in (("megabytes", "MB"), ("milliseconds", "ms a picture")):
        value, limit = figures["challenger"][name], getattr(limits, f"max_{name}")
        if value > limit:
            found.append(f"{value:.4g} {unit} where max_{name} is {limit:g}")
    error = figures["challenger"]["ece"]
    if error > limits.max_ece:
        # With few pictures a perfectly calibrated model's error is far from 0, too.
        chance = calibration.calibrated_ece_bound(_spread(model, names))
        figures["challenger"]["ece_by_chance"] = chance
        # Both are multiples of the same small steps: equal ones may differ in their last digits.
        if error > chance + 1e-6:
            found.append(
                f"calibration error {error:.3f} where max_ece is {limits.max_ece:g} and chance "
                f"explains {chance:.3f}: its probabilities cannot be relied on"
            )
    return found


def _lost_recall(figures: dict[str, Any], champion: Contender, allowed: float) -> list[str]:
    """Return a sentence for each class that loses more recall than allowed."""
    found = []
    for name, now in figures["challenger"]["recall"].items():
        before = figures["champion"]["recall"][name]
        if name in champion.class_names and before - now > allowed:
            found.append(
                f"class {name!r} loses {before - now:.3f} of recall ({before:.3f} to {now:.3f}) "
                f"where max_recall_drop is {allowed:g}"
            )
    return found


def _forgotten(
    challenger: Contender, champion: Contender, limits: Register, figures: dict[str, Any]
) -> str | None:
    """Note which classes differ; return why the challenger has to wait for a person, or None."""
    known, before = set(challenger.class_names), set(champion.class_names)
    figures["classes_added"] = sorted(known - before)
    figures["classes_removed"] = sorted(before - known)
    lost = sorted(before - known - set(limits.retired_classes))
    if not lost:
        return None
    return (
        f"it no longer knows {', '.join(map(repr, lost))}: if that is meant, list "
        f"{'it' if len(lost) == 1 else 'them'} under register.retired_classes in params.yaml"
    )
