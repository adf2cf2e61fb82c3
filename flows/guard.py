"""Run a command so that nothing of it outlives whoever asked for it.

Usage: python guard.py COMMAND…, with a pipe as standard input that its starter holds open. The
command gets a process group of its own, and the group is ended when the command ends, when the
pipe closes (its starter died, even by SIGKILL) or at SIGTERM. DVC needs it: killed, it leaves
its stage running, and the next run would be a second writer.

It imports nothing but the standard library, because every stage waits for its start.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

GRACE = 10.0  # seconds between asking a group to end and ending it
_PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>


class Group:
    """The processes of a command; those that lose their parent become this process's children."""

    def __init__(self, command: list[str]) -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self.code: int | None = None
        # Kept, because a Popen that is forgotten would wait for its process by itself.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
        self.leader = self._process.pid

    def reap(self) -> None:
        """Take notice of every process that ended; the command's own exit code is kept."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.leader:
                    code = os.waitstatus_to_exitcode(ended[1])
                    self.code = code if code >= 0 else 128 - code  # as a shell tells it

    def end(self) -> None:
        """End what is left: asked first, then made to."""
        for ending in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + GRACE
            with suppress(ProcessLookupError):
                os.killpg(self.leader, ending)
                while time.monotonic() < deadline:
                    self.reap()
                    os.killpg(self.leader, 0)
                    time.sleep(0.02)
                continue
            return


def main() -> int:
    """Wait for the command's end, the starter's end or SIGTERM; then end the group."""
    woken, waker = os.pipe()
    for end in (woken, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        group = Group(sys.argv[1:])
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")
    while group.code is None:
        ready = select.select([sys.stdin.fileno(), woken], [], [])[0]
        asked = set(os.read(woken, 4096)) - {signal.SIGCHLD} if woken in ready else set()
        group.reap()
        if asked or sys.stdin.fileno() in ready:
            break
    group.end()
    group.reap()
    return 128 + signal.SIGTERM if group.code is None else group.code


if __name__ == "__main__":
    sys.exit(main())
