"""Nothing of a stage outlives the flow, and nothing of a stage outlives DVC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from flows import guard

# A stage that ignores being asked, and whose parent, as DVC, starts it and waits.
STAGE = "import os, signal, time; signal.signal(signal.SIGTERM, {}); print(os.getpid(), flush=True)"
PARENT = (
    "import os, subprocess, sys; print(os.getpid(), flush=True);"
    "subprocess.run([sys.executable, '-c', {!r} + '; time.sleep(60)'])"
)


def dvc_like(on_sigterm: str = "signal.SIG_DFL") -> list[str]:
    return [sys.executable, "-c", PARENT.format(STAGE.format(on_sigterm))]


def start(command: list[str]) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a command under the guard; return it with the pids of the command and its stage."""
    process = subprocess.Popen(
        [sys.executable, "-S", guard.__file__, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(process.stdout.readline()), int(process.stdout.readline())]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def all_end(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_the_exit_code_and_the_output_are_the_command_s() -> None:
    command = [sys.executable, "-S", guard.__file__, sys.executable, "-c", "print(1); exit(7)"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert (process.stdout.read(), process.wait()) == (b"1\n", 7)


def test_a_command_that_is_not_there_is_one_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-S", guard.__file__, "no-such-program"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.read() == b"no-such-program: No such file or directory\n"
    assert process.wait() == 1


def test_a_stage_ends_when_dvc_is_killed() -> None:
    process, (parent, stage) = start(dvc_like())
    os.kill(parent, signal.SIGKILL)
    assert all_end([stage], 5)
    assert process.wait(5) == 128 + signal.SIGKILL


def test_everything_ends_when_the_flow_is_killed() -> None:
    process, pids = start(dvc_like())
    assert process.stdin is not None
    process.stdin.close()  # the kernel does it for a process that was killed
    assert process.wait(5) == 128 + signal.SIGTERM
    assert all_end(pids, 0)


def test_a_stage_that_does_not_listen_is_made_to() -> None:
    process, pids = start(dvc_like("signal.SIG_IGN"))
    process.terminate()
    assert process.wait(guard.GRACE + 10) == 128 + signal.SIGTERM
    assert all_end(pids, 0)


def test_a_killed_flow_leaves_no_stage(tmp_path: Path) -> None:
    """The real caller: a process that runs a child as the flow does, killed outright."""
    program = tmp_path / "flow.py"
    program.write_text(f"from flows import child\nchild.run({dvc_like()!r}, print)\n")
    flow = subprocess.Popen(
        [sys.executable, "-u", str(program)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert flow.stdout is not None
    pids = [int(flow.stdout.readline()), int(flow.stdout.readline())]
    flow.kill()
    flow.wait()
    assert all_end(pids, 5)


KEPT = """
import os, sys, time
with open(sys.argv[1], "a") as notes:
    notes.write(f"{os.getpid()} ")
time.sleep(60 * (len(open(sys.argv[1]).read().split()) > 1))
"""
KEEP = "from flows import keep; keep.PAUSE = 0; keep.main()"


def test_a_service_that_ends_is_started_again_until_told_to_end(tmp_path: Path) -> None:
    notes = tmp_path / "pids"
    command = [sys.executable, "-c", KEPT, str(notes)]
    keeper = subprocess.Popen([sys.executable, "-c", KEEP, *command])
    end = time.monotonic() + 30
    while time.monotonic() < end and (not notes.exists() or len(notes.read_text().split()) < 2):
        time.sleep(0.05)
    first, second = map(int, notes.read_text().split())
    assert not alive(first)
    assert alive(second)
    keeper.terminate()
    assert keeper.wait(10) == 0
    assert all_end([second], 0)
