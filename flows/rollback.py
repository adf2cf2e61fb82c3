"""Make the previous champion the champion again, and keep the reason for ever."""

from __future__ import annotations

import argparse

from tasks import params, program, tracking, verdicts


def main() -> None:
    """Roll back, and write a line to data/reports/verdicts.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reason", default="no reason was given", help="kept with the version")
    reason = parser.parse_args().reason
    register = params.load().register_
    with tracking.session(register.experiment) as (client, _):
        replaced, champion = tracking.roll_back(client, register.model_name, reason)
    verdicts.append(
        {
            "verdict": "ROLLBACK",
            "reason": reason,
            "model": register.model_name,
            "from_version": str(replaced.version),
            "to_version": str(champion.version),
            "tracking_uri": tracking.uri(),
        }
    )
    print(
        f"{register.model_name} version {champion.version} is the champion again, instead of "
        f"version {replaced.version}: {reason}"
    )


if __name__ == "__main__":
    program.run(main)
