"""One DVC stage as one Prefect task: the same command as by hand, in a process of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from prefect import task
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from flows import child
from flows.graph import Graph, candidate_of

# What DVC says to people who commit by hand after each stage: noise in a log of eleven stages.
DVC_HINTS = (
    "To track the changes with git, run:",
    "git add ",
    "To enable auto staging, run:",
    "dvc config core.autostage true",
    "Use `dvc push` to send your updates",
    "Generating lock file",
    "Updating lock file",
)


@dataclass
class Outcome:
    """What became of the stages of one retrain."""

    seconds: dict[str, float] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def obstacle(self, stage: str, graph: Graph) -> str | None:
        """Return why a stage cannot run, or None.

        A failed candidate is no obstacle for the stages that all share while another is left.
        """
        lost = graph.needs[stage] & (self.failed.keys() | self.skipped.keys())
        shared = [name for name in lost if not candidate_of(name)]
        if candidate_of(stage) or shared:
            first = min(shared or lost, default=None)
            return first and f"it needs {first}"
        if graph.candidates() <= {candidate_of(name) for name in self.failed}:
            return "no candidate is left"
        return None

    def failed_candidates(self) -> dict[str, str]:
        """Return candidate -> the stage that failed, and why."""
        found = {candidate_of(stage): f"{stage}: {why}" for stage, why in self.failed.items()}
        found.pop("", None)
        return found


DVC_SAYS = re.compile(r"ERROR: (?:failed to reproduce '[^']*'(?:: |$))?(.*)")
NOT_KEPT = "ERROR: failed to transfer"
UNCHANGED = "didn't change, skipping"  # DVC's words for a stage that it did not run
CACHED = "Cached"  # Prefect's name for the state of a task whose result is still good


def reason(name: str, code: int, lines: list[str]) -> str:
    """Return one line on why a child failed: its own error, else DVC's, else the last line.

    DVC's own is of use unless it only repeats the exit code of a program that has spoken.
    """
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    told = [found[1] for line in lines if (found := DVC_SAYS.match(line)) and found[1]]
    dvc = [line for line in told if not re.search(r"exited with \d", line)]
    own = [line for line in lines if not line.startswith("ERROR: failed to")]
    return (errors or dvc or own or [f"{name} ended with exit code {code}"])[-1]


def never(*_: object) -> bool:
    """A stage that failed on its inputs fails on them again: it is not retried."""
    return False


# With `retries=0` Prefect would log an empty traceback of its own beside the stage's error.
@task(task_run_name="{name}", retries=1, retry_condition_fn=never)
def run_child(name: str, command: list[str]) -> State:
    """Run a command as a child; its output is this task's log."""
    logger = get_run_logger()

    def log(line: str) -> None:
        if not line.strip().startswith(DVC_HINTS):
            logger.info("%s", line)

    started = time.monotonic()
    code, lines = child.run(command, log)
    seconds = time.monotonic() - started
    # With a full disk DVC says so, records the result all the same, and ends with 0.
    if code or any(line.startswith(NOT_KEPT) for line in lines):
        return Failed(message=reason(name, code, lines))
    if any(line.endswith(UNCHANGED) for line in lines):
        return Completed(name=CACHED, message="its inputs turned out to be the same")
    return Completed(message=f"{seconds:.1f} s", data=seconds)


# The network may be back in a minute; what a stage was told it is told again.
transfer = task(
    name="transfer", task_run_name="{name}", retries=2, retry_delay_seconds=[10.0, 60.0]
)(run_child.fn)


@task(task_run_name="{name}")
def unchanged(name: str) -> State:
    """Show a stage that DVC found up to date."""
    return Completed(name=CACHED, message=f"{name}: nothing that it depends on has changed")


def run_stages(graph: Graph, moved: Callable[[str, bool], None]) -> Outcome:
    """Run what is stale and what follows from it, in order; go on past a failed candidate.

    Args:
        graph: the stages.
        moved: is told of each stage that really runs, at its start (False) and its end (True).
    """
    outcome = Outcome()
    for stage, needs in graph.needs.items():
        if obstacle := outcome.obstacle(stage, graph):
            outcome.skipped[stage] = obstacle
        elif stage in graph.stale or needs & outcome.seconds.keys():
            command = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
            moved(stage, False)
            state = run_child(stage, command, return_state=True)
            moved(stage, True)
            if state.name == CACHED:
                outcome.unchanged.append(stage)
            elif state.is_completed():
                outcome.seconds[stage] = round(cast(float, state.result()), 1)
            else:
                outcome.failed[stage] = str(state.message)
        else:
            unchanged(stage, return_state=True)
            outcome.unchanged.append(stage)
            if stage in graph.unkept:
                kept = run_child(
                    f"keep {stage}", ["dvc", "commit", "--force", stage], return_state=True
                )
                if not kept.is_completed():
                    outcome.failed[stage] = str(kept.message)
    return outcome
