"""The shipped schedules as Prefect computes them, and what both deployments promise."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import psutil
import pytest
from prefect.server.schemas.schedules import CronSchedule

from flows import deployments, retrain, serve, services, workspace

SHIPPED = {found["name"]: found for found in deployments.shipped()["deployments"]}
# The days on which clocks change there, and a year that has both.
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Sydney", "Asia/Kolkata", "UTC"]


def nights(zone: str, start: datetime, count: int) -> list[datetime]:
    """Return the next nightly runs, as the server of Prefect plans them."""
    (entry,) = SHIPPED["nightly"]["schedules"]
    schedule = CronSchedule(cron=entry["cron"], timezone=zone)
    return [
        datetime.fromisoformat(str(date)).astimezone(UTC)
        for date in asyncio.run(schedule.get_dates(n=count, start=start))
    ]


def test_the_time_zone_is_named() -> None:
    (entry,) = SHIPPED["nightly"]["schedules"]
    assert ZoneInfo(entry["timezone"]).key == "Europe/Berlin"
    assert serve.schedule(entry).timezone == "Europe/Berlin"


@pytest.mark.parametrize("zone", ZONES)
def test_every_night_of_a_year_has_one_run_at_the_same_hour(zone: str) -> None:
    start = datetime(2027, 1, 1, 12, tzinfo=UTC)
    local = [date.astimezone(ZoneInfo(zone)) for date in nights(zone, start, 365)]
    assert len({date.date() for date in local}) == 365
    assert {(date.hour, date.minute) for date in local} == {(3, 30)}
    days = [after.date() - before.date() for before, after in pairwise(local)]
    assert set(days) == {timedelta(days=1)}


def test_summer_time_makes_one_night_shorter_and_one_longer() -> None:
    planned = nights("Europe/Berlin", datetime(2027, 1, 1, tzinfo=UTC), 365)
    apart = {
        after.date().isoformat(): (after - before) // timedelta(hours=1)
        for before, after in pairwise(planned)
    }
    odd = {day: hours for day, hours in apart.items() if hours != 24}
    assert odd == {"2027-03-28": 23, "2027-10-31": 25}


@pytest.mark.parametrize("jump", [timedelta(hours=-5), timedelta(minutes=-1), timedelta(hours=7)])
def test_a_clock_that_is_set_plans_the_same_nights(jump: timedelta) -> None:
    """Prefect knows a planned run by its time, so equal times are one run, not two."""
    now = datetime(2027, 3, 27, 22, tzinfo=UTC)
    before, after = (set(nights("Europe/Berlin", at, 5)) for at in (now, now + jump))
    both = {date for date in before | after if date > max(now, now + jump)}
    latest = min(max(before), max(after))
    assert {d for d in both if d <= latest} <= before & after


def test_both_deployments_are_whole() -> None:
    parameters = inspect.signature(retrain.retrain.fn).parameters
    for found in SHIPPED.values():
        assert found["concurrency_limit"]["limit"] == 1
        assert found["parameters"].keys() == parameters.keys()
        assert found["tags"]
        assert found["description"]
        path, name = found["entrypoint"].split(":")
        assert (Path(path).resolve(), name) == (Path(str(retrain.__file__)).resolve(), "retrain")
    assert SHIPPED["on-new-data"]["parameters"]["if_busy"] == "skip"
    assert SHIPPED["nightly"]["parameters"]["if_busy"] == "wait"


def test_here_nothing_is_cloned_pulled_or_pushed() -> None:
    for found in deployments.here()["deployments"]:
        (step,) = found["pull"]
        assert step == {deployments.SET_FOLDER: {"directory": str(Path.cwd())}}
        assert not found["parameters"]["pull"]
        assert not found["parameters"]["push"]
    served = [serve.deployment(found) for found in deployments.here()["deployments"]]
    assert [made.name for made in served] == ["nightly", "on-new-data"]
    assert [made.concurrency_limit for made in served] == [1, 1]
    assert {made.entrypoint for made in served} == {"flows.retrain.retrain"}


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *command],  # noqa: S607
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    return folder


def commit(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "change")


def pull(remote: Path, workspace: Path) -> str:
    """Run the shipped shell step as Prefect does; return the folder that it names."""
    step = SHIPPED["nightly"]["pull"][0]["prefect.deployments.steps.run_shell_script"]
    (script,) = step["script"].splitlines()  # Prefect runs each line by itself
    done = subprocess.run(  # noqa: S602 - as the step says
        script,
        shell=True,
        env={**os.environ, "REFIT_REPOSITORY": str(remote), "REFIT_WORKSPACE": str(workspace)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_pull_steps_clone_and_follow_a_git_remote(tmp_path: Path, remote: Path) -> None:
    work = tmp_path / "a folder" / "work"
    commit(remote, code_py="1", dvc_lock="of the start")
    assert pull(remote, work) == str(work)
    (work / "dvc.lock").write_text("of last night's run here")
    (work / "data").mkdir()
    (work / "data/model").write_text("made here")
    commit(remote, code_py="2")
    pull(remote, work)
    assert (work / "code.py").read_text() == "2"
    assert (work / "dvc.lock").read_text() == "of last night's run here"
    assert (work / "data/model").read_text() == "made here"
    commit(remote, code_py="3", dvc_lock="new there")
    pull(remote, work)
    assert (work / "dvc.lock").read_text() == "new there"
    assert (work / "data/model").read_text() == "made here"


def test_the_pull_steps_change_nothing_under_a_run(
    tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(remote, code_py="1")
    pull(remote, tmp_path / "work")
    commit(remote, code_py="2")
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "work/params.yaml").touch()
    with workspace.claimed():
        pull(remote, tmp_path / "work")
        assert Path("code.py").read_text() == "1"
    pull(remote, tmp_path / "work")
    assert Path("code.py").read_text() == "2"


def test_down_ends_its_own_process_and_never_one_of_the_same_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert services.start("server", ["python", "-c", "import time; time.sleep(60)"])
    assert not services.start("server", ["python", "-c", "import time; time.sleep(60)"])
    ours = services.running("server")
    assert ours is not None
    record = services.FOLDER / "server.json"
    known = record.read_text()
    record.write_text(known.replace(str(ours.create_time()), str(ours.create_time() - 1)))
    assert not services.stop("server")  # the number is another process's now
    assert ours.is_running()
    record.write_text(known)
    assert services.stop("server")
    assert not ours.is_running() or ours.status() == psutil.STATUS_ZOMBIE
    assert not services.stop("server")


def test_without_a_server_there_is_one_line(tmp_path: Path) -> None:
    for program in ("flows.serve", "flows.deployments"):
        done = subprocess.run(
            [sys.executable, "-m", program],
            env={"PATH": "/usr/bin:/bin", "PREFECT_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "PREFECT_API_URL is not set" in line
