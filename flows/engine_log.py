"""What Prefect's engine logs of a run by itself."""

from __future__ import annotations

import logging

from prefect.exceptions import FailedRun

# The run's own log, and what the engine says on the worker's terminal.
LOGGERS = ("prefect.flow_runs", "prefect.engine")


def say_failures_once() -> None:
    """Leave out the engine's traceback of a flow that has told what failed.

    A flow that returns Failed has said why in its state. Under a worker the engine goes on to ask
    for the flow's result, gets `FailedRun` and logs it as an unexpected exception of its own.
    """
    for name in LOGGERS:
        logging.getLogger(name).addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log tells more than that the flow returned Failed."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))
