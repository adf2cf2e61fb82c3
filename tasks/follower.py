"""A training in MLflow while it lasts: one run a candidate, found again after an interruption."""

from __future__ import annotations

import time

from tasks import curves, files, live, params, runs, tracking
from tasks.curves import Live
from tasks.vision.errors import RefitError

PERIOD = 1.0  # seconds between two looks at what the stage has written
RETRY = 5.0  # seconds before a server that did not answer is asked again
SAMPLING = 5.0  # seconds between two samples of the machine's load


class Follower:
    """Sends one stage's epochs to the candidate's run.

    Args:
        key: of the stage, one of `curves.STAGES`.
        candidate: that is trained.
    """

    def __init__(self, key: str, candidate: str) -> None:
        self._key, self._candidate = key, candidate
        self._training = self._run_id = ""
        self._known: set[tracking.Point] | None = None
        self._monitor: tracking.SystemMetricsMonitor | None = None

    def send(self, client: tracking.MlflowClient, experiment: str) -> None:
        """Send what is new, and see that the machine is watched."""
        found = curves.read_live(curves.live_of(self._candidate, self._key))
        if found is None:
            return
        if self._run_id and found.training != self._training:
            # The second attempt has the same epochs with other figures: another run.
            tracking.set_tags(client, self._run_id, {"diverged": "tried again at a lower rate"})
            self.close(client, "FAILED")
        if not self._run_id:
            self._open(client, experiment, found)
        if not tracking.is_watched():
            self._stop_watching()
            self._monitor = tracking.watch_machine(self._run_id, SAMPLING)
        if self._known is None:
            self._known = tracking.points_of(client, self._run_id, self._key)
        self._known = tracking.log_curve(client, self._run_id, self._key, found.rows, self._known)

    def forget(self) -> None:
        """Ask the run what it has before more is sent: an answer that was lost tells nothing."""
        self._known = None

    def close(self, client: tracking.MlflowClient, status: str) -> None:
        """End the run, if there is one."""
        if self._run_id:
            self._stop_watching()
            client.set_terminated(self._run_id, status)
        self._run_id = ""
        self.forget()

    def _open(self, client: tracking.MlflowClient, experiment: str, found: Live) -> None:
        """Go on with the run that an interrupted process left, or with the head's, or begin one."""
        mine = {"candidate": self._candidate, f"training.{self._key}": found.training}
        run = tracking.find_run(client, experiment, mine, finished=False)
        if run and run.info.status == "FINISHED":
            run = None  # trained to its end before: this is another time
        if run is None and self._key == "fine_tune":
            run = runs.trained_as(client, experiment, self._candidate, "head")
        tags = {**mine, "git_commit": runs.git_commit(), "data_version": files.data_version()}
        began = found.rows[0]["time"]
        run_id = tracking.open_run(client, experiment, self._candidate, tags, run, began)
        self._training, self._run_id = found.training, run_id
        shown = {f"{self._key}.{name}": value for name, value in found.params.items()}
        tracking.log_params(client, run_id, shown)

    def _stop_watching(self) -> None:
        if self._monitor:
            self._monitor.finish()
        self._monitor = None


def follow(stage: str, candidate: str, other_end: live.Stage) -> None:
    """Send a stage's epochs until it ends; a server that is away is asked again and again."""
    key = next(key for key, name in curves.STAGES.items() if name == stage)
    experiment = params.load().register_.experiment
    follower, said = Follower(key, candidate), ""
    with runs.sender_lock(candidate, key):
        while True:
            try:
                with tracking.session(experiment) as (client, found):
                    _converse(follower, client, found, other_end)
                return
            except RefitError as error:
                follower.forget()
                if str(error) != said:
                    said = str(error)
                    print(said, flush=True)
            if other_end.ended.wait(RETRY):
                time.sleep(PERIOD)


def _converse(
    follower: Follower, client: tracking.MlflowClient, experiment: str, other_end: live.Stage
) -> None:
    while True:
        last = other_end.ended.is_set()
        follower.send(client, experiment)
        if last:
            return follower.close(client, other_end.status)
        other_end.ended.wait(PERIOD)
