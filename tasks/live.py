"""Side process of a training stage: what it writes to `live.jsonl` goes to MLflow as it comes.

`tasks.training` starts it as `python -m tasks.live STAGE CANDIDATE`; its standard input is a pipe
from the stage. The word in it is how the stage ended; a pipe that closes without one tells that the
stage was killed. Soon after that this process ends as well, whatever the server does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import IO

NICENESS = 10  # training comes first
LAST = 10  # seconds that are left when the stage is gone
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}


class Stage:
    """The stage at the other end of the pipe.

    Attributes:
        ended: set when it is gone.
        status: how it ended, in MLflow's words.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self.ended = threading.Event()
        self.status = "KILLED"
        threading.Thread(target=self._wait, args=(pipe,), daemon=True).start()

    def _wait(self, pipe: IO[bytes]) -> None:
        self.status = pipe.read().decode() or "KILLED"
        signal.alarm(LAST)  # it ends this process, even one that waits for a server
        self.ended.set()


def main() -> None:
    """Follow one stage to its end."""
    # Signals go to the stage's whole group. The stage ends by them, and that ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    os.environ.update(TIMEOUTS)
    stage, candidate = sys.argv[1:]
    other_end = Stage(sys.stdin.buffer)
    # It imports MLflow: two seconds of a processor, which are to be nice ones.
    from tasks import follower

    follower.follow(stage, candidate, other_end)


if __name__ == "__main__":
    main()
