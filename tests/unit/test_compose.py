"""docker/ says one thing: compose.yaml, the Dockerfile, the locks; no secret, nothing published."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema.validators
import pytest

from tests.docker import compose
from tests.docker.buildah import INDEX, moved

DOCKER = compose.FILE.parent
ROOT = DOCKER.parent
SCHEMA = ROOT / "tests/docker/schema/compose-spec.json"  # compose-spec/compose-spec, Apache-2.0
SERVICES = compose.read()["services"]
ENV_EXAMPLE = (DOCKER / ".env.example").read_text()
# NAME=value or, for what may be left as it is, # NAME=value
LISTED = dict(re.findall(r"^(?:# )?([A-Z_0-9]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE))
DOCKERFILE = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
STAGES = {
    stage.split()[-1].lower(): dict(re.findall(r"^([A-Z]+) (.+)$", rest, re.MULTILINE))
    for stage, rest in re.findall(
        r"^FROM (.+)\n((?:(?!FROM ).*\n?)*)", DOCKERFILE, flags=re.MULTILINE
    )
}
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING")


def complaints(file: Any) -> list[str]:
    schema = json.loads(SCHEMA.read_text())
    found = jsonschema.validators.validator_for(schema)(schema).iter_errors(file)
    return [error.json_path for error in found]


def test_compose_yaml_keeps_to_the_published_schema() -> None:
    assert complaints(compose.read()) == []
    broken = compose.read()
    broken["services"]["worker"]["depend_on"] = {}
    broken["services"]["mlflow"]["healthcheck"]["retries"] = [3]
    wrong = {"$.services.worker", "$.services.mlflow.healthcheck.retries"}
    assert wrong <= set(complaints(broken))


def test_it_has_every_service() -> None:
    assert set(SERVICES) == {"postgres", "s3", "mlflow", "prefect", "worker", "serving"}


def test_nothing_is_published_beyond_loopback_unless_asked_for() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    for port in ports:
        assert compose.filled(port, {}).startswith("127.0.0.1:")
        assert compose.filled(port, {"REFIT_BIND": "10.1.2.3"}).startswith("10.1.2.3:")
    for service in SERVICES.values():
        assert "network_mode" not in service
        assert not service.get("privileged")


@pytest.mark.parametrize("name", SERVICES)
def test_every_secret_comes_from_outside_and_must_be_given(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    for key, value in environment.items():
        if SECRET.search(key):
            assert re.fullmatch(r"(refit:)?\$\{[A-Z_0-9]+:\?[^}]+\}", value), key
    words = json.dumps({**SERVICES[name], "environment": {}})
    assert not SECRET.search(words)
    required = set(re.findall(r"\$\{([A-Z_0-9]+):\?", json.dumps(environment)))
    assert {LISTED[n] for n in required} <= {""}
    if required:
        with pytest.raises(KeyError, match=r"see docker/\.env\.example"):
            compose.environment(name, dict.fromkeys(required, ""))
    given = compose.environment(name, {n: f"<{n}>" for n in required})
    assert "${" not in "".join(given.values())


def test_every_variable_is_listed_and_the_filled_list_stays_out_of_git() -> None:
    assert {found["name"] for found in compose.VARIABLE.finditer(compose.FILE.read_text())} - {
        "REFIT_BIND"
    } == set(LISTED)
    assert ".env" in (DOCKER / ".gitignore").read_text().split()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_says_whether_it_is_well_and_waits_for_those_that_are_not(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    waits = SERVICES[name].get("depends_on", {})
    assert {c["condition"] for c in waits.values()} <= {"service_healthy"}
    hosts = set(re.findall(r"\b(postgres|s3|mlflow|prefect)\b:?", needs(name)))
    assert hosts - {name} <= reachable(waits)


def needs(name: str) -> str:
    """Return what a service is told of the others: values that are addresses."""
    values = SERVICES[name].get("environment", {})
    return " ".join(v for k, v in values.items() if "://" in v or k == "PGHOST")


def reachable(waits: dict[str, Any]) -> set[str]:
    """Return those that a service waits for, directly or through another, and their schemes."""
    found = set(waits)
    for name in waits:
        found |= reachable(SERVICES[name].get("depends_on", {}))
    return found


def test_whom_a_service_talks_to_is_on_a_network_with_it() -> None:
    for name, service in SERVICES.items():
        for other in service.get("depends_on", {}):
            assert set(service["networks"]) & set(SERVICES[other]["networks"]), (name, other)
    internal = {n for n, about in compose.read()["networks"].items() if about.get("internal")}
    assert set(SERVICES["postgres"]["networks"] + SERVICES["s3"]["networks"]) <= internal


def test_other_peoples_images_are_pinned_by_digest() -> None:
    for service in SERVICES.values():
        if "build" not in service:
            assert re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", service["image"])
    assert re.search(r"^ARG BASE=\S+:\S+\nARG BASE_DIGEST=@sha256:[0-9a-f]{64}$", DOCKERFILE, re.M)
    bases = re.findall(r"^FROM (\S+) AS (\S+)", DOCKERFILE, re.MULTILINE)
    assert [base for base, _ in bases if base not in STAGES] == ["${BASE}${BASE_DIGEST}"]


@pytest.mark.parametrize(("target", "service"), [("worker", "worker"), ("serve", "serving")])
def test_an_image_by_itself_does_what_compose_starts(target: str, service: str) -> None:
    stage = STAGES[target]
    assert stage["USER"] == "refit"
    assert SERVICES[service]["build"]["target"] == target
    assert json.loads(stage["CMD"]) == compose.command(service)
    told = stage["HEALTHCHECK"].partition(" CMD ")[2]
    assert ["CMD", *json.loads(told)] == SERVICES[service]["healthcheck"]["test"]


def test_a_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    first, *rest = [line for line in lines if not line.startswith("#")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert first == "*"
    assert {line.removeprefix("!") for line in rest} == set(" ".join(copied).split())
    assert all((ROOT / line.removeprefix("!")).is_file() for line in rest)


def test_both_runtimes_are_of_one_version() -> None:
    gpu = re.search(r"^onnxruntime-gpu==([^ ;]+)", (ROOT / "requirements.lock").read_text(), re.M)
    cpu = re.match(r"onnxruntime==(\S+)", (DOCKER / "onnxruntime.lock").read_text())
    assert gpu
    assert cpu
    assert gpu[1] == cpu[1], "`make lock` writes both"


def test_an_index_is_a_secret_of_the_build_and_not_an_argument() -> None:
    names = re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)
    assert not [name for name in names if INDEX.fullmatch(name)]
    installing = re.findall(r"^RUN .*install\.sh.*$", DOCKERFILE, re.MULTILINE)
    assert len(installing) == 3
    assert all("type=secret,id=index" in step for step in installing)
    written = "".join(path.read_text() for path in DOCKER.iterdir() if path.is_file())
    assert set(re.findall(r"https?://([\w-]+\.[\w.-]+)", written)) == {"127.0.0.1"}


def test_commands_are_moved_to_loopback_and_changed_only_where_they_have_the_option() -> None:
    serve = moved(compose.command("serving"), 4711)
    assert serve[-2:] == ["--host=127.0.0.1", "--port=4711"]
    assert (
        moved(SERVICES["serving"]["healthcheck"]["test"], 4711)[-1] == "http://127.0.0.1:4711/ping"
    )
    one = compose.changed(compose.command("mlflow"), workers=1)
    assert "--workers=1" in one
    with pytest.raises(AssertionError, match="--worker="):
        compose.changed(one, worker=2)


@pytest.mark.parametrize("absent", ["buildah", "debootstrap"])
def test_without_its_tools_test_docker_says_so_in_one_line(absent: str, tmp_path: Path) -> None:
    for program in ("bash", "sh", "env", "id", "buildah", "debootstrap"):
        if program != absent:
            (tmp_path / program).symlink_to(shutil.which(program) or shutil.which("true") or "")
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    bare = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(
        [str(shutil.which("make")), "test-docker"],
        env={**bare, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = [x for x in done.stderr.splitlines() if not x.startswith("make: ***")]
    assert done.returncode != 0
    assert re.search(rf"no {absent} .*apt install {absent}", line)
