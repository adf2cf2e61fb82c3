"""Remove what no kept version needs: `make gc` shows it, `make gc APPLY=1` does it.

Kept are the champion, the one before, every version that was rolled back (its tag keeps it from
coming back), the newest `--keep` versions, and whatever the workspace itself names. Each step
leaves a working project: one that was interrupted is simply run again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from dvc.repo import Repo

from flows import graph, restore, workspace
from tasks import feature_store, files, params, program, runs, tracking
from tasks.vision.errors import RefitError

RESTORED = Path("data/restored")
LEFT_BY_A_KILL = re.compile(r"\..+\.(\d+)\.tmp")  # as tasks.vision.atomic names them
AN_HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Step:
    """One kind of thing to remove.

    Attributes:
        what: it is, for people.
        items: their names.
        size: bytes they take.
        remove: removes them all; safe to repeat.
    """

    what: str
    items: list[str]
    size: int
    remove: Callable[[], None]


def summary() -> dict[str, str]:
    """Return what the last retrain said of itself; nothing before the first."""
    return files.read_json(files.SUMMARY) if files.SUMMARY.exists() else {}


def kept_versions(
    client: tracking.MlflowClient, model: str, newest: int
) -> tuple[dict[str, str], list[tracking.ModelVersion]]:
    """Return version -> why it is kept, the newest first, and the versions that nobody needs."""
    found = sorted(tracking.versions(client, model), key=lambda v: int(v.version), reverse=True)
    aliases = {
        str(version.version): alias
        for alias in (tracking.PREVIOUS, tracking.CHAMPION)
        if (version := tracking.by_alias(client, model, alias))
    }
    last = summary()
    here = last.get("registered_version") if last.get("tracking_uri") == tracking.uri() else None
    why = {}
    for place, version in enumerate(found):
        number = str(version.version)
        reasons = [
            aliases.get(number, ""),
            "rolled back" if tracking.ROLLED_BACK in version.tags else "",
            "in the workspace" if number == here else "",
            f"of the newest {newest}" if place < newest else "",
        ]
        if reason := next(filter(None, reasons), ""):
            why[number] = reason
    return why, [version for version in found if str(version.version) not in why]


class Registry:
    """The steps in MLflow: versions, then runs, then stored models.

    Args:
        client: of MLflow.
        experiment: its id.
        model: the registered model's name.
        newest: how many of the newest versions are kept.
    """

    def __init__(
        self, client: tracking.MlflowClient, experiment: str, model: str, newest: int
    ) -> None:
        self._client, self._experiment = client, experiment
        self.kept, self._gone = kept_versions(client, model, newest)
        self.versions = [
            version
            for version in tracking.versions(client, model)
            if str(version.version) in self.kept
        ]

    def origins(self) -> Iterator[Path]:
        """Yield each kept version's folder of what it was made of.

        Raises:
            RefitError: one cannot be fetched: without it nothing may be removed.
        """
        for version in self.versions:
            try:
                yield tracking.read_artifact(version.tags["run_id"], runs.ORIGIN_FOLDER)
            except (OSError, tracking.MlflowException) as error:
                raise RefitError(
                    f"what version {version.version}, which is kept, was made of cannot be "
                    f"fetched ({str(error).splitlines()[0]}): nothing was removed"
                ) from error

    def steps(self) -> Iterator[Step]:
        """Yield what is to go."""
        gone = [f"{version.name} version {version.version}" for version in self._gone]
        yield Step("registered versions", gone, 0, self._remove_versions)
        needed = self._needed_runs()
        found = [
            run
            for run in tracking.all_runs(self._client, self._experiment)
            if str(run.info.run_id) not in needed and self._is_ours(run)
        ]
        sizes = {str(run.info.run_id): tracking.size_of(run.info.artifact_uri) for run in found}
        deleted = {str(r.info.run_id) for r in found if r.info.lifecycle_stage == "deleted"}
        sizes = {run: size for run, size in sizes.items() if size or run not in deleted}

        def remove_runs() -> None:
            for run in found:
                if str(run.info.run_id) in sizes:
                    tracking.remove_run(self._client, run)

        yield Step("runs in MLflow", list(sizes), sum(sizes.values()), remove_runs)
        models = [
            model
            for model in tracking.logged_models(self._client, self._experiment)
            if str(model.source_run_id) not in needed
        ]

        def remove_models() -> None:
            for model in models:
                tracking.remove_logged_model(self._client, model)

        size = sum(tracking.size_of(model.artifact_location) for model in models)
        yield Step("models in MLflow", [m.model_id for m in models], size, remove_models)

    def _remove_versions(self) -> None:
        for version in self._gone:
            self._client.delete_model_version(version.name, str(version.version))

    def _needed_runs(self) -> set[str]:
        """Return the kept versions' runs and the workspace's, with those nested in them."""
        needed = {version.tags["run_id"] for version in self.versions}
        needed |= {str(summary().get("run_id", ""))}
        known = tracking.all_runs(self._client, self._experiment)
        needed |= {str(run.info.run_id) for run in known if run.info.status == "RUNNING"}
        parents = needed.copy()
        for run in known:
            tags = run.data.tags
            if run.info.run_id in parents:
                # A candidate that did not change has its run under an earlier retrain.
                needed |= {value for name, value in tags.items() if name.startswith("run.")}
            if tags.get(tracking.PARENT) in parents:
                needed.add(str(run.info.run_id))
        return needed

    @staticmethod
    def _is_ours(run: tracking.Run) -> bool:
        """Whether a retrain made this run; a person's own runs are none of our business."""
        return bool({"retrain", "candidate"} & run.data.tags.keys())


@contextmanager
def projects(origins: Iterator[Path]) -> Iterator[list[str]]:
    """Yield a DVC project for each kept version, and those in `data/restored`.

    DVC then keeps all that their dvc.lock and raw.dvc name.
    """
    with tempfile.TemporaryDirectory(prefix="refit-gc-") as temporary:
        made = []
        for number, origin in enumerate(origins):
            made.append(Path(temporary, str(number)))
            restore.lay_out(made[-1], origin)
        restored = [found.parent for found in RESTORED.glob("*/.dvc")]
        yield [str(path) for path in (*made, *restored)]


def cache_step(keep: list[str]) -> Step:
    """Return the step that removes from DVC's cache what no project in `keep`, nor this, names.

    Raises:
        RefitError: the cache lies elsewhere, so others may use it as well.
    """
    with ExitStack() as opened:
        repositories = [opened.enter_context(Repo(path)) for path in (".", *keep)]
        cache = repositories[0].cache.local
        if not Path(cache.path).resolve().is_relative_to(Path.cwd().resolve()):
            raise RefitError(
                f"DVC's cache is {cache.path}, which other projects may share: "
                "`dvc gc --workspace --projects …` by hand removes what none of them needs"
            )
        used = {
            found.value
            for repository in repositories
            for objects in repository.used_objs().values()
            for found in objects
        }
        unused = [found for found in cache.all() if found not in used]
        size = sum(Path(cache.oid_to_path(found)).stat().st_size for found in unused)

    def remove() -> None:
        also = ["--projects", *keep] if keep else []
        restore.dvc("gc", "--workspace", "--force", *also)

    return Step("files in DVC's cache", unused, size, remove)


def _bytes(path: Path) -> int:
    files_below = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(found.stat().st_size for found in files_below)


def _folders(what: str, paths: list[Path]) -> Step:
    """Return the step that removes some files and folders."""

    def remove() -> None:
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return Step(what, [str(path) for path in paths], sum(map(_bytes, paths)), remove)


def checkpoints_step(candidates: set[str], stale: frozenset[str]) -> Step:
    """Return the step for checkpoints of trainings that are done, or of candidates that are gone.

    A training that is still to be done goes on from its newest one.
    """
    gone = []
    for place in files.CHECKPOINTS.glob("*/*"):
        stage, candidate = place.parts[-2:]
        if candidate not in candidates:
            gone.append(place)
            continue
        left = sorted((p for p in place.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        gone += left[:-1] if f"{stage}@{candidate}" in stale else left
    return _folders("checkpoints", gone)


def features_step(candidates: set[str]) -> Step:
    """Return the step for features that no candidate used when it was trained last."""
    used = feature_store.in_use(candidates)
    known = [path for path in files.FEATURES.glob("*") if path.is_dir()]
    gone = [] if used is None else [path for path in known if path.name not in used]
    return _folders("frozen features", gone)


def leftovers_step() -> Step:
    """Return the step for half-written files of processes that were killed."""
    old = time.time() - AN_HOUR
    found = [
        path
        for path in Path("data").rglob(".*.tmp")
        if (name := LEFT_BY_A_KILL.fullmatch(path.name))
        and not psutil.pid_exists(int(name[1]))
        and path.stat().st_mtime < old
    ]
    return _folders("half-written files", found)


def show(steps: list[Step]) -> None:
    """Print what goes."""
    for step in steps:
        print(f"{len(step.items):>7}  {step.size / 1e6:>10.1f} MB  {step.what}")
    print(f"{'':>7}  {sum(step.size for step in steps) / 1e6:>10.1f} MB  in all")


def main() -> None:
    """Plan, show, and with --apply remove."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="newest versions (3)")
    parser.add_argument("--apply", action="store_true", help="remove; else only show")
    arguments = parser.parse_args()
    if arguments.keep < 1:
        raise RefitError("--keep: at least 1, the newest version")
    settings = params.load()
    register = settings.register_
    with workspace.claimed(), tracking.session(register.experiment) as (client, experiment):
        registry = Registry(client, experiment, register.model_name, arguments.keep)
        with projects(registry.origins()) as keep:
            candidates, stale = set(settings.candidates), graph.ask().stale
            steps = [
                *registry.steps(),
                checkpoints_step(candidates, stale),
                features_step(candidates),
                leftovers_step(),
                cache_step(keep),
            ]
            for number, reason in registry.kept.items():
                print(f"kept: {register.model_name} version {number}, {reason}")
            show(steps)
            if not arguments.apply:
                print("Nothing was removed. To remove it: make gc APPLY=1")
                return
            for step in steps:
                if step.items:
                    step.remove()
                    print(f"removed: {step.what}", flush=True)


if __name__ == "__main__":
    program.run(main)
