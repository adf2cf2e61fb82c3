"""What DVC knows: the stages, what each one needs, and which of them are stale."""

from __future__ import annotations

from dataclasses import dataclass

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
        new_data: whether data/raw differs from its recorded version, has none, or is not in the
            cache.
        unkept: other stages whose results are here and recorded, but not in the cache: the disk was
            full when DVC should have kept them, and no later `dvc repro` would.
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
            unkept = {s.addressing for s in repo.index.stages if not _is_kept(s)} - status.keys()
    except DvcException as error:
        raise GraphError(f"DVC: {error}") from error
    stale = frozenset(name for name in stages if name in status)
    new_data = not recorded or DATA in status or DATA in unkept
    return Graph(_in_order(needs), stale, new_data, frozenset(unkept - {DATA}))


def _is_kept(stage: Stage) -> bool:
    """Whether the cache has a stage's outputs; it gets a folder's list after all its files."""
    return all(
        out.cache.exists(out.hash_info.value)
        for out in stage.outs
        if out.use_cache and out.hash_info
    )


def _in_order(needs: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the stages so that each one follows all that it needs, else as in dvc.yaml."""
    waiting, ordered = dict(needs), dict[str, set[str]]()
    while waiting:
        ready = next(name for name, needed in waiting.items() if needed <= ordered.keys())
        ordered[ready] = waiting.pop(ready)
    return ordered
