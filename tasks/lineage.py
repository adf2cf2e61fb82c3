"""Where a model came from, and where a picture went.

`python -m tasks.lineage data/best/model.onnx` goes from the file alone to its registered version,
run, commit, data version, initial weights and params; `python -m tasks.lineage PICTURE` to the
versions that trained on the picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks import files, params, program, runs, serving, tracking
from tasks.vision.errors import RefitError

USES = {"train": "trained on it", "val": "was chosen with it", "test": "was scored on it"}


def of_model(client: tracking.MlflowClient, model: str, path: Path) -> list[str]:
    """Return what is known of an ONNX file, a line a fact.

    Raises:
        RefitError: no file that Refit exported.
    """
    metadata = serving.Session(path, "cpu").metadata
    sha256 = files.sha256_file(path)
    lines = [f"{path}: sha256 {sha256}"]
    lines += [f"  {key}: {value}" for key, value in sorted(metadata.items()) if key != "input"]
    version = tracking.find_version(client, model, sha256)
    if version is None:
        return [*lines, f"  it is registered nowhere in {tracking.uri()}"]
    run = client.get_run(version.tags["run_id"])
    tags = run.data.tags
    lines += [
        f"  registered: {model} version {version.version}",
        f"  run: {run.info.run_id} (artifacts: {runs.ORIGIN_FOLDER}/dvc.lock, params.yaml, …)",
        f"  git commit: {tags['git_commit']}",
        f"  data version: {tags['data_version']}",
        f"  verdict: {tags.get('verdict', 'none yet')} ({tags.get('reason', 'interrupted')})",
    ]
    candidate = client.get_run(tags[f"run.{metadata['candidate']}"])
    weights = candidate.data.tags.get("weights_sha256", "unknown")
    lines += [f"  initial weights: sha256 {weights}", f"  candidate run: {candidate.info.run_id}"]
    lines += [f"    {key}: {value}" for key, value in sorted(candidate.data.params.items())]
    return [*lines, f"  to have it all back: python -m flows.restore {version.version}"]


def of_picture(client: tracking.MlflowClient, model: str, path: Path) -> list[str]:
    """Return which registered versions saw a picture, and what for, the oldest first.

    It is known by its content, under whatever name; one that is gone by its path in data/raw.
    """
    if path.exists():
        column, wanted = "sha256", files.sha256_file(path)
    else:
        column, wanted = "path", path.as_posix().removeprefix(f"{files.RAW.as_posix()}/")
    lines = []
    manifests: dict[str, dict[str, Any]] = {}
    found = client.search_model_versions(f"name = '{model}'")
    for version in sorted(found, key=lambda version: int(version.version)):
        data_version = version.tags["data_version"]
        if data_version not in manifests:
            name = f"{runs.ORIGIN_FOLDER}/{files.MANIFEST.name}"
            manifest = tracking.read_artifact(version.tags["run_id"], name)
            rows = pq.read_table(manifest, filters=[(column, "=", wanted)]).to_pylist()
            manifests[data_version] = rows[0] if rows else {}
        if row := manifests[data_version]:
            lines.append(
                f"  {model} version {version.version} {USES[row['split']]}, "
                f"as {row['path']} (data version {data_version})"
            )
    return [f"{path}:", *(lines or [f"  no registered version of {model} saw it"])]


def main() -> None:
    """Print the lineage of each file given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="an ONNX file, or a picture")
    register = params.load().register_
    with tracking.session(register.experiment) as (client, _):
        for path in parser.parse_args().files:
            if path.suffix == ".onnx" and not path.exists():
                raise RefitError(f"no file {path}")
            of = of_model if path.suffix == ".onnx" else of_picture
            print("\n".join(of(client, register.model_name, path)))


if __name__ == "__main__":
    program.run(main)
