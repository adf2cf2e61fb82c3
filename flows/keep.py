"""Start a program again whenever it ends by itself: `python -m flows.keep COMMAND…`.

Prefect's worker gives up on a server that was away for some minutes; without this, a restart of
the server by night would be the last night that was retrained.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import NoReturn

PAUSE = 5.0  # seconds before the next start


def end(*_: object) -> NoReturn:
    """Leave as at an exit, so that the program is ended first."""
    sys.exit(0)


def main() -> None:
    """Keep the program running until SIGTERM; then end it too."""
    signal.signal(signal.SIGTERM, end)
    while True:
        program = subprocess.Popen(sys.argv[1:])
        try:
            code = program.wait()
        except BaseException:
            program.terminate()
            program.wait()
            raise
        print(f"keep: {sys.argv[1]} ended with exit code {code}; starting it again", flush=True)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main()
