"""What tests need that start servers of their own on loopback."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(found: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask until the answer is true; a server that does not answer yet is asked again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if answer := found():
                return answer
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:g} s")
