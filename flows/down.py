"""End what `make up` started: the worker with the retrain that it runs, then the server."""

from __future__ import annotations

from flows import services


def main() -> None:
    """End both; one that does not run is said to."""
    for name in ("worker", "server"):
        print(f"{name:8} {'ended' if services.stop(name) else 'did not run'}")


if __name__ == "__main__":
    main()
