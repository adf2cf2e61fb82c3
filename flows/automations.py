"""What Prefect's server does by itself: calls dead runs dead, and tells people, if asked to.

Notifications are off unless REFIT_WEBHOOK holds an address when this runs; the address is kept in
a Webhook block, encrypted, and never printed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import get_current_settings
from prefect.states import StateType
from pydantic import SecretStr

WEBHOOK = "REFIT_WEBHOOK"
BLOCK = "refit"
MISSED = 3  # heartbeats that did not come before a run is called dead
UNSTARTED = 600.0  # seconds that a worker may take from a run's submission to its start
HEARTBEAT = "prefect.flow-run.heartbeat"
SUBMITTED = ("Pending", "Submitting")
ENDED = ("Completed", "Failed", "Cancelled", "Crashed")
RETRAIN: dict[str, str | list[str]] = {
    "prefect.resource.role": "flow",
    "prefect.resource.name": "retrain",
}
RUN_TEXT = "{{ flow.name }} {{ flow_run.name }}: {{ flow_run.state.name }}: "
# event -> the text that people get
TOLD = {
    "prefect.flow-run.Failed": RUN_TEXT + "{{ flow_run.state.message }}",
    "prefect.flow-run.Crashed": RUN_TEXT + "{{ flow_run.state.message }}",
    "refit.refused": "{{ event.payload.text }}",
    "refit.promoted": "{{ event.payload.text }}",
}


def dead_runs() -> Automation:
    """Return the automation that makes a run Crashed, which frees its slot, when it falls silent.

    It needs the heartbeats to come as often as this process is told they do; Prefect's default of
    180 s beside an automation that waits 90 s would crash every healthy run.
    """
    every = get_current_settings().flows.heartbeat_frequency
    if every is None:
        raise SystemExit("automations: PREFECT_FLOWS_HEARTBEAT_FREQUENCY is off: set it to 30")
    return _crashes(
        "refit: dead runs",
        f"A run that sent no heartbeat for {MISSED * every} s is Crashed.",
        after={HEARTBEAT},
        expect={HEARTBEAT, *_events(ENDED)},
        within=MISSED * every,
        message=f"no heartbeat for {MISSED * every} s: its process or machine is gone",
    )


def unstarted_runs() -> Automation:
    """Return the automation that frees the slot of a run whose worker died before it started it.

    Such a run holds its deployment's slot, sends no heartbeat that could fail to come, and no
    other worker looks at it.
    """
    return _crashes(
        "refit: runs that never started",
        f"A run that did not start {UNSTARTED:g} s after its submission is Crashed.",
        after=_events(SUBMITTED),
        expect=_events(("Running", *ENDED)),
        within=UNSTARTED,
        message=f"not started {UNSTARTED:g} s after its submission: its worker is gone",
    )


def _events(states: Iterable[str]) -> set[str]:
    """Return the events that tell of a run's states."""
    return {f"prefect.flow-run.{state}" for state in states}


def _crashes(
    name: str, description: str, *, after: set[str], expect: set[str], within: float, message: str
) -> Automation:
    """Return an automation that makes a run Crashed where `expect` does not come after `after`."""
    return Automation(
        name=name,
        description=description,
        trigger=EventTrigger(
            after=after,
            expect=expect,
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related=RETRAIN,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=within),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                # Forced, it would crash runs that ended well whenever the news of their end came
                # before the event that is counted from, or was lost with the server.
                force=False,
                message=message,
            )
        ],
    )


def notifications(block: Any) -> list[Automation]:
    """Return one automation for each kind of news that calls a webhook block."""
    found = []
    for event, text in TOLD.items():
        of_a_run = event.startswith("prefect.")
        found.append(
            Automation(
                name=f"refit: tell {event}",
                trigger=EventTrigger(
                    expect={event},
                    match={"prefect.resource.id": "prefect.flow-run.*" if of_a_run else "refit.*"},
                    match_related=RETRAIN if of_a_run else {},
                    posture=Posture.Reactive,
                    threshold=1,
                    within=timedelta(0),
                ),
                actions=[CallWebhook(block_document_id=block, payload=text)],
            )
        )
    return found


def make() -> None:
    """Make this project's automations; without REFIT_WEBHOOK those that tell people go.

    One that is there already stays: with it would go what it has counted, and a run that fell
    silent before would hold its slot for ever.
    """
    wanted = [dead_runs(), unstarted_runs()]
    names = {made.name for made in wanted} | {f"refit: tell {event}" for event in TOLD}
    if address := os.environ.get(WEBHOOK):
        wanted += notifications(Webhook(url=SecretStr(address)).save(BLOCK, overwrite=True))
    missing = {made.name: made for made in wanted}
    with get_client(sync_client=True) as client:
        for name in names:
            for old in client.read_automations_by_name(name):
                if name in missing and _says_the_same(old, missing[name]):
                    del missing[name]
                else:
                    client.delete_automation(old.id)
    for automation in missing.values():
        automation.create()


def _says_the_same(old: AutomationCore, new: AutomationCore) -> bool:
    """Whether two automations differ in nothing but who they are."""
    return old.model_dump(exclude={"id"}) == new.model_dump(exclude={"id"})
