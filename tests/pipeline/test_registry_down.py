"""A real MLflow server on loopback that goes away in the middle of a registration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks import files, tracking
from tasks.vision.errors import RefitError
from tests.pipeline.mlflow_server import Server
from tests.unit.registry import BAD, GOOD, aliases, registered, train, versions, write_pictures


def test_a_server_that_dies_midway_is_picked_up_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    files.RAW.mkdir(parents=True)
    write_pictures()
    server.start()
    try:
        train(BAD)
        assert registered()["verdict"] == "PROMOTE"
        train(GOOD)
        original = tracking.promote

        def die_then_promote(*args: Any) -> None:
            server.kill()
            original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(tracking, "promote", die_then_promote)
            with pytest.raises(RefitError, match="Nothing trained is lost"):
                registered()
        server.start()
        assert aliases() == {"champion": "1"}
        assert registered()["verdict"] == "PROMOTE"
        assert aliases() == {"champion": "2", "previous": "1"}
        assert versions() == ["1", "2"]
    finally:
        server.kill()
        tracking.mlflow.set_tracking_uri("")
