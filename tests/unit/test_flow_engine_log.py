"""Prefect's engine says nothing about a flow that has said itself what failed."""

from __future__ import annotations

import logging

import pytest
from prefect.exceptions import FailedRun

from flows import engine_log


@pytest.mark.parametrize("name", engine_log.LOGGERS)
def test_only_the_engine_s_own_traceback_is_left_out(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger(name)
    engine_log.say_failures_once()
    engine_log.say_failures_once()
    with caplog.at_level(logging.INFO, name):
        logger.addHandler(caplog.handler)
        for error in (FailedRun("told already"), RuntimeError("a surprise")):
            try:
                raise error
            except type(error):
                logger.exception("Engine execution exited with unexpected exception")
        logger.info("Finished in state Failed")
        logger.removeHandler(caplog.handler)
    errors = [record.exc_info and str(record.exc_info[1]) for record in caplog.records]
    assert set(errors) == {"a surprise", None}
    assert logger.filters.count(engine_log.is_news) == 1
