"""The split: drawn by content, honoured where given, and never moved by what is added."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.params import Split
from tasks.split import SPLITS, assign, prefer_named, straddling, too_small
from tasks.vision.errors import RefitError

SHARES = Split(val=0.15, test=0.2)


def place(group: str) -> float:
    return int(hashlib.sha256(group.encode()).hexdigest()[:16], 16) / 16**16


def group_in(split: str) -> str:
    """Return a group name that is drawn into a split."""
    low, high = {"test": (0.0, 0.2), "val": (0.2, 0.35), "train": (0.35, 1.0)}[split]
    return next(n for n in map(str, range(1000)) if low <= place(n) < high)


TRAINED, CHOSEN, TESTED = (group_in(split) for split in SPLITS)


def test_a_group_is_drawn_by_the_first_64_bits_of_its_hash() -> None:
    groups = [str(i) for i in range(300)]
    expected = ["test" if place(g) < 0.2 else "val" if place(g) < 0.35 else "train" for g in groups]
    assert assign(groups, SHARES).tolist() == expected


def test_shares_are_met() -> None:
    count = Counter(assign([str(i) for i in range(20_000)], SHARES).tolist())
    assert abs(count["val"] / 20_000 - 0.15) < 0.01
    assert abs(count["test"] / 20_000 - 0.2) < 0.01


def test_the_empty_set() -> None:
    assert assign([], SHARES).tolist() == []


# ---- given splits --------------------------------------------------------------------------------


def test_given_splits_are_honoured() -> None:
    demanded = ["train", "val", "test", "train", "test"]
    assert assign([TESTED, TRAINED, TRAINED, CHOSEN, CHOSEN], SHARES, demanded).tolist() == demanded


def test_a_picture_without_a_given_split_follows_its_group_or_is_drawn() -> None:
    splits = assign([TRAINED, TRAINED, CHOSEN], SHARES, ["test", "", ""])
    assert splits.tolist() == ["test", "test", "val"]


def test_a_missing_val_is_carved_from_train_and_test_is_left_alone() -> None:
    groups = [str(i) for i in range(4000)]
    demanded = ["test" if i < 1000 else "train" for i in range(4000)]
    splits = assign(groups, SHARES, demanded).tolist()
    assert splits[:1000] == ["test"] * 1000
    # val : train stays as in the params, 0.15 : 0.65
    expected = ["val" if place(g) < 0.15 / 0.8 else "train" for g in groups[1000:]]
    assert splits[1000:] == expected


def test_only_train_given_is_as_good_as_none_given() -> None:
    groups = [str(i) for i in range(500)]
    assert assign(groups, SHARES, ["train"] * 500).tolist() == assign(groups, SHARES).tolist()


def test_a_given_split_wins_over_the_previous_one() -> None:
    demanded = ["train", "val", "test"]
    before = ["test", "train", "train"]
    assert assign(["a", "b", "c"], SHARES, demanded, before).tolist() == demanded


def test_a_carved_picture_stays_where_it_was_carved_to() -> None:
    demanded = ["train", "train", "test"]
    assert assign([TRAINED, CHOSEN, "x"], SHARES, demanded, ["val", "train", "test"]).tolist() == [
        "val",
        "train",
        "test",
    ]


def test_unknown_splits_are_refused_with_their_number() -> None:
    with pytest.raises(RefitError, match=r"2 pictures are given the splits \['dev'\]"):
        assign(["a", "b", "c"], SHARES, ["dev", "dev", "train"])


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(RefitError, match="none is left to train on"):
        assign(["a", "b"], SHARES, ["val", "test"])


# ---- history -------------------------------------------------------------------------------------


def test_an_old_group_keeps_its_split_when_its_name_changes() -> None:
    assert assign([TRAINED, TRAINED], SHARES, previous=["test", ""]).tolist() == ["test", "test"]


def test_a_picture_that_joins_two_old_groups_trains_and_is_reported() -> None:
    groups = ["g", "g", "g"]
    splits = assign(groups, SHARES, previous=["test", "val", ""])
    assert splits.tolist() == ["test", "val", "train"]
    assert straddling(groups, splits.tolist()) == ["g"]


def test_changed_shares_move_only_new_pictures() -> None:
    old = ["train", "val", "test", ""]
    groups = ["a", "b", "c", TRAINED]
    assert assign(groups, Split(val=0.01, test=0.98), previous=old).tolist() == [*old[:3], "test"]


def smallest(members: dict[str, int]) -> dict[str, str]:
    """Name each picture's group, as `tasks.vision.duplicates.group` does: its smallest sha256."""
    return {p: min(q for q in members if members[q] == members[p]) for p in members}


# Pictures by content, each in one of a few groups of look-alikes; more than one batch arrives.
PICTURES = st.text("0123456789abcdef", min_size=3, max_size=3)
BATCHES = st.lists(st.dictionaries(PICTURES, st.integers(0, 12), max_size=15), max_size=4)


@settings(max_examples=300, deadline=None)
@given(BATCHES)
def test_adding_pictures_never_moves_an_old_one(batches: list[dict[str, int]]) -> None:
    members: dict[str, int] = {}
    accepted: dict[str, str] = {}
    for batch in batches:
        members = batch | members  # a content known before keeps its looks
        names = smallest(members)
        pictures = sorted(members)
        groups = [names[p] for p in pictures]
        splits = assign(groups, SHARES, previous=[accepted.get(p, "") for p in pictures]).tolist()
        now = dict(zip(pictures, splits, strict=True))
        assert {p: now[p] for p in accepted} == accepted
        assert straddling(groups, splits) == []
        accepted = now


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=12), max_size=4))
def test_however_new_pictures_regroup_them_old_ones_stay(rounds: list[list[int]]) -> None:
    accepted: list[str] = []
    for looks in rounds:
        groups = [str(look) for look in looks] + ["late"] * max(0, len(accepted) - len(looks))
        before = accepted + [""] * (len(groups) - len(accepted))
        splits = assign(groups, SHARES, previous=before).tolist()
        assert splits[: len(accepted)] == accepted
        # Only what was apart before is apart now.
        assert set(straddling(groups, splits)) <= {
            group
            for group in groups
            if len({old for g, old in zip(groups, accepted, strict=False) if g == group}) > 1
        }
        accepted = splits


@settings(max_examples=100, deadline=None)
@given(BATCHES)
def test_without_history_new_groups_move_no_old_picture(batches: list[dict[str, int]]) -> None:
    accepted: dict[str, str] = {}
    groups: list[str] = []
    for number, batch in enumerate(batches):
        groups += [f"{number}-{look}" for look in batch.values()]
        now = dict(zip(groups, assign(groups, SHARES).tolist(), strict=True))
        assert {g: now[g] for g in accepted} == accepted
        accepted = now


@settings(max_examples=100, deadline=None)
@given(BATCHES, st.lists(st.sampled_from(["", *SPLITS]), min_size=60, max_size=60))
def test_every_given_split_is_honoured_or_carved(
    batches: list[dict[str, int]], demands: list[str]
) -> None:
    groups = [str(look) for batch in batches for look in batch.values()]
    demanded = ["train", *demands][: len(groups)]
    splits = assign(groups, SHARES, demanded).tolist()
    carved = {"val", "test"} - set(demanded)
    for split, demand in zip(splits, demanded, strict=True):
        assert split == demand or not demand or (demand == "train" and split in carved)


# ---- named groups --------------------------------------------------------------------------------


def test_named_groups_win_and_their_unnamed_copies_follow() -> None:
    computed = ["x", "x", "y", "y", "z", "y"]
    named = ["", "ann", "bob", "", "", "al"]
    assert prefer_named(computed, named).tolist() == ["ann", "ann", "bob", "al", "z", "al"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "p", "q"])), max_size=20))
def test_pictures_of_one_named_group_share_a_split(rows: list[tuple[str, str]]) -> None:
    groups = prefer_named([c for c, _ in rows], [n for _, n in rows]).tolist()
    splits = assign(groups, SHARES).tolist()
    for name in ("p", "q"):
        assert len({s for s, (_, n) in zip(splits, rows, strict=True) if n == name}) <= 1


# ---- classes too small ---------------------------------------------------------------------------


def test_too_small_names_class_split_number_and_need() -> None:
    labels = ["ant"] * 9 + ["bee"] * 6
    splits = ["train"] * 3 + ["val"] * 3 + ["test"] * 3 + ["train"] * 5 + ["test"]
    assert too_small(labels, splits, 3, SHARES) == [
        "class 'bee' has 0 of its 6 pictures in val and needs 3: add about 20 more pictures of it",
        "class 'bee' has 1 of its 6 pictures in test and needs 3: add about 10 more pictures of it",
    ]


def test_too_small_is_silent_about_enough() -> None:
    assert too_small(["a"] * 3, list(SPLITS), 1, SHARES) == []


def test_a_solar_cell_data_set_is_stratified_well_enough() -> None:
    """With 821 and 1,803 pictures both classes are within three points of their shares."""
    labels = np.array(["defective"] * 821 + ["functional"] * 1803)
    splits = assign([str(i) for i in range(len(labels))], SHARES)
    for label in ("defective", "functional"):
        for split, share in (("val", 0.15), ("test", 0.2)):
            assert abs(np.mean(splits[labels == label] == split) - share) < 0.03
