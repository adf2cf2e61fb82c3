"""Projects to run for real, made once or copied for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.project import Project, Trained, make_project


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Retrain a shrunk project once."""
    project = make_project(
        tmp_path_factory.mktemp("trained") / "project", each=40, variants=("int8",)
    )
    return Trained(project, project.retrain())


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Project:
    """Return a copy of the trained project to change."""
    return trained.project.copy(tmp_path / "project")
