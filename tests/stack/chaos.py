"""Triggers at random moments while workers, stages and servers are killed at random.

    .venv/bin/python -m tests.stack.chaos                           # an hour, three times as fast
    .venv/bin/python -m tests.stack.chaos --triggers 10 --minutes 2 --arrivals 2 --kills 4

The shipped pipeline with one candidate, shrunk, on real small pictures, the shipped deployments,
Prefect's server and worker, and MLflow's server with its artifact proxy. Every challenger is
promoted (the gate's limits are taken out of the copy), so that the champion moves while things
die. It prints a JSON object of counts, and fails where a champion was lost, a training was made
twice, a process was left over, or a slot stayed taken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from tasks import demo_data
from tests.loopback import free_port, wait_for
from tests.pipeline import project as pipeline
from tests.stack.prefect_stack import ENDED, Stack, descendants, kill, kill_group

CANDIDATE = "mobilenet_v2"
LOOK = 0.3  # seconds between two looks for what must not be
AGAIN = (1.0, 8.0)  # seconds until what was killed is started again, as an init system would
PATIENCE = 15.0  # seconds to wait for a flow or a stage that can be killed
SETTLE = 900.0  # seconds for all runs to end once nothing is killed any more
# In the place of `python` in dvc.yaml: notes which data a stage began and ended with.
SHIM = """#!/bin/sh
note() {{ echo "$(date +%s.%N) $1 $(cat data/manifest.parquet | md5sum | cut -c1-8) $2" >> {log}; }}
note began "$*"
{python} "$@" && note ended "$*"
"""
GATE = {  # every challenger passes
    "    if broken or worse:": "    if False:",
    "    if low > limits.min_gain and chance <= MAX_P:": "    if True:",
}


@dataclass
class Seen:
    """What was done, and what must not be.

    Attributes:
        done: triggers, arrivals and kills, by kind.
        kills: time.time() of each.
        versions: of the champion, each time it was asked for.
        lost: how often there was none, after there had been one.
        at_once: process lists in which two stages worked in one workspace.
        runs: the accepted triggers' flow runs.
    """

    done: Counter[str] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    lost: int = 0
    at_once: list[list[str]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


class Chaos:
    """A stack that is triggered and hurt at random.

    Args:
        folder: for everything.
        seed: of all that is random.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.seen = Seen()
        self._log = folder / "stages.log"
        project = pipeline.make_project(folder / "project", each=40)
        self.project = project
        self._shape(folder)
        self._more = self._other_pictures()
        self.tracker = f"http://127.0.0.1:{free_port()}"
        self.stack = Stack(
            project,
            free_port(),
            settings={
                "MLFLOW_TRACKING_URI": self.tracker,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
                "OMP_NUM_THREADS": "1",
            },
        )
        self._over = threading.Event()

    def _shape(self, folder: Path) -> None:
        project = self.project

        def one_candidate(params: dict[str, Any]) -> None:
            params["candidates"] = {CANDIDATE: params["candidates"][CANDIDATE]}

        project.change_params(one_candidate)
        shutil.copy(pipeline.ROOT / "prefect.yaml", project.root)
        gate = project.path("tasks/gatekeeper.py")
        text = gate.read_text()
        for shipped, here in GATE.items():
            assert shipped in text
            text = text.replace(shipped, here)
        gate.write_text(text)
        shim = folder / "noting.sh"
        shim.write_text(SHIM.format(log=self._log, python=sys.executable))
        shim.chmod(0o755)
        stages = project.path("dvc.yaml")
        stages.write_text(stages.read_text().replace("cmd: python -m ", f"cmd: {shim} -m "))
        project.ok("git", "add", "-A")
        project.ok("git", "commit", "-q", "-m", "one candidate")

    def _other_pictures(self) -> list[tuple[str, Path]]:
        there = {path.name for path in self.project.path("data/raw").rglob("*.png")}
        found = [
            (label, path)
            for label, paths in demo_data.cells().items()
            for path in paths
            if path.name not in there
        ]
        self.random.shuffle(found)
        return found

    # What happens

    def start_tracker(self) -> None:
        """Start MLflow's server, as often as it was killed."""
        root = self.project.root.parent
        port = self.tracker.rpartition(":")[2]
        self.stack.start(
            "mlflow",
            *("mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"),
            f"--backend-store-uri=sqlite:///{root}/mlflow-server.db",
            *("--serve-artifacts", f"--artifacts-destination={root}/artifacts"),
        )

    def arrive(self) -> None:
        """Put two new pictures into data/raw, each at once."""
        for _ in range(2):
            label, path = self._more.pop()
            target = self.project.path(f"data/raw/{label}/{path.name}")
            small = self.project.root.parent / path.name
            Image.open(path).resize((pipeline.SIDE, pipeline.SIDE)).save(small)
            small.rename(target)
        self.seen.done["arrivals"] += 1

    def trigger(self) -> None:
        """Ask for a run; where the server is away, until it is back."""
        deployment = self.random.choices(["nightly", "on-new-data"], [1, 4])[0]
        self.seen.runs.append(self._until_answered(lambda: self.stack.trigger(deployment)))
        self.seen.done[f"triggers of {deployment}"] += 1

    def _until_answered(self, ask: Callable[[], Any]) -> Any:
        def answer() -> Any:
            with contextlib.suppress(AssertionError):
                return ask()

        return wait_for(answer, 120, "an answer of Prefect's server")

    def hurt(self, kind: str) -> None:
        """Kill a worker, a flow, a stage or a server with SIGKILL; servers come back."""
        if kind in ("flow", "stage"):
            end = time.monotonic() + PATIENCE
            while not (found := self._processes(kind)):
                if time.monotonic() > end:
                    self.seen.done[f"no {kind} to kill"] += 1
                    return
                time.sleep(LOOK)
            with contextlib.suppress(psutil.Error):
                self.random.choice(found).kill()
        elif kind == "worker":
            kill(self.stack.processes[kind])
        else:
            kill_group(self.stack.processes[kind])
        self.seen.kills.append(time.time())
        self.seen.done[f"kills of {kind}"] += 1
        if kind in ("flow", "stage"):
            return
        start = {
            "worker": self.stack.start_worker,
            "server": self.stack.begin_server,
            "mlflow": self.start_tracker,
        }[kind]
        time.sleep(self.random.uniform(*AGAIN))
        start()

    def _processes(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind: of a stage or step (`tasks.…`), or the flow's own."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                module = words[2] if words[1:2] == ["-m"] else ""
                here = process.cwd() == str(self.project.root)
                wanted = module.startswith("tasks.") if kind == "stage" else "prefect" in module
                mine = kind == "stage" or "PREFECT__FLOW_RUN_ID" in process.environ()
                if here and wanted and mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    # What is watched meanwhile

    def _watch(self) -> None:
        """Note two stages at once, and every champion that is seen."""
        asked = 0.0
        while not self._over.wait(LOOK):
            stages = []
            for process in self._processes("stage"):
                with contextlib.suppress(psutil.Error):
                    program = process.cmdline()[2:]  # nothing, if it ended meanwhile
                    if program and program[0] != "tasks.follower":
                        stages.append(f"{process.pid} {' '.join(program)}")
            if len(stages) > 1:
                self.seen.at_once.append(stages)
            if time.monotonic() - asked > 2:
                asked = time.monotonic()
                self._look_at_champion()

    def _look_at_champion(self) -> None:
        address = f"{self.tracker}/api/2.0/mlflow/registered-models/alias"
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(address, params={"name": "refit", "alias": "champion"}, timeout=10)
            if answer.status_code == 200:
                self.seen.versions.append(int(answer.json()["model_version"]["version"]))
            elif answer.status_code == 404 and self.seen.versions:
                self.seen.lost += 1

    # From beginning to end

    def run(self, triggers: int, arrivals: int, kills: int, seconds: float) -> dict[str, Any]:
        """Make the first champion in peace, then all that at random moments; return the counts."""
        started = time.monotonic()
        try:
            self.stack.start_server()
            self.start_tracker()
            wait_for(lambda: httpx.get(f"{self.tracker}/health").is_success, 120, "MLflow's start")
            self.stack.deploy()
            self._see_lost_runs_sooner()
            self.stack.start_worker()
            first = self.stack.wait(self.stack.trigger("nightly"), seconds=300)
            assert first["state_type"] == "COMPLETED", first["state"]["message"]
            watch = threading.Thread(target=self._watch)
            watch.start()
            try:
                self._happen(triggers, arrivals, kills, seconds)
                counts = self._settled(time.monotonic() - started)
                assert watch.is_alive(), "from some moment on nobody watched"
                return counts
            finally:
                self._over.set()
                watch.join()
        finally:
            self.stack.end()

    def _see_lost_runs_sooner(self) -> None:
        """Let an hour three times as fast see runs that never start three times as soon."""
        make = "from flows import automations; automations.UNSTARTED /= 3; automations.make()"
        self.project.ok(sys.executable, "-c", make, **self.stack.environment())

    def _happen(self, triggers: int, arrivals: int, kills: int, seconds: float) -> None:
        kinds = ["worker", "stage", "server", "mlflow", "flow"]
        plan: list[tuple[float, Callable[[], object]]] = []
        plan += [(self.random.uniform(0, seconds), self.trigger) for _ in range(triggers)]
        plan += [(self.random.uniform(0, seconds), self.arrive) for _ in range(arrivals)]
        for number in range(kills):
            kind = kinds[number % len(kinds)]
            plan += [(self.random.uniform(0, seconds), partial(self.hurt, kind))]
        begun = time.monotonic()
        for at, act in sorted(plan, key=lambda item: item[0]):
            time.sleep(max(0.0, begun + at - time.monotonic()))
            act()

    def _settled(self, seconds: float) -> dict[str, Any]:
        """Wait for every run's end, and for one more that completes; then count."""

        def open_runs() -> list[str]:
            runs = [self.stack.run(run) for run in self.seen.runs]
            return [run["id"] for run in runs if run["state_type"] not in ENDED]

        self._until_answered(lambda: self.stack.run(self.seen.runs[0]))
        wait_for(lambda: not open_runs(), SETTLE, "the end of every run: a slot is stuck")
        last = self.stack.wait(self.stack.trigger("nightly"), seconds=300)
        assert last["state_type"] == "COMPLETED", self.stack.logs(last["id"])
        wait_for(lambda: not descendants(self.project), 30, "the end of every run's processes")
        states = Counter(self.stack.run(run)["state_name"] for run in self.seen.runs)
        ended = self._ended()
        again = self._trained_again(ended)
        self._look_at_champion()
        return {
            "seconds": round(seconds),
            **dict(sorted(self.seen.done.items())),
            "runs by state": dict(states),
            "versions of the data": len(ended["train_head"]),
            "trainings": sum(len(times) for times in ended["train_head"].values()),
            "trained again": len(again),
            "trained again without a kill between": sum(not killed for killed in again),
            "two stages at once": len(self.seen.at_once),
            "champions seen": len(set(self.seen.versions)),
            "champion lost": self.seen.lost,
            "champion went back": sum(a > b for a, b in pairwise(self.seen.versions)),
            "champion whole": self._champion_is_whole(),
            "registered twice": self._registered_twice(),
        }

    def _ended(self) -> dict[str, dict[str, list[float]]]:
        """Return training stage -> data -> when it ended a training of it."""
        found: dict[str, dict[str, list[float]]] = {"train_head": {}, "fine_tune": {}}
        for line in self._log.read_text().splitlines():
            at, what, data, _, module, *_ = line.split()
            stage = module.removeprefix("tasks.")
            if what == "ended" and stage in found:
                found[stage].setdefault(data, []).append(float(at))
        return found

    def _trained_again(self, ended: dict[str, dict[str, list[float]]]) -> list[bool]:
        """Return of each training of the same data whether something was killed in between.

        A flow that is killed after its stage has ended and before DVC has recorded it is made
        again: nobody knew of it.
        """
        return [
            any(before - 1 <= kill <= after for kill in self.seen.kills)
            for of_stage in ended.values()
            for times in of_stage.values()
            for before, after in pairwise(sorted(times))
        ]

    def _ask(self, program: str) -> Any:
        said = self.project.ok(sys.executable, "-c", program, MLFLOW_TRACKING_URI=self.tracker)
        return json.loads([line for line in said.splitlines() if line.startswith("[")][-1])

    def _champion_is_whole(self) -> bool:
        """Whether the champion's file comes back as it was registered."""
        told, found = self._ask(
            "import json, hashlib; from tasks import tracking; from mlflow import MlflowClient\n"
            "file = tracking.fetch('models:/refit@champion')\n"
            "told = MlflowClient().get_model_version_by_alias('refit', 'champion').tags\n"
            "got = hashlib.sha256(file.read_bytes()).hexdigest()\n"
            "print(json.dumps([told['onnx_sha256'], got]))"
        )
        return bool(told == found)

    def _registered_twice(self) -> int:
        """Return how many versions hold a file that an earlier one holds."""
        hashes = self._ask(
            "import json; from mlflow import MlflowClient\n"
            "versions = MlflowClient().search_model_versions(\"name='refit'\")\n"
            "print(json.dumps([version.tags['onnx_sha256'] for version in versions]))"
        )
        return len(hashes) - len(set(hashes))


def sound(counts: dict[str, Any]) -> bool:
    """Whether nothing happened that must not."""
    never = (
        "trained again without a kill between",
        "two stages at once",
        "champion lost",
        "champion went back",
        "registered twice",
    )
    return counts["champion whole"] and not any(counts[name] for name in never)


def main() -> None:
    """Run it and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--triggers", type=int, default=100)
    parser.add_argument("--arrivals", type=int, default=12, help="of new pictures")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refit-chaos-") as folder:
        chaos = Chaos(Path(folder), asked.seed)
        counts = chaos.run(asked.triggers, asked.arrivals, asked.kills, 60 * asked.minutes)
        print(json.dumps(counts, indent=2))
        if not sound(counts):
            sys.exit(f"two stages at once: {chaos.seen.at_once[:3]}")


if __name__ == "__main__":
    main()
