"""What DVC knows: the stages, what each one needs, and which of them are stale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import Stage

DATA = "data/raw.dvc"


class GraphError(Exception):
    """DVC cannot read the project; the message is DVC's own."""


@dataclass(frozen=True)
class Graph:
    """The stages in the order of dvc.yaml, asked once: a question to DVC costs a second.

    Attributes:
        needs: stage -> the stages whose outputs it reads.
        stale: stages whose own inputs or outputs changed; those after them are not named.
        new_data: whether data/raw differs from its recorded version, or has none.
        unkept: stages whose results are here as recorded, but not in the cache: the disk was full
            when DVC should have kept them. `dvc repro` would compute them again.
    """

    needs: dict[str, set[str]]
    stale: frozenset[str]
    new_data: bool
    unkept: frozenset[str] = frozenset()

    def candidates(self) -> set[str]:
        """Return the candidates' names."""
        return {candidate_of(stage) for stage in self.needs} - {""}


def candidate_of(stage: str) -> str:
    """Return the candidate in a stage's name (`fine_tune@resnet18`), or '' if all share it."""
    return stage.partition("@")[2]


def ask() -> Graph:
    """Ask DVC what there is and what is stale.

    Raises:
        GraphError: dvc.yaml, params.yaml or the workspace cannot be read.
    """
    try:
        with Repo() as repo:
            status = repo.status()
            graph = repo.index.graph
            stages = {s.addressing: s for s in repo.index.stages if not s.is_data_source}
            needs = {
                name: {n.addressing for n in graph.successors(stage)} & stages.keys()
                for name, stage in stages.items()
            }
            recorded = DATA in {s.addressing for s in repo.index.stages}
            stale = frozenset(name for name in stages if name in status)
            unkept = {n for n in stale if _lacks_only_the_cache(stages[n], status[n])}
    except DvcException as error:
        raise GraphError(f"DVC: {error}") from error
    new_data = not recorded or DATA in status
    return Graph(_in_order(needs), stale - unkept, new_data, frozenset(unkept))


def _lacks_only_the_cache(stage: Stage, changes: list[Any]) -> bool:
    """Whether a stage's results are here as recorded, and only DVC's cache has not got them."""
    lacking = all(
        isinstance(change, dict)
        and change.keys() == {"changed outs"}
        and set(change["changed outs"].values()) == {"not in cache"}
        for change in changes
    )
    # To DVC a result that is gone, or was changed, is "not in cache" too.
    return lacking and not any(out.workspace_status() for out in stage.outs)


def _in_order(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the stages so that each one follows all that it needs, else as in dvc.yaml."""
    waiting, ordered = dict(needs), dict[str, set[str]]()
    while waiting:
        ready = next(name for name, needed in waiting.items() if needed <= ordered.keys())
        ordered[ready] = waiting.pop(ready)
    return ordered
