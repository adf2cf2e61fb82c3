"""Bad nights with the real server, worker and serve process on loopback.

One stack for all of them, in this order: the last ones leave nothing of it. Stated times: nothing
of a run is left 30 s after its end; a run whose worker died is Crashed within 30 s, one whose
whole machine fell silent within three heartbeats (90 s) and the server's look at it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from flows.automations import UNSTARTED
from tests.loopback import wait_for
from tests.stack.prefect_stack import (
    Stack,
    descendants,
    kill,
    kill_group,
    set_work,
    stack,
    trained,
)

SECRET = "a-secret-that-no-log-may-hold"  # noqa: S105 - it is made up
SILENT = 90 + 60  # seconds: three heartbeats, and the server's own pace on a busy machine


class Receiver:
    """A webhook's other end."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        texts = self.texts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                texts.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self, *words: str) -> bool:
        """Whether one message holds all these words."""
        return any(all(word in text for word in words) for text in self.texts)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack(tmp_path_factory.mktemp("nights")) as made:
        made.start_worker()
        yield made


def automations(up: Stack) -> dict[str, str]:
    """Return name -> id."""
    return {found["name"]: found["id"] for found in up.post("automations/filter")}


def make_automations(up: Stack, unstarted: float = UNSTARTED, **environment: str) -> None:
    make = f"from flows import automations; automations.UNSTARTED = {unstarted}; automations.make()"
    subprocess.run(
        [sys.executable, "-c", make],
        cwd=up.project.root,
        env=up.environment(**environment),
        check=True,
    )


@pytest.fixture(scope="module")
def fell_silent(up: Stack) -> str:
    """A run of `on-new-data` whose processes all die at once, worker included."""
    flow_run = up.work("on-new-data")
    up.wait(flow_run, {"RUNNING"})
    worker = psutil.Process(up.processes["worker"].pid)
    family = [worker, *worker.children(recursive=True)]
    for process in family:
        process.suspend()  # so that none can tell of another's death
    for process in family:
        process.kill()
    up.processes["worker"].wait()
    up.start_worker()
    return flow_run


def test_a_run_shows_what_it_did_and_why(up: Stack, receiver: Receiver) -> None:
    # Telling people is off by default.
    silent = automations(up)
    assert silent.keys() == {"refit: dead runs", "refit: runs that never started"}
    make_automations(up, REFIT_WEBHOOK=receiver.url)
    telling = automations(up)
    assert len(telling) == 6
    make_automations(up, REFIT_WEBHOOK=receiver.url)
    assert automations(up) == telling
    assert silent.items() <= telling.items()  # what they have counted is not lost
    first = up.wait(up.trigger("nightly"))
    assert first["state_type"] == "COMPLETED", up.logs(first["id"])
    assert first["name"] == "first new data"
    assert set(first["tags"]) >= {"refit"}
    states = up.task_states(first["id"])
    assert states.keys() == {"version_data", "slow@one", "export", "register", "report"}
    assert "slow works" in up.logs(first["id"])
    shown = up.artifacts(first["id"])
    assert {made["type"] for made in shown.values()} == {"progress", "table", "markdown"}
    assert shown["progress"]["data"] == 100
    for fact in ("# PROMOTE: refit version 1", "http://127.0.0.1:1/#/runs/42", "report.html"):
        assert fact in shown["verdict"]["data"]
    wait_for(lambda: receiver.told("PROMOTE: refit version 1"), 30, "the news of a promotion")


def test_nothing_changed_is_cached(up: Stack, receiver: Receiver) -> None:
    before = len(receiver.texts)
    again = up.wait(up.trigger("nightly"))
    assert again["name"] == "first nothing changed"
    assert up.task_states(again["id"]) == dict.fromkeys(
        ("slow@one", "export", "register"), "Cached"
    )
    assert trained(up.project) == 1
    assert len(receiver.texts) == before


def test_a_refusal_and_a_failure_are_told(up: Stack, receiver: Receiver) -> None:
    up.wait(up.trigger("nightly"))  # so that the data are known
    set_work(up.project, 0, verdict="REJECT")
    refused = up.wait(up.trigger("nightly"))
    assert refused["state_type"] == "COMPLETED"
    assert refused["name"] == "first stale slow@one"
    failed = up.wait(up.trigger("nightly", overrides={"head.epoch": 1}))
    assert failed["state_type"] == "FAILED"
    wait_for(lambda: receiver.told("REJECT: refit"), 30, "the news of a refusal")
    wait_for(lambda: receiver.told("Failed", "head.epoch"), 30, "the news of a failure")


def test_a_run_with_its_own_figures_leaves_params_alone(up: Stack) -> None:
    params = up.project.path("params.yaml").read_bytes()
    before = trained(up.project)
    done = up.wait(up.trigger("nightly", overrides={"head.epochs": 3}))
    assert done["state_type"] == "COMPLETED"
    assert trained(up.project) == before + 1
    assert up.project.path("params.yaml").read_bytes() == params
    back = up.wait(up.trigger("nightly"))
    assert (back["state_type"], trained(up.project)) == ("COMPLETED", before + 1)  # from the cache


def test_a_remote_that_is_away_for_a_moment(up: Stack) -> None:
    mount = up.project.root.parent / "mount"
    mount.touch()  # no folder: nothing is mounted there
    up.project.ok("dvc", "remote", "add", "--default", "store", str(mount / "remote"))
    run = up.trigger("nightly", push=True)
    wait_for(lambda: up.task_states(run).get("push") == "AwaitingRetry", 90, "a push that failed")
    mount.unlink()
    done = up.wait(run)
    assert done["state_type"] == "COMPLETED", done["state"]
    assert "Traceback" not in up.logs(run)
    up.project.ok("dvc", "status", "-c", "--quiet")  # fails where the remote lacks anything
    up.project.ok("dvc", "remote", "remove", "store")


def test_cancelled_under_a_worker(up: Stack, fell_silent: str) -> None:
    flow_run = up.work()
    up.cancel(flow_run)
    up.nothing_left()
    assert up.wait(flow_run)["state_type"] == "CANCELLED"
    up.next_run_completes()


def test_the_worker_killed(up: Stack) -> None:
    flow_run = up.work()
    kill(up.processes["worker"])
    up.nothing_left()
    assert up.wait(flow_run, seconds=30)["state_type"] == "CRASHED"
    up.start_worker()
    up.next_run_completes()


def test_the_worker_killed_before_it_started_the_run(up: Stack, receiver: Receiver) -> None:
    """The run stays submitted and holds the slot, as if its worker had died that moment."""
    make_automations(up, unstarted=20.0, REFIT_WEBHOOK=receiver.url)
    found = up.get("deployments/name/retrain/nightly")
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()  # so that no worker takes it
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": later}}
    made = up.post(f"deployments/{found['id']}/create_flow_run", state=state)
    up.post(f"flow_runs/{made['id']}/set_state", state={"type": "PENDING"})
    assert up.run(made["id"])["state_name"] == "Pending"
    queued = up.trigger("nightly")
    wait_for(lambda: up.run(queued)["state_name"] == "AwaitingConcurrencySlot", 30, "a taken slot")
    lost = up.wait(made["id"])
    assert lost["state_type"] == "CRASHED"
    assert "not started 20 s after its submission" in lost["state"]["message"]
    assert up.wait(queued)["state_type"] == "COMPLETED"
    make_automations(up, REFIT_WEBHOOK=receiver.url)


def test_a_run_that_fell_silent(up: Stack, fell_silent: str, receiver: Receiver) -> None:
    """All of its processes were killed at once, before the nights above."""
    assert up.wait(fell_silent, seconds=SILENT)["state_type"] == "CRASHED"
    assert "no heartbeat for 90 s" in up.run(fell_silent)["state"]["message"]
    wait_for(lambda: receiver.told("Crashed", "no heartbeat"), 30, "the news of a crash")
    # Those that ended, however quickly, send no heartbeats either and stay as they ended.
    crashed = up.post("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["CRASHED"]}}})
    silent = [run["id"] for run in crashed if "no heartbeat" in run["state"]["message"]]
    assert silent == [fell_silent]


def test_two_triggers_at_once(up: Stack) -> None:
    before = trained(up.project)
    works = up.work("nightly")
    queued = up.trigger("nightly")
    elsewhere = up.wait(up.trigger("on-new-data"))
    assert elsewhere["state_type"] == "CANCELLED", elsewhere["state"]
    wait_for(
        lambda: up.run(queued)["state_name"] == "AwaitingConcurrencySlot", 30, "the second's turn"
    )
    by_hand = up.project.retrain(PREFECT_API_URL=up.api)
    assert by_hand.returncode == 1
    owner = next(p for p in descendants(up.project) if "guard.py" in " ".join(p.cmdline())).parent()
    assert owner is not None
    for said in (by_hand.stderr, elsewhere["state"]["message"]):
        assert f"a retrain on {os.uname().nodename}, pid {owner.pid}, since 20" in said
    assert "Traceback" not in by_hand.stderr
    up.project.path("enough").touch()
    assert up.wait(works)["state_type"] == "COMPLETED"
    assert up.wait(queued)["state_type"] == "COMPLETED"
    assert trained(up.project) == before + 1
    left = up.post("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}})
    assert [run["id"] for run in left if not run["auto_scheduled"]] == []


def test_new_runs_do_not_pile_up_behind_one_that_works(up: Stack) -> None:
    before = trained(up.project)
    works = up.work("on-new-data")
    more = [up.trigger("on-new-data") for _ in range(3)]
    assert {up.wait(run)["state_type"] for run in more} == {"CANCELLED"}
    assert "concurrency limit" in up.run(more[0])["state"]["message"]
    up.project.path("enough").touch()
    assert up.wait(works)["state_type"] == "COMPLETED"
    assert trained(up.project) == before + 1


def test_the_server_away_midway(up: Stack) -> None:
    """The stage finishes, and the next run takes its result."""
    before = trained(up.project)
    up.work()
    kill_group(up.processes["server"])
    up.project.path("enough").touch()
    wait_for(lambda: trained(up.project) == before + 1, 30, "the stage's end without a server")
    up.start_server()
    done = up.wait(up.trigger("nightly"), seconds=150)
    assert done["state_type"] == "COMPLETED", done["state"]
    assert trained(up.project) == before + 1


def test_cancelled_under_serve(up: Stack) -> None:
    kill_group(up.processes["worker"])
    up.start("serve", "python", "-m", "flows.serve")
    wait_for(lambda: "nightly" in up.tail("serve"), 90, "serve's start")
    up.pause()
    flow_run = up.work()
    up.cancel(flow_run)
    up.nothing_left()
    assert up.wait(flow_run)["state_type"] == "CANCELLED"
    up.next_run_completes()


def test_everything_told_to_end(up: Stack) -> None:
    """The server hears it together with the rest, so that nobody can report anything."""
    up.work()
    everything = descendants(up.project)
    for process in up.processes.values():
        with contextlib.suppress(psutil.Error):
            everything += [psutil.Process(process.pid)]
            everything += psutil.Process(process.pid).children(recursive=True)
    for process in up.processes.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    up.nothing_left()
    # Prefect's own processes ask a server that is gone for a minute before they give up.
    _, alive = psutil.wait_procs(set(everything), 120)
    assert alive == []


def test_the_server_s_database_was_never_locked(up: Stack) -> None:
    """It is SQLite, written by all of the above at once."""
    said = up.log_file("server").read_text()
    assert "Check out the dashboard" in said
    assert "locked" not in said


def test_no_log_holds_the_webhook_s_address(up: Stack) -> None:
    said = "".join(path.read_text() for path in Path(up.project.root.parent).glob("*.log"))
    assert "retrain" in said
    assert SECRET not in said
