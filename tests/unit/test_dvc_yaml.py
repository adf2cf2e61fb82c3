"""dvc.yaml names as deps exactly the modules that a stage imports, late imports included."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

STAGES = ("weights", "validate", "prepare", "train_head", "fine_tune", "evaluate", "export")


def module_file(name: str) -> Path | None:
    for path in (Path(*name.split(".")).with_suffix(".py"), Path(*name.split("."), "__init__.py")):
        if path.exists():
            return path
    return None


def imported_files(path: Path) -> set[Path]:
    """Return the project's files that a file imports, their packages' `__init__` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    names |= {name.rpartition(".")[0] for name in names}
    return {f for name in names if name.startswith("tasks") and (f := module_file(name))}


def closure(stage: str) -> set[str]:
    found = {Path("tasks/__init__.py"), Path(f"tasks/{stage}.py")}
    waiting = list(found)
    while waiting:
        new = imported_files(waiting.pop()) - found
        found |= new
        waiting += new
    # Files that hold nothing but a docstring cannot change a result.
    return {str(path) for path in found if len(ast.parse(path.read_text()).body) > 1}


def entry(stage: str) -> dict[str, Any]:
    definition = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][stage]
    found: dict[str, Any] = definition.get("do", definition)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_imported_modules(stage: str) -> None:
    listed = {dep for dep in entry(stage)["deps"] if dep.endswith(".py")}
    assert listed == closure(stage)


def test_every_stage_runs_the_program_of_its_name() -> None:
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert sorted(stages) == sorted(STAGES)
    for stage in STAGES:
        assert entry(stage)["cmd"].split()[:3] == ["python", "-m", f"tasks.{stage}"]


def test_vision_imports_nothing_above_it() -> None:
    above = ("tasks.", "prefect", "dvc", "mlflow", "great_expectations", "pydantic")
    for path in Path("tasks/vision").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                inside = name == "tasks.vision" or name.startswith("tasks.vision.")
                assert inside or not f"{name}.".startswith(above), f"{path} imports {name}"
