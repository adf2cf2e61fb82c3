"""Tell MLflow's embedded database where this folder lies now: it keeps absolute paths.

After the project's folder was renamed, copied or restored from a back-up, run it once in there.
"""

from __future__ import annotations

import argparse
import sqlite3
from contextlib import closing
from pathlib import Path

from tasks import program
from tasks.vision.errors import RefitError

DATABASE = Path("mlflow.db")
FOLDER = "/mlruns/"  # of the artifacts, beside the database
PLACES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def relocate(root: Path) -> int:
    """Let every address of `root/mlflow.db` begin in `root`; return how many did not.

    Raises:
        RefitError: there is no such database.
    """
    if not (root / DATABASE).exists():
        raise RefitError(f"no {DATABASE} in {root}: start from the project's folder")

    def moved(address: str) -> str:
        return f"{root}{FOLDER}{address.rpartition(FOLDER)[2]}"

    with closing(sqlite3.connect(root / DATABASE)) as database, database:
        database.create_function("moved", 1, moved, deterministic=True)
        return sum(
            database.execute(
                f"UPDATE {table} SET {column} = moved({column}) "  # noqa: S608 - names from here
                f"WHERE {column} LIKE '/%{FOLDER}%' AND {column} != moved({column})"
            ).rowcount
            for table, column in PLACES.items()
        )


def main() -> None:
    """Relocate the project in the working folder."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(f"{relocate(Path.cwd())} addresses in {DATABASE} now begin with {Path.cwd()}")


if __name__ == "__main__":
    program.run(main)
