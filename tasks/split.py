"""Which pictures train, choose and judge the model: decided by content, once and for all.

A group of duplicates is drawn by the hash of its name, so that the split needs no list, no seed and
no order, and adding pictures moves none. One thing a hash cannot do: keep the split of a group
whose name changes, because a smaller sha256 joins it, or of two groups that a new picture joins.
There the last accepted manifest, where there is one, has the word.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.params import Split
from tasks.vision.errors import RefitError

TRAIN = "train"
# Drawn in this order from the bottom of 0..1; what is above both is for training.
HELD_OUT = ("test", "val")
SPLITS = (TRAIN, "val", "test")


def prefer_named(computed: Sequence[str], named: Sequence[str]) -> npt.NDArray[np.str_]:
    """Return the groups to split by: those that a person named, computed ones elsewhere.

    A picture without a named group follows its duplicates that have one (of several, the first
    by name): a copy that nobody labelled must not leave its original.

    Args:
        computed: group of each picture, from `tasks.vision.duplicates.group`.
        named: the `group` column of labels.csv, "" where it is empty.

    Returns:
        str [N].
    """
    names: dict[str, str] = {}
    for group, name in zip(computed, named, strict=True):
        if name:
            names[group] = min(name, names.get(group, name))
    return np.array(
        [name or names.get(group, group) for group, name in zip(computed, named, strict=True)],
        dtype=np.str_,
    )


def assign(
    groups: Sequence[str],
    shares: Split,
    given: Sequence[str] | None = None,
    previous: Sequence[str] | None = None,
) -> npt.NDArray[np.str_]:
    """Return the split of every picture.

    - A given split is honoured. A held-out split that is given to no picture is carved from those
      given for training; given one day after all, its carved pictures go back to training.
    - Otherwise a picture that was in the last accepted manifest keeps its split, also when the
      shares have changed since.
    - New pictures follow the group's others; where those are in several splits (a new picture joins
      two old groups), they train, so that the held-out ones stay as they were: see `straddling`.
    - A new group is drawn by the hash of its name.

    Args:
        groups: name of each picture's duplicate group.
        shares: of val and test.
        given: split that a folder or labels.csv demands, "" for none.
        previous: split in the last accepted manifest of a picture with this content, "" for none.

    Returns:
        str [N] of train, val, test.

    Raises:
        RefitError: a given split is none of these three, or none is left to train on.
    """
    given = [""] * len(groups) if given is None else given
    previous = [""] * len(groups) if previous is None else previous
    carved = _missing(given)
    kept = [_kept(g, p, carved) for g, p in zip(given, previous, strict=True)]

    seen: dict[str, set[str]] = defaultdict(set)
    choices: dict[str, tuple[str, ...]] = dict.fromkeys(groups, SPLITS)
    for group, split, demand in zip(groups, kept, given, strict=True):
        if split:
            seen[group].add(split)
        elif demand:
            choices[group] = (TRAIN, *carved)
    splits = [
        split or _followed(seen[group], choices[group]) or _drawn(group, choices[group], shares)
        for group, split in zip(groups, kept, strict=True)
    ]
    return np.array(splits, dtype=np.str_)


def straddling(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Return the groups that are in more than one split, sorted.

    Only given splits, or a new picture that joins groups accepted earlier, can cause it.
    """
    pairs = set(zip(groups, splits, strict=True))
    count = Counter(group for group, _ in pairs)
    return sorted(group for group, number in count.items() if number > 1)


def too_small(
    labels: Sequence[str], splits: Sequence[str], minimum: int, shares: Split
) -> list[str]:
    """Name each class with fewer than `minimum` pictures in a split.

    Returns:
        One message for each such class and split: how many it has and how many more, all splits
        together, will on average bring it to the minimum.
    """
    have = Counter(zip(labels, splits, strict=True))
    total = Counter(labels)
    messages = []
    for label in sorted(total):
        for split in SPLITS:
            lack = minimum - have[label, split]
            if lack > 0:
                more = math.ceil(lack / _share(split, shares))
                messages.append(
                    f"class {label!r} has {have[label, split]} of its {total[label]} pictures in "
                    f"{split} and needs {minimum}: add about {more} more pictures of it"
                )
    return messages


def _missing(given: Sequence[str]) -> tuple[str, ...]:
    """Return the held-out splits given to no picture; none where no split is given at all."""
    names = set(given) - {""}
    if unknown := sorted(names - set(SPLITS)):
        number = sum(name in unknown for name in given)
        raise RefitError(
            f"{number} pictures are given the splits {unknown}: there are only {list(SPLITS)}"
        )
    if names and TRAIN not in names and "" not in given:
        raise RefitError(f"every picture is given for {sorted(names)}: none is left to train on")
    return tuple(split for split in HELD_OUT if split not in names) if names else ()


def _kept(given: str, previous: str, carved: tuple[str, ...]) -> str:
    """Return the split that a picture must have, or "" where its group decides."""
    if given == TRAIN and carved:
        return previous if previous in (TRAIN, *carved) else ""
    return given or previous


def _followed(seen: set[str], choices: tuple[str, ...]) -> str:
    """Return the split in which a free picture's group is already, or "" for a new group."""
    if not seen:
        return ""
    only = min(seen)
    return only if len(seen) == 1 and only in choices else TRAIN


def _drawn(group: str, choices: tuple[str, ...], shares: Split) -> str:
    """Draw a split for a new group, by nothing but the hash of its name."""
    digest = hashlib.sha256(group.encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64 * sum(_share(split, shares) for split in choices)
    for split in HELD_OUT:
        if split in choices:
            if place < _share(split, shares):
                return split
            place -= _share(split, shares)
    return TRAIN


def _share(split: str, shares: Split) -> float:
    """Return the share of all pictures that a split takes."""
    return {TRAIN: 1 - shares.val - shares.test, "val": shares.val, "test": shares.test}[split]
