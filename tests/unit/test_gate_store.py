"""What a scan costs, what it keeps, and that no decoder can take it down."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFilter

from tasks.gate import facts, store, workers
from tasks.gate.layout import Aside, find
from tasks.gate.store import Work
from tasks.vision import duplicates
from tasks.vision.errors import RefitError
from tests.unit.gate_data import LONG_AGO, fill, picture, pictured, put

MAX_PIXELS = 1_000_000


def scan(
    root: Path, timeout: float = 30
) -> tuple[Work, dict[str, dict[str, object]], dict[str, str]]:
    """Return the work done, the rows of the good pictures by path, and the bad ones."""
    found = store.scan(root, find(root, Aside()), MAX_PIXELS, timeout, root.parent)
    return found.work, {row["path"]: row for row in found.table.to_pylist()}, found.bad


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "raw", each=15)
    return tmp_path / "raw"


def test_only_what_is_new_is_read_and_only_new_content_is_decoded(root: Path) -> None:
    first, rows, _ = scan(root)
    assert first == Work(30, 30, 30)
    assert scan(root) == (Work(30, 0, 0), rows, {})

    put(root / "ant/new.jpg", pictured("ant", 1))  # 001.jpg once more
    put(root / "ant/other.jpg", picture(77))
    assert scan(root)[0] == Work(32, 2, 1)

    (root / "bee").rename(root / "wasp")
    (root / "ant/000.jpg").rename(root / "ant/renamed.jpg")
    work, rows, _ = scan(root)
    assert work == Work(32, 16, 0)
    assert rows["wasp/000.jpg"]["label"] == "wasp"

    os.utime(root / "ant/renamed.jpg", (LONG_AGO + 1, LONG_AGO + 1))
    assert scan(root)[0] == Work(32, 1, 0)


def test_a_changed_file_is_noticed_by_time_size_or_inode(root: Path) -> None:
    scan(root)
    target = root / "ant/000.jpg"
    size = target.stat().st_size
    other = put(root / "ant/001.jpg", b"x" * size)  # another size
    put(target, b"y" * size)
    os.utime(target, (LONG_AGO + 1, LONG_AGO + 1))  # another time
    swap = put(root.parent / "swap", b"z" * (root / "ant/002.jpg").stat().st_size)
    swap.replace(root / "ant/002.jpg")  # another inode
    work, rows, bad = scan(root)
    assert work == Work(30, 3, 3)
    assert set(bad) == {"ant/000.jpg", "ant/001.jpg", "ant/002.jpg"}
    assert other.name not in rows


def test_a_file_written_in_the_tick_of_its_reading_is_read_again(root: Path) -> None:
    os.utime(root / "ant/000.jpg")
    assert scan(root)[0].hashed == 30
    assert scan(root)[0] == Work(30, 1, 0)


def test_facts_are_not_kept_over_a_change_of_the_code_or_the_limit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan(root)
    monkeypatch.setitem(globals(), "MAX_PIXELS", 3000)
    work, rows, bad = scan(root)
    assert work == Work(30, 30, 30)
    assert not rows
    assert len(bad) == 30


def test_the_facts_of_a_picture_are_right(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    half = np.full((40, 60, 3), 10, np.uint8)
    half[:, 30:] = 210
    put(root / "ant/half.png", Image.fromarray(half))
    turned = picture(5, (60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = put(root / "ant/turned.jpg", turned, exif=exif).read_bytes()
    _, rows, _ = scan(root)
    assert rows["ant/half.png"] | {"sha256": "", "bytes": 0, "phash": ""} == {
        "path": "ant/half.png",
        "label": "ant",
        "split": "",
        "group": "",
        "sha256": "",
        "bytes": 0,
        "width": 60,
        "height": 40,
        "mode": "RGB",
        "format": "PNG",
        "orientation": 1,
        "phash": "",
        "mean": 110.0,
        "std": 100.0,
        # 38 rows of 58 inner pixels, of which the 2 at the edge have a Laplacian of +-200.
        "sharpness": pytest.approx(200**2 * 2 / 58),
        "decodable": True,
        "message": "",
    }
    assert rows["ant/half.png"]["phash"] == duplicates.perceptual_hash(half)
    row = rows["ant/turned.jpg"]
    assert (row["width"], row["height"], row["orientation"]) == (40, 60, 6)
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert row["bytes"] == len(content)


def test_sharpness_follows_focus_and_not_size() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (192, 256), dtype=np.uint8)
    sharp = Image.fromarray(noise)
    blurred = sharp.filter(ImageFilter.GaussianBlur(2))
    large = sharp.resize((1024, 768), Image.Resampling.NEAREST)
    assert facts.sharpness(blurred.copy()) < facts.sharpness(sharp.copy()) / 100
    assert facts.sharpness(large) == facts.sharpness(sharp.copy())
    assert facts.sharpness(Image.new("L", (2, 500))) == 0


def break_decoder(data: bytes, max_pixels: int) -> facts.Facts:
    """Take the place of `facts_of`: some pictures hang or kill the process that decodes them."""
    if data.startswith(b"hang"):
        ctypes.PyDLL(None).sleep(60)  # in C, with the interpreter's lock held
    if data.startswith(b"crash"):
        os.kill(os.getpid(), signal.SIGKILL)
    if data.startswith(b"exit"):
        os._exit(3)
    return facts.facts_of(data, max_pixels)


def test_a_decoder_that_hangs_or_crashes_costs_only_its_own_file(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        workers, "CONTEXT", multiprocessing.get_context("fork")
    )  # so that the workers have the patched decoder
    monkeypatch.setattr(workers, "facts_of", break_decoder)
    for name in ("hang", "crash", "exit"):
        put(root / f"ant/005{name}.jpg", name.encode())
        put(root / f"bee/{name}.jpg", name.encode() + b"2")
    work, rows, bad = scan(root, timeout=0.5)
    assert bad == {
        "ant/005hang.jpg": "decoding took more than 0.5 s",
        "bee/hang.jpg": "decoding took more than 0.5 s",
        "ant/005crash.jpg": "the decoder crashed (SIGKILL)",
        "bee/crash.jpg": "the decoder crashed (SIGKILL)",
        "ant/005exit.jpg": "the decoder crashed (exit code 3)",
        "bee/exit.jpg": "the decoder crashed (exit code 3)",
    }
    assert len(rows) == 30
    assert work == Work(36, 30, 30)
    # Such a verdict may be the machine's fault: it is not kept.
    monkeypatch.setattr(workers, "facts_of", facts.facts_of)
    work, _, bad = scan(root)
    assert work == Work(36, 6, 6)
    assert all("header is broken" in why for why in bad.values())


def test_workers_that_cannot_start_are_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(signal, "setitimer", None)
    monkeypatch.setattr(sqlite3, "connect", None)
    job = workers.Job(root, root / "nothing", MAX_PIXELS, 30)
    with pytest.raises(RefitError, match="worker process could not start"):
        list(workers.read_all(["ant/000.jpg"], job, 1))


def test_no_worker_outlives_a_scan_that_is_broken_off(root: Path) -> None:
    job = workers.Job(root, root.parent / "facts.sqlite", MAX_PIXELS, 30)
    scan(root)
    readings = workers.read_all([f"ant/{i:03}.jpg" for i in range(15)], job, 2)
    next(readings)
    pids = [p.pid for p in multiprocessing.active_children()]
    assert len(pids) == 2
    readings.close()
    assert not multiprocessing.active_children()


def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = workers.Job(tmp_path, tmp_path / "none", MAX_PIXELS, 30)
    known = sqlite3.connect(":memory:")
    gone = workers.read("gone.jpg", job, known)
    assert gone == workers.Failure("gone.jpg", "cannot be read: No such file or directory")
    large = put(tmp_path / "large.jpg", b"")
    os.truncate(large, 8 * MAX_PIXELS + 1)
    assert workers.read("large.jpg", job, known) == workers.Failure(
        "large.jpg",
        "8,000,001 bytes: more than any picture of the 1,000,000 pixels allowed could take",
    )


def test_a_file_that_cannot_be_read_any_more_is_not_taken_for_what_it_was(root: Path) -> None:
    scan(root)
    (root / "ant/000.jpg").unlink()
    os.truncate(put(root / "ant/000.jpg", b""), 8 * MAX_PIXELS + 1)
    _, rows, bad = scan(root)
    assert list(bad) == ["ant/000.jpg"]
    assert "ant/000.jpg" not in rows


def test_a_damaged_store_is_made_anew(root: Path) -> None:
    scan(root)
    (root.parent / store.FACTS).write_bytes(b"no database" * 1000)
    assert scan(root)[0] == Work(30, 0, 0)
    (root.parent / store.LAST).write_bytes(b"no parquet")
    assert scan(root)[0] == Work(30, 30, 30)
    (root.parent / store.LAST).unlink()
    assert scan(root)[0] == Work(30, 30, 0)


def test_a_store_in_use_is_not_touched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan(root)
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    other = sqlite3.connect(root.parent / "facts.sqlite")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RefitError, match="database is locked; wait for the other scan"):
        scan(root)
    other.close()
    assert scan(root)[0] == Work(30, 0, 0)


def test_an_interrupted_scan_keeps_what_it_had_done(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "AT_ONCE", 10)
    keep, calls = store._keep, []

    def stop_at_the_third(*args: object) -> None:
        calls.append(time.monotonic())
        if len(calls) == 3:
            raise KeyboardInterrupt
        keep(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "_keep", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            scan(root)
    assert scan(root)[0] == Work(30, 30, 10)


def chain(links: int, apart: int = 20) -> tuple[list[str], list[str]]:
    """Return hashes of pictures of which each is a near duplicate of the next one only."""
    bits = np.random.default_rng(1).integers(0, 2, 256, dtype=np.uint8)
    phash = []
    for link in range(links):
        phash.append(np.packbits(bits).tobytes().hex())
        bits[link * apart : (link + 1) * apart] ^= 1
    return [hashlib.sha256(bytes([n])).hexdigest() for n in range(links)], phash


def test_groups_of_old_pictures_are_kept_and_those_that_lost_one_are_formed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, phash = chain(9)
    others = np.random.default_rng(2).integers(0, 256, (20, 32), dtype=np.uint8)
    sha256 += [hashlib.sha256(row.tobytes()).hexdigest() for row in others]
    phash += [row.tobytes().hex() for row in others]
    compared: list[int] = []
    real = duplicates.group

    def counted(a: list[str], b: list[str], distance: int, known: list[str]) -> object:
        compared.append(known.count(""))
        return real(a, b, distance, known)

    monkeypatch.setattr(duplicates, "group", counted)

    def groups(rows: list[int]) -> int:
        """Return how many groups the chain makes, after the stored way equalled the plain one."""
        hashes = [sha256[row] for row in rows], [phash[row] for row in rows]
        found = store.alike(pa.table(hashes, names=["sha256", "phash"]), 24, tmp_path).to_pylist()
        assert found == real(*hashes, 24).tolist()
        return len({group for row, group in zip(rows, found, strict=True) if row < 9})

    whole = list(range(29))
    assert groups([row for row in whole if row != 4]) == 2
    assert groups(whole) == 1  # a new picture joins two groups
    assert groups(whole) == 1
    assert groups([row for row in whole if row != 6]) == 2  # and one that goes parts them
    assert groups([row for row in whole if row not in (6, 28)]) == 2
    assert compared == [28, 1, 0, 8, 0]


def test_what_is_known_of_groups_changes_nothing_but_the_work() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = random.integers(0, 256, (80, 32), dtype=np.uint8)
        bits = np.unpackbits(rows, axis=1)
        for row in range(1, 80, 2):  # like the row before, more or less
            bits[row] = bits[row - 1]
            bits[row, random.choice(256, random.integers(0, 30), replace=False)] ^= 1
        phash = ["" if n % 17 == 0 else np.packbits(b).tobytes().hex() for n, b in enumerate(bits)]
        sha256 = [hashlib.sha256(text.encode()).hexdigest() for text in phash]
        before = random.random(80) < 0.7
        some = [
            [text for text, had in zip(texts, before, strict=True) if had]
            for texts in (sha256, phash)
        ]
        stored = dict(zip(some[0], duplicates.group(some[0], some[1], 24).tolist(), strict=True))
        known = [stored.get(text, "") for text in sha256]
        expected = duplicates.group(sha256, phash, 24).tolist()
        assert duplicates.group(sha256, phash, 24, known).tolist() == expected
