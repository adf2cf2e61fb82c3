"""How every program ends where a disk is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tasks import program
from tasks.vision.atomic import replacing


def ended(error: OSError) -> str:
    def stage() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        program.run(stage)
    return str(end.value)


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def stage() -> None:
        with replacing(path) as temporary:
            temporary.symlink_to("/dev/full")  # takes nothing, as a full disk
            temporary.write_bytes(b"new")

    with pytest.raises(SystemExit) as end:
        program.run(stage)
    said = str(end.value)
    assert said.startswith(f"error: {path} was not written (No space left on device): the disk at ")
    assert "\n" not in said
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", program.NO_ROOM)
def test_every_kind_of_no_room_names_file_and_disk(number: int, tmp_path: Path) -> None:
    path = tmp_path / "not" / "there.npy"
    said = ended(OSError(number, os.strerror(number), str(path)))
    assert f"{path} was not written ({os.strerror(number)})" in said
    disk = said.partition("the disk at ")[2].partition(" has ")[0]
    assert Path(disk).is_mount()
    assert path.is_relative_to(disk)


def test_another_error_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        program.run(lambda: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no", "file")))
