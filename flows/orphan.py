"""What becomes of a scheduled run whose worker is gone."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK = 1.0  # seconds between two looks for the parent


def end_with_parent() -> None:
    """End this process as if by SIGTERM when the worker that started it dies, even by SIGKILL.

    Nobody could cancel it any more or tell how it ended, and the next worker would start another.
    Prefect then marks the run Crashed, which frees its slot, and the stage's processes end. A run
    started by hand has no worker and is left alone.
    """
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        return
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="end-with-parent", daemon=True).start()
