"""docker/compose.yaml as tests use it: its services' commands and environments, natively too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).resolve().parents[2] / "docker/compose.yaml"
# ${NAME}, or with what stands for a value that is not set (-, :-) or an error (:?) behind the name
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<rule>:?[-?])(?P<word>[^}]*))?\}")


def read() -> dict[str, Any]:
    """Return the file, variables as they stand."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its variables replaced as compose does.

    Raises:
        KeyError: a variable that has to have a value has none.
    """

    def value(found: re.Match[str]) -> str:
        name, rule, word = found["name"], found["rule"] or "-", found["word"] or ""
        given = values.get(name)
        if given is not None and (given or not rule.startswith(":")):
            return given
        if rule.endswith("?"):
            raise KeyError(f"{name}: {word}")
        return word

    return VARIABLE.sub(value, text)


def command(service: str) -> list[str]:
    """Return what a service starts."""
    return [str(word) for word in read()["services"][service]["command"]]


def environment(service: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return a service's environment, `values` standing for those of docker/.env."""
    found = read()["services"][service]["environment"]
    return {name: filled(str(text), values) for name, text in found.items()}


def config(name: str) -> str:
    """Return the text of a file that compose writes into a container."""
    return str(read()["configs"][name]["content"])


def changed(command: Sequence[str], **options: object) -> list[str]:
    """Return a command with other values for some of its options (`backend_store_uri=…`).

    Raises:
        AssertionError: it has no such option, so that a test cannot start what nobody deploys.
    """
    made = list(command)
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}="
        places = [place for place, word in enumerate(made) if word.startswith(option)]
        assert len(places) == 1, f"{option} in {command}"
        made[places[0]] = f"{option}{value}"
    return made
